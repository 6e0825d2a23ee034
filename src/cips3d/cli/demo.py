"""`cips3d demo`: trains on the embedded heads for a few minutes and shows the result."""

from __future__ import annotations

from pathlib import Path

from cips3d.cli.options import Count, Derived, Limited, Seed, Side
from cips3d.cli.output import finished, tracked

_YAWS = (-45.0, -30.0, -15.0, 0.0, 15.0, 30.0, 45.0)
#: Yaws of the comparison with the bundled model, and pixels between the two halves.
_FEW_YAWS, _GAP = (-30.0, 0.0, 30.0), 12
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
    import time
    from dataclasses import replace

    from cips3d.cli.running import train_here
    from cips3d.training.presets import for_a_few_minutes, preset
    from cips3d.training.recipe import with_minutes

    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    config = for_a_few_minutes(preset("heads-32"))
    config = with_minutes(replace(config, seed=seed), minutes)
    print(f"Training a 3D-aware GAN on synthetic heads for {minutes:g} minutes, from scratch.")
    model = train_here(config, folder)
    if model is not None:
        _show(model, folder, heads, resolution, seed)


def _show(model: Path, folder: Path, heads: int, resolution: int, seed: int) -> None:
    import math

    import numpy as np

    from cips3d import pretrained, trajectories
    from cips3d.cli.geometry import geometry_lines
    from cips3d.export.media import save_frames, save_image
    from cips3d.export.sheets import orbit_cameras, view_sheet
    from cips3d.export.video import video_frames
    from cips3d.models.types import DEFAULT_PSI

    generator, bundled = pretrained.load(model), pretrained.load("heads")
    latents, psi = generator.sample_latents(heads, seed), DEFAULT_PSI
    cameras = orbit_cameras(generator, _YAWS)
    save_image(folder / "heads.png", view_sheet(generator, latents, cameras, resolution, psi=psi))
    depths = view_sheet(generator, latents, cameras, resolution, psi=psi, show="depth")
    save_image(folder / "depth.png", depths)
    halves = [
        view_sheet(
            shown, shown.sample_latents(heads, seed), orbit_cameras(shown, _FEW_YAWS), resolution,
            psi=psi,
        )
        for shown in (generator, bundled)
    ]  # fmt: skip
    gap = np.full_like(halves[0][:, :_GAP], 255)
    comparison = np.concatenate([halves[0], gap, halves[1]], axis=1)
    save_image(folder / "comparison.png", comparison)
    poses, turn = generator.config.poses, math.radians(max(_YAWS))
    orbit = trajectories.orbit(_FRAMES, turn, radius=poses.radius, fov=poses.fov)
    side = min(resolution, _VIDEO_SIDE)
    subjects = [latents[i] for i in range(heads)]
    frames = video_frames(generator, subjects, orbit, side, psi=psi)
    save_frames(folder / "orbit.mp4", tracked(frames, "rendering", _FRAMES))
    print("Is the geometry real?")
    for line in geometry_lines(generator):
        print(f"  {line}")
    wrote = (
        f"{model}\n  heads.png: {heads} heads; rows are image, NeRF image and depth"
        "\n  depth.png: the depth alone\n  orbit.mp4: the heads turning"
        "\n  comparison.png: a few views next to those of the bundled model (right)"
    )
    finished(wrote, f"cips3d render {model} more.png --seed 1")
