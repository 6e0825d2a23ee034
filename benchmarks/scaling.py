"""Two gloo processes with a thread each against the same run on one core: pictures a second of a stage of a preset.

All run the real `Trainer` on the embedded heads, with its log, from the same new networks, in turns. The ideal is twice the
one core's rate. What a step costs whatever the batch (about 50 ms of Python, optimisers and small operations for the small
presets) does not shrink when the batch is shared, so the speed-up grows with the batch and with the networks. Cores also share
their memory's bandwidth and their clock: two runs at once that know nothing of each other, each with the whole batch, tell what
two cores of this machine can do together at most, and so what of a loss is the machine's. The share of the time in which a
process ran tells waiting from work: they meet three times a step, and what the machine delays in one, the other waits for.

    python benchmarks/scaling.py                                              (heads-64)
    python benchmarks/scaling.py --preset ffhq-64 --stage 0 --batch 16 --steps 3 --turns 2    (paper size at 32²)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import run_in_processes
from cips3d.training.presets import preset
from cips3d.training.recipe import TrainConfig
from cips3d.training.trainer import Trainer

WARM_UP = 2


def train(config: TrainConfig, folder: Path) -> tuple[float, float]:
    """Pictures a second of a run, and the share of the time in which this process ran; its first steps apart."""
    keep_freed_memory()
    times: list[tuple[float, float]] = []
    Trainer(config, folder).run(
        lambda share, figures: times.append((time.perf_counter(), time.process_time()))
    )
    wall, running = (
        after - before for before, after in zip(times[WARM_UP - 1], times[-1], strict=True)
    )
    return (len(times) - WARM_UP) * config.stages[0].batch / wall, running / wall


def measure(processes: int, core: int, config: TrainConfig, pipe: Connection) -> None:
    """A run's main process; alone, it stays on one core."""
    torch.set_num_threads(processes)
    if processes == 1:
        os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(run_in_processes(processes, train, config, Path(folder) / "run"))


def at_once(runs: int, processes: int, config: TrainConfig) -> tuple[float, float]:
    """Pictures a second of so many runs together, and the share of the time in which their main processes ran."""
    context = multiprocessing.get_context("spawn")
    running = []
    for core in range(runs):
        here, there = context.Pipe()
        process = context.Process(target=measure, args=(processes, core, config, there))
        process.start()
        there.close()  # so that a process that dies is noticed
        running.append((process, here))
    rates, shares = zip(*(pipe.recv() for _, pipe in running), strict=True)
    for process, _ in running:
        process.join()  # what comes next has the cores to itself
    return sum(rates), statistics.mean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="heads-64")
    parser.add_argument(
        "--stage", type=int, default=-1, help="number of the stage, from 0; the last one by default"
    )
    parser.add_argument("--batch", type=int, help="the stage's by default")
    parser.add_argument(
        "--steps", type=int, default=12, help="that are timed, after a few that are not"
    )
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    base = preset(options.preset)
    stage = base.stages[options.stage]
    batch = options.batch or stage.batch
    stage = replace(
        stage, batch=batch, kimg=(WARM_UP + options.steps) * batch / 1000, fade_kimg=0.0
    )
    config = replace(
        base,
        data="heads",
        stages=(stage,),
        precision="no",
        workers=0,
        checkpoint_kimg=1000,
        sample_kimg=1000,
        log_steps=1000,
    )
    cases: dict[str, list[tuple[float, float]]] = {
        "one process": [],
        "two processes": [],
        "two runs apart": [],
    }
    for _ in range(options.turns):
        for found, (runs, processes) in zip(cases.values(), ((1, 1), (1, 2), (2, 1)), strict=True):
            found.append(at_once(runs, processes, config))
    print(f"{options.preset} at {stage.resolution}², batch {batch}")
    ideal = 2 * statistics.median(rate for rate, _ in cases["one process"])
    for name, found in cases.items():
        rates, shares = zip(*found, strict=True)
        middle, spread = statistics.median(rates), f"{min(rates):.1f} to {max(rates):.1f}"
        share = f"{middle / ideal:.0%} of twice the one; running {statistics.mean(shares):.1%} of the time"
        print(f"{name}: {middle:.1f} images/s ({spread}), {share}")
    together, apart = (
        statistics.median(rate for rate, _ in cases[name])
        for name in ("two processes", "two runs apart")
    )
    print(f"two processes make {together / apart:.0%} of what two runs apart do")


if __name__ == "__main__":
    main()
