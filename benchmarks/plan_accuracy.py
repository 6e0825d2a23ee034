"""The memory that `cips3d plan` predicts for a training step, against the peak measured here.

Float32 on the CPU. Each configuration takes two steps of a real run in a process of its own, after
two steps of a small one that load libraries; its memory is the peak above what the process then
held. "Measured" is with a C library that returns freed blocks at once, so it is what tensors need;
"glibc" is with the library's default, which keeps freed blocks.

    python benchmarks/plan_accuracy.py        (about ten minutes and 6 GB of memory)
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from measuring import in_process, return_freed_memory
from stepping import prepared, take_step

from cips3d.training.planning import in_mode, step_cost, visible_share
from cips3d.training.presets import preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run

THREADS, STEPS, CHUNK = 2, 2, 4096


def configurations() -> dict[str, TrainConfig]:
    """Paper size with each kind of gradients, and the small preset as it is."""
    heads = preset("heads-32")
    paper = replace(preset("ffhq-128"), data="heads", precision="no", workers=0)
    small, large = (replace(stage, chunk=CHUNK) for stage in paper.stages[1:])
    large = replace(large, batch=2)

    def with_stage(base: TrainConfig, stage: Stage) -> TrainConfig:
        return replace(base, stages=(stage,))

    return {
        "paper size, 64², 4 images, full": with_stage(paper, replace(small, batch=4)),
        "paper size, 128², 2 images, partial": with_stage(paper, in_mode(large, "partial")),
        "paper size, 128², 2 images, checkpointed": with_stage(
            paper, in_mode(large, "checkpointed")
        ),
        "heads-32, 32², 16 images, full": with_stage(heads, replace(heads.stages[1], batch=16)),
    }


def measure(config: TrainConfig, return_freed: bool, connection: Connection) -> None:
    """A process: peak bytes above what it held after a small run."""
    torch.set_num_threads(THREADS)
    if return_freed:
        return_freed_memory()
    heads = preset("heads-32")
    take_steps(replace(heads, stages=(replace(heads.stages[0], batch=2),)))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    take_steps(config)
    connection.send(resident("VmHWM") - before)


def take_steps(config: TrainConfig) -> None:
    (stage,) = config.stages
    size = (stage.batch, 3, stage.resolution, stage.resolution)
    real = torch.randint(0, 256, size, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(Run(config, Path(folder) / "run"))
        for _ in range(STEPS):
            take_step(run, real)


def resident(name: str) -> int:
    """Resident memory of this process in bytes: now (VmRSS) or its peak (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    print(f"{'':44}{'planned MiB':>12}{'measured':>10}{'ratio':>8}{'glibc':>8}")
    for name, config in configurations().items():
        (stage,) = config.stages
        planned = step_cost(config, stage, stage.batch, 0, visible_share(config)).peak_bytes
        needed, kept = (in_process(measure, config, return_freed) for return_freed in (True, False))
        row = f"{planned / 2**20:12.0f}{needed / 2**20:10.0f}{planned / needed:8.2f}"
        print(f"{name:44}{row}{kept / 2**20:8.0f}", flush=True)


if __name__ == "__main__":
    main()
