"""`cips3d sample`: images of random subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from cips3d.cli.options import (
    IMAGES,
    Count,
    Degrees,
    Derived,
    Device,
    ImageSize,
    Model,
    RandomSubjects,
)
from cips3d.cli.output import finished, progress, tracked
from cips3d.errors import UserError
from cips3d.files import check_writable, with_suffix_of


def sample(
    model: Model,
    out: Path,
    /,
    subjects: OmitArgPrefixes[RandomSubjects],
    size: OmitArgPrefixes[ImageSize],
    count: Count = 16,
    yaw: Degrees | Literal["random"] = "random",
    pitch: Derived[Degrees] = None,
    separate: bool = False,
    device: Device = "auto",
) -> None:
    """Generate images of random subjects.

    Writes one grid, or one file per subject with --separate.

    Args:
        out: Image to write (.png or .jpg), or with --separate a folder for 0000.png, 0001.png, …
        count: Number of subjects.
        yaw: Degrees, positive towards the subject's left (+x); random draws yaw and pitch from
            the model's camera prior.
        pitch: Degrees, positive from above; needs --yaw. Default: 0.
        separate: Write one file per subject.

    Examples:
        cips3d sample heads grid.png
        cips3d sample heads faces --count 100 --separate --seed 0 --psi 1
    """
    if yaw == "random" and pitch is not None:
        raise UserError("--pitch needs --yaw, which is random by default; give both")
    if not separate:
        with_suffix_of(out, *IMAGES)
        check_writable(out)

    import torch

    from cips3d.cli.loading import load_model, random_latents, resolution_of
    from cips3d.export.media import save_image
    from cips3d.export.sheets import orbit_cameras, subject_grid
    from cips3d.export.strips import image_format, whole_images

    generator = load_model(model, device)
    seeds, psi = subjects.seeds(model, count), subjects.truncation
    latents = random_latents(generator, subjects, model, count)
    resolution = resolution_of(generator, size.resolution)
    if yaw == "random":
        draws = torch.Generator().manual_seed(subjects.seed or 0)
        cameras = generator.config.poses.sample(count, draws)
    else:
        cameras = orbit_cameras(generator, [yaw] * count, pitch or 0.0)
    turn = f"cips3d render {model} turn.mp4 --seed {seeds[0]}"
    if not separate:
        labels = [f"seed {seed}" for seed in seeds] if count > 1 else False
        with progress("sampling") as report:
            grid = subject_grid(
                generator, latents, cameras, resolution, psi=psi, supersample=size.supersample,
                labels=labels, progress=report,
            )  # fmt: skip
        save_image(out, grid)
        finished(out, turn)
        return
    form = image_format(generator, resolution, "image", size.supersample)
    for i in tracked(range(count), "sampling", count):
        styles = generator.map(latents[i], psi)
        save_image(out / f"{i:04d}.png", whole_images(generator, styles, cameras[i], form)[0, 0])
    finished(f"{count} images in {out}", turn)
