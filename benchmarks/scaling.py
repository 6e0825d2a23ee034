"""Two gloo processes with a thread each against one process: images per second of a preset's stage.

All train with the real loop on the embedded heads, with a log, from the same new networks, in
turns. Ideal is twice the rate of one process on one core. The part of a step that does not depend
on the batch (about 50 ms of Python, optimisers and small operations for the small presets) is not
shared, so the speed-up grows with the batch and the networks.

Cores also share memory bandwidth and clock. Two independent runs at once, each with the whole
batch, show the most that two cores of this machine can do, and so which part of a loss is the
machine's. The share of time in which a process ran separates waiting from work: processes meet
three times per step, and wait for the slower one.

    python benchmarks/scaling.py                                    (heads-64)
    python benchmarks/scaling.py --preset ffhq-64 --stage 0 --batch 16 --steps 3 --turns 2
                                                                    (paper size at 32²)
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from measuring import started

from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import run_in_processes
from cips3d.training.loop import train
from cips3d.training.presets import preset
from cips3d.training.recipe import TrainConfig
from cips3d.training.run import Run

WARM_UP = 2
#: Runs at once, and processes of each.
CASES = {"one process": (1, 1), "two processes": (1, 2), "two independent runs": (2, 1)}


def timed_run(config: TrainConfig, folder: Path) -> tuple[float, float]:
    """Images per second, and the share of time in which this process ran; without the warm-up."""
    keep_freed_memory()
    times: list[tuple[float, float]] = []
    train(
        Run(config, folder),
        lambda *_: times.append((time.perf_counter(), time.process_time())),
    )
    pairs = zip(times[WARM_UP - 1], times[-1], strict=True)
    wall, running = (after - before for before, after in pairs)
    return (len(times) - WARM_UP) * config.stages[0].batch / wall, running / wall


def measure(core: int, processes: int, config: TrainConfig, connection: Connection) -> None:
    """A run's main process; alone, it stays on one core."""
    torch.set_num_threads(processes)
    if processes == 1:
        os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        found = run_in_processes(processes, timed_run, config, Path(folder) / "run")
        connection.send(found)


def at_once(runs: int, processes: int, config: TrainConfig) -> tuple[float, float]:
    """Images per second of several runs together, and the mean share in which they ran."""
    running = [started(measure, core, processes, config) for core in range(runs)]
    rates, shares = zip(*(connection.recv() for _, connection in running), strict=True)
    for process, _ in running:
        process.join()  # the next case has the cores to itself
    return sum(rates), statistics.mean(shares)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="heads-64")
    parser.add_argument("--stage", type=int, default=-1, help="index from 0; default: the last")
    parser.add_argument("--batch", type=int, help="default: the stage's")
    parser.add_argument("--steps", type=int, default=12, help="steps timed, after the warm-up")
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


def configuration(given: argparse.Namespace) -> TrainConfig:
    """One stage of the preset, of the warm-up and the timed steps."""
    base = preset(given.preset)
    stage = base.stages[given.stage]
    batch = given.batch or stage.batch
    kimg = (WARM_UP + given.steps) * batch / 1000
    stage = replace(stage, batch=batch, kimg=kimg, fade_kimg=0.0)
    rarely = {"checkpoint_kimg": 1000, "sample_kimg": 1000, "log_steps": 1000}
    return replace(base, data="heads", stages=(stage,), precision="no", workers=0, **rarely)


def main() -> None:
    given = options()
    config = configuration(given)
    (stage,) = config.stages
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(given.turns):
        for name, (runs, processes) in CASES.items():
            found[name].append(at_once(runs, processes, config))
    medians = {name: statistics.median(rate for rate, _ in turns) for name, turns in found.items()}
    print(f"{given.preset} at {stage.resolution}², batch {stage.batch}")
    for name, turns in found.items():
        rates, shares = zip(*turns, strict=True)
        ideal = medians[name] / (2 * medians["one process"])
        print(
            f"{name}: {medians[name]:.1f} images/s ({min(rates):.1f} to {max(rates):.1f}), "
            f"{ideal:.0%} of twice one process; running {statistics.mean(shares):.1%} of the time"
        )
    ratio = medians["two processes"] / medians["two independent runs"]
    print(f"two processes reach {ratio:.0%} of two independent runs")


if __name__ == "__main__":
    main()
