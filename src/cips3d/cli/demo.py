"""`cips3d demo`: trains the small preset on the embedded heads for a few minutes and shows what it has learned."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cips3d import pretrained, trajectories
from cips3d.cli.options import Derived, at_least, check_seed, positive
from cips3d.cli.train import train_here
from cips3d.export.media import save_frames, save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.export.video import video_frames
from cips3d.metrics.geometry import geometry_report
from cips3d.training.presets import for_a_few_minutes, preset
from cips3d.training.recipe import with_minutes

_YAWS = (-45.0, -30.0, -15.0, 0.0, 15.0, 30.0, 45.0)
_FEW_YAWS, _GAP = (-30.0, 0.0, 30.0), 12  # beside each other; pixels between them
_FRAMES, _VIDEO_RESOLUTION = 60, 64  # two seconds of six heads, rendered in about half a minute


def demo(
    out: Derived[Path] = None,
    /,
    minutes: float = 3.0,
    heads: int = 6,
    resolution: int = 96,
    seed: int = 0,
) -> None:
    """Train a 3D-aware GAN from scratch on the embedded heads, then turn heads that it has invented.

    Writes heads.png (rows: INR image, NeRF image, depth; columns: yaws from -45° to 45°), depth.png, orbit.mp4 and beside.png,
    a few views next to those of the model that comes with the package.

    Args:
        out: a new folder for the run. Default: runs/demo-DATE-TIME.
        minutes: of training.
        heads: number of invented heads to show.
        resolution: side of the pictures shown, in pixels; any size, whatever was trained.
        seed: of training and of the heads.
    """
    at_least(1, heads=heads, resolution=resolution)
    positive(minutes=minutes)
    check_seed(seed)
    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    config = with_minutes(replace(for_a_few_minutes(preset("heads-32")), seed=seed), minutes)
    print(
        f"Training a 3D-aware GAN on synthetic heads for {minutes:g} minutes (preset heads-32), from scratch, on this machine."
    )
    model = train_here(config, folder)
    if model is None:
        return
    generator = pretrained.load(model)
    latents = generator.sample_latents(heads, seed)
    psi = 0.7
    save_image(
        folder / "heads.png",
        view_sheet(generator, latents, orbit_cameras(generator, _YAWS), resolution, psi=psi),
    )
    bundled = pretrained.load("heads")
    halves = [
        view_sheet(
            g, g.sample_latents(heads, seed), orbit_cameras(g, _FEW_YAWS), resolution, psi=psi
        )
        for g in (generator, bundled)
    ]
    gap = np.full_like(halves[0][:, :_GAP], 255)
    save_image(folder / "beside.png", np.concatenate([halves[0], gap, halves[1]], axis=1))
    depths = view_sheet(
        generator, latents, orbit_cameras(generator, _YAWS), resolution, psi=psi, show="depth"
    )
    save_image(folder / "depth.png", depths)
    poses = generator.config.poses
    swing = trajectories.orbit(
        _FRAMES, math.radians(max(_YAWS)), radius=poses.radius, fov=poses.fov
    )
    side_by_side = [latents[head] for head in range(heads)]
    turning = video_frames(
        generator, side_by_side, swing, min(resolution, _VIDEO_RESOLUTION), psi=psi
    )
    save_frames(
        folder / "orbit.mp4", iter(tqdm(turning, "orbit video", total=_FRAMES, unit="frame"))
    )
    print(f"{heads} invented heads, INR image above NeRF image above depth: {folder / 'heads.png'}")
    print(f"beside those of the model that comes with the package (right): {folder / 'beside.png'}")
    print(f"their depth alone: {folder / 'depth.png'}")
    print(f"turning: {folder / 'orbit.mp4'}")
    print(f"the model: {model}   (try: cips3d render {model} more.png --seed 1)")
    print("Is the geometry real?")
    for line in geometry_report(generator).lines():
        print(f"  {line}")
