"""`cips3d demo`, `train` and `finetune` (paper Section 4.4): training runs."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cips3d
from cips3d.cli.options import Data, Derived, Limited, Model, Preset, RunOptions, Side
from cips3d.cli.output import finished, progress, tracked
from cips3d.configuration import Count, Seed, Share, read_json, with_settings
from cips3d.errors import UserError

if TYPE_CHECKING:
    from cips3d.export.strips import Kind
    from cips3d.models.protocol import ImageGenerator
    from cips3d.training.recipe import TrainConfig

#: Yaws of the demo's sheets, and of its comparison with the bundled model.
_YAWS, _FEW_YAWS = (-45.0, -30.0, -15.0, 0.0, 15.0, 30.0, 45.0), (-30.0, 0.0, 30.0)
#: Two seconds of video, at most this large: half a minute of rendering.
_FRAMES, _VIDEO_SIDE = 60, 64


def demo(
    out: Derived[Path] = None,
    /,
    minutes: Limited = 3.0,
    heads: Count = 6,
    resolution: Side = 96,
    seed: Seed = 0,
) -> None:
    """Train on synthetic heads for 3 minutes and show the result.

    Trains a 3D-aware GAN from scratch on this machine. Writes heads.png (rows: image, NeRF image,
    depth; columns: yaws from -45° to 45°), depth.png, orbit.mp4, and comparison.png with the same
    views of the bundled model.

    Args:
        out: New folder for the run. Default: runs/demo-DATE-TIME.
        minutes: Training time.
        heads: Number of generated heads to show.
        resolution: Pixels per image of the sheets; any size, whatever the training resolution.
        seed: Seed of the training and of the heads.

    Examples:
        cips3d demo
        cips3d demo runs/longer --minutes 10
    """
    from cips3d.training.presets import for_a_few_minutes, preset
    from cips3d.training.recipe import with_minutes

    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    config = replace(for_a_few_minutes(preset("heads-32")), seed=seed)
    print(f"Training a 3D-aware GAN on synthetic heads for {minutes:g} minutes, from scratch.")
    model = train_here(with_minutes(config, minutes), folder)
    if model is not None:
        _show(model, folder, heads, resolution, seed)


def _show(model: Path, folder: Path, heads: int, resolution: int, seed: int) -> None:
    """Writes the images of the demo, and prints how real the geometry is."""
    import numpy as np

    from cips3d.cli.models import geometry_lines
    from cips3d.export import media, sheets, strips, video

    generator, bundled = cips3d.load(model), cips3d.load("heads")

    def sheet(shown: ImageGenerator, yaws: tuple[float, ...], *kinds: Kind) -> np.ndarray:
        cameras = sheets.orbit_cameras(shown, yaws)
        latents = shown.sample_latents(heads, seed)
        return sheets.view_sheet(shown, latents, cameras, resolution, show=kinds or strips.KINDS)

    media.save_image(folder / "heads.png", sheet(generator, _YAWS))
    media.save_image(folder / "depth.png", sheet(generator, _YAWS, "depth"))
    halves = [sheet(shown, _FEW_YAWS) for shown in (generator, bundled)]
    gap = np.full_like(halves[0][:, :12], 255)
    comparison = np.concatenate([halves[0], gap, halves[1]], axis=1)
    media.save_image(folder / "comparison.png", comparison)
    poses, turn = generator.config.poses, math.radians(max(_YAWS))
    orbit = cips3d.trajectories.orbit(_FRAMES, turn, radius=poses.radius, fov=poses.fov)
    subjects, side = list(generator.sample_latents(heads, seed)), min(resolution, _VIDEO_SIDE)
    frames = video.video_frames(generator, subjects, orbit, side)
    media.save_frames(folder / "orbit.mp4", tracked(frames, "rendering", _FRAMES))
    print("Is the geometry real?")
    for line in geometry_lines(generator):
        print(f"  {line}")
    wrote = f"""{model}
  heads.png: {heads} heads; rows are image, NeRF image and depth
  depth.png: the depth alone
  orbit.mp4: the heads turning
  comparison.png: a few views next to those of the bundled model (right)"""
    finished(wrote, f"cips3d render {model} more.png --seed 1")


def train(
    run_dir: Path,
    /,
    run: RunOptions,
    preset: Derived[Preset] = None,
    data: Derived[Data] = None,
    kimg: Derived[Limited] = None,
    minutes: Derived[Limited] = None,
    seed: Derived[Seed] = None,
) -> None:
    """Train a generator, or resume a run.

    Without options, a run in RUN-DIR is resumed from its newest checkpoint with its own
    configuration: bit-exactly on CPUs with the same number of processes; with the same data and
    random numbers on GPUs of the same kind. `accelerate launch -m cips3d train …` runs the same
    command on several GPUs and machines.

    Args:
        run_dir: Folder for config.json, log.jsonl, samples, checkpoints, TensorBoard events and
            model.safetensors, which includes the discriminators.
        preset: Starting configuration: heads-32 or heads-64 (for a laptop's CPU); ffhq-64, -128,
            -256, -512, -1024 (the authors' released settings, eight GPUs); ffhq-512-paper (the
            paper's text); afhq-cats-256; table-2-direction, -fixed, -learned, -full (the paper's
            ablations); heads-32-pi-gan, -cips-2d (baselines). Default: heads-32 for a new run.
        data: "heads", "heads-cartoon", or a folder or zip of images. Default: the preset's.
        kimg: Length of the last stage in thousands of real images shown. Default: the preset's.
        minutes: Length of the whole run; each stage takes its share.
        seed: Seed of the initial weights and all random numbers. Default: the preset's.

    Examples:
        cips3d train runs/heads --preset heads-64
        cips3d train runs/mine --data photos.zip --preset ffhq-256
    """
    from cips3d.training.presets import preset as preset_named
    from cips3d.training.recipe import TrainConfig, with_minutes

    given = (preset, data, kimg, minutes, seed, run.batch, run.set or None)
    if (run_dir / "config.json").exists() and all(value is None for value in given):
        config = read_json(TrainConfig, run_dir / "config.json")
    else:
        config = preset_named(preset or "heads-32")
        stages = [replace(stage, batch=run.batch or stage.batch) for stage in config.stages]
        stages[-1] = replace(stages[-1], kimg=kimg or stages[-1].kimg)
        config = replace(
            config,
            stages=tuple(stages),
            data=data or config.data,
            seed=config.seed if seed is None else seed,
        )
        config = config if minutes is None else with_minutes(config, minutes)
    _carry_out(config, run_dir, run)


def finetune(
    model: Model,
    run_dir: Path,
    /,
    run: RunOptions,
    data: Data,
    kimg: Limited = 30.0,
    augment: Derived[Share] = None,
    freeze_d: int = 0,
    preset: Derived[Preset] = None,
    seed: Seed = 0,
) -> None:
    """Transfer a model to another set of images.

    A few hundred images are enough. The radiance field and the shape mapping are frozen, so shape
    and pose stay bit-exact; the implicit network, the appearance mapping and the discriminators
    train. The result can be blended with the original (`cips3d blend`). `cips3d train RUN-DIR`
    resumes an interrupted run.

    Args:
        run_dir: New folder for the run, laid out as by `cips3d train`.
        data: Folder or zip of the new images, or "heads-cartoon".
        kimg: Length in thousands of real images shown.
        augment: Probability of DiffAugment, 0 to 1. Default: adaptive (StyleGAN2-ADA).
        freeze_d: Number of discriminator blocks to freeze, from the image on (FreezeD); needs a
            model with discriminators.
        preset: Preset for learning rates and discriminators. Default: the one with the model's
            networks.
        seed: Seed of all random numbers.

    Examples:
        cips3d finetune heads runs/cartoon --data heads-cartoon
        cips3d finetune heads runs/drawings --data drawings.zip --kimg 10 --augment 0.5
    """
    # on other processes, the first one may have written it already
    if os.environ.get("RANK", "0") == "0" and (run_dir / "config.json").exists():
        raise UserError(
            f"{run_dir}: already contains a run; resume it with cips3d train {run_dir}, "
            "or give another folder"
        )

    from cips3d.pretrained import load_discriminators
    from cips3d.training.presets import transfer

    discriminators = load_discriminators(model)
    if freeze_d and discriminators is None:
        raise UserError(
            f"--freeze-d: {model} has no discriminators, so new ones must train; leave it out"
        )
    config = transfer(cips3d.load(model).config, model, data, discriminators, kimg, preset)
    (stage,) = config.stages
    config = replace(
        config,
        stages=(replace(stage, batch=run.batch or stage.batch, augment=augment or 0.0),),
        seed=seed,
        frozen_discriminator_blocks=freeze_d,
        augment_target=config.augment_target if augment is None else None,
    )
    _carry_out(config, run_dir, run)


def _carry_out(config: TrainConfig, run_dir: Path, options: RunOptions) -> None:
    """Trains, and says what was written."""
    config = with_settings(config, options.set, "--set")
    model = train_here(config, run_dir, options.processes)
    if model is not None:
        parts = {"samples": run_dir / "samples", "log": run_dir / "log.jsonl"}
        lines = [f"  {name}: {path}" for name, path in parts.items() if path.exists()]
        finished("\n".join([str(model), *lines]), f"cips3d render {model} turn.mp4")


def train_here(config: TrainConfig, run_dir: Path, processes: int | None = None) -> Path | None:
    """Trains in processes of this machine, by default as many as suit it.

    Returns the model's file on the main process, None on others.
    """
    import torch

    from cips3d.training.launch import default_processes, run_in_processes
    from cips3d.training.recipe import check_batches

    if processes is not None and processes > 1:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--processes: a launcher has already started several; leave it out")
        check_batches(config.stages, processes, "--processes")
    found = torch.accelerator.device_count()
    if found > 1 and processes is None and "WORLD_SIZE" not in os.environ:
        rest = f"to use all: accelerate launch --num_processes {found} -m cips3d train {run_dir}"
        if platform.system() == "Windows":
            rest = "several are not supported on Windows"
        print(f"using one of {found} GPUs; {rest}", file=sys.stderr)
    count = processes or default_processes(config.stages)
    return run_in_processes(count, run_with_progress, config, run_dir)


def run_with_progress(config: TrainConfig, run_dir: Path) -> Path | None:
    """Runs a configuration; the main process shows progress and returns the model's file."""
    from cips3d.data import ImageDataset
    from cips3d.training import loop
    from cips3d.training.allocator import keep_freed_memory
    from cips3d.training.run import Run

    keep_freed_memory()
    run = Run(config, run_dir)
    is_main, device = run.accelerator.is_main_process, run.accelerator.device.type
    if is_main and isinstance(run.dataset, ImageDataset) and run.dataset.passed_over:
        print(f"{config.data}: {run.dataset.passed_over}", file=sys.stderr)
    with progress(f"training on {device}", run.progress(), shown=is_main) as report:

        def show(share: float, figures: dict[str, float]) -> None:
            speed = f"{figures['images_per_second']:.1f} images/s"
            report(share, f"{figures['resolution']:.0f}², {figures['images']:,.0f} images, {speed}")

        model = loop.train(run, show)
    return model if is_main else None
