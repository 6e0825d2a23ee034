"""`cips3d sample`: pictures of invented subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from cips3d import pretrained
from cips3d.cli.options import (
    Derived,
    Psi,
    Resolution,
    at_least,
    check_finite,
    check_seed,
    share_bar,
    to_device,
)
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, subject_grid
from cips3d.export.strips import PictureFormat, pictures
from cips3d.files import check_writable


def sample(
    model: str,
    out: Path,
    /,
    count: int = 16,
    seed: int = 0,
    psi: Psi = 0.7,
    resolution: Resolution = None,
    supersample: int = 1,
    yaw: float | Literal["random"] = "random",
    pitch: Derived[float] = None,
    separate: bool = False,
    device: str = "auto",
) -> None:
    """Draw new subjects with a trained model and write them as one grid, or as single pictures.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        out: the PNG to write, or with --separate the folder for 0000.png, 0001.png, …
        count: number of subjects.
        seed: of the latents and cameras.
        psi: truncation: 1 is the full variety, 0 the mean subject. Two numbers: of the shape, of the appearance.
        resolution: size of a picture in pixels, any. Default: the model's training resolution.
        supersample: rays along each side of a pixel: 2 gives smoother edges in four times the time.
        yaw: degrees, positive from the subject's left (+x); or "random", from the camera prior (pitch too).
        pitch: degrees, positive from above; with --yaw. Default: 0.
        separate: write one file per subject.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    at_least(1, count=count, supersample=supersample, resolution=resolution)
    check_finite(psi=psi, pitch=pitch, yaw=0.0 if yaw == "random" else yaw)
    check_seed(seed)
    if yaw == "random" and pitch is not None:
        raise UserError("--pitch: is of the camera that --yaw gives, and yaw is random; give both")
    if not separate and out.suffix.lower() != ".png":
        raise UserError(
            f"{out}: a grid is written as a .png; give a name that ends so, or --separate and a folder"
        )
    generator = to_device(pretrained.load(model), device)
    latents = generator.sample_latents(count, seed)
    poses = generator.config.poses
    if yaw == "random":
        cameras = poses.sample(count, torch.Generator().manual_seed(seed))
    else:
        cameras = orbit_cameras(generator, [yaw] * count, pitch or 0.0)
    if not separate:
        check_writable(out)
        with share_bar("pictures") as bar:
            grid = subject_grid(
                generator,
                latents,
                cameras,
                resolution,
                psi=psi,
                supersample=supersample,
                progress=bar,
            )
        save_image(out, grid)
        print(out)
        return
    form = PictureFormat.of(generator, resolution, "image", supersample)
    for i in tqdm(range(count), "pictures", unit="picture", delay=1):
        save_image(
            out / f"{i:04d}.png",
            pictures(generator, generator.map(latents[i], psi), cameras[i], form)[0, 0],
        )
    print(f"{count} pictures in {out}")
