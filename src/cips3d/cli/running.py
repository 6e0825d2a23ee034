"""Training runs for `cips3d train`, `finetune` and `demo`: configuration, processes, progress."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cips3d.cli.options import RunOptions
from cips3d.cli.output import finished, progress
from cips3d.configuration import read_json, with_settings
from cips3d.errors import UserError
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import default_processes, run_in_processes
from cips3d.training.loop import train
from cips3d.training.presets import preset as preset_named
from cips3d.training.recipe import TrainConfig, check_batches, with_minutes
from cips3d.training.run import Run


def resumed_config(run_dir: Path) -> TrainConfig:
    """The configuration of an existing run."""
    return read_json(TrainConfig, run_dir / "config.json")


def new_config(
    preset: str,
    data: str | None,
    kimg: float | None,
    minutes: float | None,
    seed: int | None,
    options: RunOptions,
) -> TrainConfig:
    """A preset with the options of `cips3d train`; None keeps the preset's value."""
    config = preset_named(preset)
    stages = [replace(stage, batch=options.batch or stage.batch) for stage in config.stages]
    stages[-1] = replace(stages[-1], kimg=stages[-1].kimg if kimg is None else kimg)
    config = replace(
        config,
        stages=tuple(stages),
        data=data or config.data,
        seed=config.seed if seed is None else seed,
    )
    if minutes is not None:
        config = with_minutes(config, minutes)
    return with_settings(config, options.set, "--set")


def train_here(config: TrainConfig, run_dir: Path, processes: int | None = None) -> Path | None:
    """Trains in processes of this machine, by default as many as suit it.

    Returns:
        The model's file on the main process; None on others.
    """
    if processes is not None and processes > 1:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--processes: a launcher has already started several; leave it out")
        check_batches(config.stages, processes, "--processes")
    found = torch.accelerator.device_count()
    if found > 1 and processes is None and "WORLD_SIZE" not in os.environ:
        command = f"accelerate launch --num_processes {found} -m cips3d train {run_dir}"
        print(f"using one of {found} GPUs; to use all: {command}", file=sys.stderr)
    count = processes or default_processes(config.stages)
    return run_in_processes(count, run_with_progress, config, run_dir)


def run_with_progress(config: TrainConfig, run_dir: Path) -> Path | None:
    """Runs a configuration; the main process shows progress and returns the model's file."""
    keep_freed_memory()
    run = Run(config, run_dir)
    is_main, device = run.accelerator.is_main_process, run.accelerator.device.type
    with progress(f"training on {device}", run.progress(), shown=is_main) as report:

        def show(share: float, figures: dict[str, float]) -> None:
            speed = f"{figures['images_per_second']:.1f} images/s"
            report(share, f"{figures['resolution']:.0f}², {figures['images']:,.0f} images, {speed}")

        model = train(run, show)
    return model if is_main else None


def print_outcome(model: Path | None, run_dir: Path) -> None:
    """Says what a run wrote, on the main process."""
    if model is not None:
        wrote = f"{model}\n  samples: {run_dir / 'samples'}\n  log: {run_dir / 'log.jsonl'}"
        finished(wrote, f"cips3d render {model} turn.mp4")
