"""`cips3d train`: a training run from a preset, or the continuation of one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from cips3d.cli.options import Derived, Settings, at_least, check_seed, positive
from cips3d.configuration import read_json, with_settings
from cips3d.errors import UserError
from cips3d.training import presets
from cips3d.training import recipe as configs
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import default_processes, run_in_processes
from cips3d.training.recipe import TrainConfig, check_batches
from cips3d.training.trainer import Trainer


def train(
    run_dir: Path,
    /,
    preset: Derived[str] = None,
    data: Derived[str] = None,
    kimg: Derived[float] = None,
    minutes: Derived[float] = None,
    batch: Derived[int] = None,
    seed: Derived[int] = None,
    set: Settings = (),
    processes: Derived[int] = None,
) -> None:
    """Train a generator, or resume the run in RUN-DIR from its newest checkpoint.

    Without options an existing run is resumed with its own configuration: on CPUs, with as many processes, to the bit; on GPUs
    of the same kind with the same data and draws. `accelerate launch -m cips3d train …` runs the same command on many GPUs and
    machines.

    Args:
        run_dir: folder for config.json, log.jsonl, samples, checkpoints, TensorBoard events, model.safetensors and, beside it,
            its discriminators.
        preset: what to train: heads-32 or heads-64 (a laptop's CPU); ffhq-64, -128, -256, -512, -1024 (the authors' released
            settings, eight GPUs); ffhq-512-paper (the paper's text); afhq-cats-256; table-2-direction, -fixed, -learned,
            -full (the paper's ablations); heads-32-pi-gan, -cips-2d (its rivals). Default: heads-32 for a new run.
        data: "heads", "heads-cartoon", or a folder or zip of pictures. Default: the preset's.
        kimg: length of the last stage, in thousands of real pictures shown. Default: the preset's.
        minutes: end the whole run after about this time, each stage having a share of it.
        batch: pictures per step over all processes. Default: the preset's.
        seed: of initial weights and all draws. Default: the preset's.
        set: any other setting of the configuration, such as loss=relativistic or stages.0.batch=8 (stages.* for all);
            docs/training.md explains the usual ones, a run's config.json names all.
        processes: that share each batch on this machine's CPU. Default: one per core, if every batch divides and each gets 4
            pictures or more; one where there is a GPU.
    """
    at_least(1, processes=processes)
    options = {
        "preset": preset,
        "data": data,
        "kimg": kimg,
        "minutes": minutes,
        "batch": batch,
        "seed": seed,
    }
    given = [name for name, value in options.items() if value is not None] + ["set"] * bool(set)
    stored = run_dir / "config.json"
    if stored.exists() and not given:
        config = read_json(TrainConfig, stored)
    else:
        config = _new_config(preset or "heads-32", data, kimg, minutes, batch, seed)
        config = with_settings(config, set, "--set")
    print_outcome(train_here(config, run_dir, processes), run_dir)


def print_outcome(model: Path | None, run_dir: Path) -> None:
    """Says where a run has put what it made (on the main process, which alone knows the model)."""
    if model is not None:
        print(f"model: {model}\nsamples: {run_dir / 'samples'}\nlog: {run_dir / 'log.jsonl'}")


def _new_config(
    name: str,
    data: str | None,
    kimg: float | None,
    minutes: float | None,
    batch: int | None,
    seed: int | None,
) -> TrainConfig:
    if seed is not None:
        check_seed(seed)
    config = presets.preset(name)
    stages = list(config.stages)
    if kimg is not None:
        stages[-1] = replace(stages[-1], kimg=kimg)
    if batch is not None:
        stages = [replace(stage, batch=batch) for stage in stages]
    config = replace(
        config,
        stages=tuple(stages),
        data=data or config.data,
        seed=config.seed if seed is None else seed,
    )
    if minutes is None:
        return config
    positive(minutes=minutes)
    return configs.with_minutes(config, minutes)


def train_here(config: TrainConfig, run_dir: Path, processes: int | None = None) -> Path | None:
    """`run_with_progress` in so many processes of this machine, or in as many as suit it."""
    if processes is not None and processes > 1:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--processes: a launcher has started several already; leave it out")
        check_batches(config.stages, processes, "--processes")
    found = torch.accelerator.device_count()
    if found > 1 and processes is None and "WORLD_SIZE" not in os.environ:
        everything = f"accelerate launch --num_processes {found} -m cips3d train {run_dir}"
        print(f"takes one of {found} GPUs; for all of them: {everything}", file=sys.stderr)
    return run_in_processes(
        processes or default_processes(config.stages), run_with_progress, config, run_dir
    )


def run_with_progress(config: TrainConfig, run_dir: Path) -> Path | None:
    """Runs the configuration with a live bar (on the main process); returns the model's path there, None elsewhere."""
    keep_freed_memory()
    trainer = Trainer(config, run_dir)
    main, device = trainer.accelerator.is_main_process, trainer.accelerator.device.type
    layout = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining} {postfix}"
    with tqdm(
        total=1.0, disable=not main, bar_format=layout, initial=trainer.progress(), mininterval=0.5
    ) as bar:

        def show(share: float, figures: dict[str, float]) -> None:
            bar.set_description_str(
                f"training {figures['resolution']:.0f}² on {device}", refresh=False
            )
            bar.set_postfix_str(
                f"{figures['images_per_second']:.1f} images/s, {figures['images']:.0f} shown",
                refresh=False,
            )
            bar.update(share - bar.n)

        model = trainer.run(show)
        bar.update(1 - bar.n)
    return model if main else None
