"""Two gloo processes with a thread each against the same run on one core: pictures a second of a preset's last stage.

Both run the real `Trainer`, with its data and its log, from the same new networks, in turns. The ideal is twice the one core's
rate. What a step costs whatever the batch (about 50 ms of Python, optimisers and small operations) does not shrink when the
batch is shared, so the speed-up grows with the batch.

    python benchmarks/scaling.py [heads-64 | heads-32] [batch]        (about four minutes)
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cips3d.training.allocator import keep_freed_memory
from cips3d.training.config import TrainConfig
from cips3d.training.launch import run_in_processes
from cips3d.training.presets import preset
from cips3d.training.trainer import Trainer

TURNS, WARM_UP, PICTURES = 3, 3, 480


def train(config: TrainConfig, folder: Path) -> float:
    """Pictures a second of a run, its first steps apart."""
    keep_freed_memory()
    times: list[float] = []
    Trainer(config, folder).run(lambda share, figures: times.append(time.perf_counter()))
    return (len(times) - WARM_UP) * config.stages[0].batch / (times[-1] - times[WARM_UP - 1])


def measure(processes: int, config: TrainConfig, pipe: Connection) -> None:
    """A run's main process; alone, it stays on one core."""
    torch.set_num_threads(processes)
    if processes == 1:
        os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(run_in_processes(processes, train, config, Path(folder) / "run"))


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "heads-64"
    base = preset(name)
    last = base.stages[-1]
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else last.batch
    stage = replace(last, batch=batch, kimg=(WARM_UP * batch + PICTURES) / 1000, fade_kimg=0.0)
    config = replace(base, stages=(stage,), checkpoint_kimg=1000, sample_kimg=1000)
    context = multiprocessing.get_context("spawn")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(TURNS):
        for processes, found in rates.items():
            here, there = context.Pipe()
            process = context.Process(target=measure, args=(processes, config, there))
            process.start()
            there.close()  # so that a process that dies is noticed
            found.append(here.recv())
            process.join()
    one, two = (statistics.median(found) for found in rates.values())
    print(f"{name} at {stage.resolution}², batch {batch}")
    for processes, found in rates.items():
        print(f"{processes} process(es): {statistics.median(found):.1f} images/s ({min(found):.1f} to {max(found):.1f})")
    print(f"speed-up {two / one:.2f}, {two / (2 * one):.0%} of the ideal")


if __name__ == "__main__":
    main()
