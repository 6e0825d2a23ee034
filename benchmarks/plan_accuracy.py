"""The memory that `cips3d plan` predicts for a training step against this machine's peak resident memory (float32, CPU).

Each configuration runs two steps of the real `Trainer` in a process of its own, after two steps of a small one, which load
libraries; its memory is the peak above what the process then held. "Measured" is with a C library that gives every freed block
of 64 KiB or more back at once, so that it is what tensors need; "glibc" is with its own ways, which keep freed blocks.

    python benchmarks/plan.py        (about ten minutes and 6 GB of memory)
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from memory import give_back_at_once

from cips3d.training.planning import in_mode, step_cost, visible_share
from cips3d.training.presets import preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.trainer import Trainer

THREADS, STEPS, CHUNK = 2, 2, 4096


def configurations() -> dict[str, TrainConfig]:
    """Paper size with three ways of gradients, and the small preset as it is."""
    heads = preset("heads-32")
    paper = replace(preset("ffhq-128"), data="heads", precision="no", workers=0)
    small, large = (replace(stage, chunk=CHUNK) for stage in paper.stages[1:])

    def with_stage(stage: Stage) -> TrainConfig:
        return replace(paper, stages=(stage,))

    return {
        "paper size, 64², 4 pictures, full": with_stage(replace(small, batch=4)),
        "paper size, 128², 2 pictures, partial": with_stage(
            in_mode(replace(large, batch=2), "partial")
        ),
        "paper size, 128², 2 pictures, checkpointed": with_stage(
            in_mode(replace(large, batch=2), "checkpointed")
        ),
        "heads-32, 32², 16 pictures, full": replace(
            heads, stages=(replace(heads.stages[1], batch=16),)
        ),
    }


def measure(config: TrainConfig, give_back: bool, pipe: Connection) -> None:
    """A process: peak bytes above what it held after a small run."""
    torch.set_num_threads(THREADS)
    if give_back:
        give_back_at_once()
    heads = preset("heads-32")
    run(replace(heads, stages=(replace(heads.stages[0], batch=2),)))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    run(config)
    pipe.send(resident("VmHWM") - before)


def run(config: TrainConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run")
        (stage,) = config.stages
        for name, part in trainer.networks.generator.named_children():
            part.requires_grad_(name not in stage.frozen)
        real = torch.randint(
            0, 256, (stage.batch, 3, stage.resolution, stage.resolution), dtype=torch.uint8
        )
        for step in range(STEPS):
            trainer.counters.step = step
            trainer._step(stage, range(stage.batch), real, None, logged=False)


def resident(name: str) -> int:
    """Bytes of resident memory of this process: now (VmRSS) or at most so far (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    context = multiprocessing.get_context("spawn")
    print(f"{'':44}{'planned MiB':>12}{'measured':>10}{'ratio':>8}{'glibc':>8}")
    for name, config in configurations().items():
        (stage,) = config.stages
        planned = step_cost(config, stage, stage.batch, 0, visible_share(config)).peak_bytes
        measured = []
        for give_back in (True, False):
            here, there = context.Pipe()
            process = context.Process(target=measure, args=(config, give_back, there))
            process.start()
            there.close()  # so that a process that dies is noticed
            measured.append(here.recv())
            process.join()
        needed, kept = measured
        print(
            f"{name:44}{planned / 2**20:12.0f}{needed / 2**20:10.0f}{planned / needed:8.2f}{kept / 2**20:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
