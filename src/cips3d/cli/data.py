"""`cips3d data`: makes, builds and checks datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tqdm import tqdm
from tyro.extras import SubcommandApp

from cips3d.cli.options import Derived, at_least, check_seed
from cips3d.data.build import Recipe, build_zip
from cips3d.data.check import check as check_pictures
from cips3d.errors import UserError
from cips3d.files import atomic_path, check_writable
from cips3d.heads import SyntheticHeads
from cips3d.heads.archive import write_heads

app = SubcommandApp()


@app.command
def heads(
    out: Path,
    /,
    count: int = 1000,
    resolution: int = 64,
    seed: int = 0,
    style: Literal["natural", "cartoon"] = "natural",
) -> None:
    """Write pictures of the embedded heads, with their camera labels and attributes, in StyleGAN's layout.

    Args:
        out: the .zip to write, or a folder; must not exist.
        count: number of pictures.
        resolution: side of a picture in pixels.
        seed: other seeds give other heads.
        style: "natural" light, or the same heads as "cartoon" drawings.
    """
    at_least(1, count=count, resolution=resolution)
    check_seed(seed)
    write_heads(out, SyntheticHeads(count, resolution, seed, style))
    print(f"{count} pictures of {resolution}² in {out}")


@app.command
def build(
    source: Path,
    out: Path,
    /,
    resolution: int,
    crop: Literal["center", "none"] = "center",
    filter: Literal["lanczos", "box"] = "lanczos",
    every: int = 1,
    max_images: Derived[int] = None,
    skip_bad: bool = False,
    allow_upscaling: bool = False,
) -> None:
    """Make a zip of square pictures, ready to train on, from a folder, a zip or a video.

    The zip has StyleGAN's layout; labels in the source's dataset.json are kept, and how it was made is recorded there.

    Args:
        source: a folder or zip of pictures, or a video (.mp4, .mov, .mkv, .webm, .avi, .m4v, .gif).
        out: the .zip to write; must not exist.
        resolution: side of the pictures in pixels.
        crop: "center" takes the central square; "none" refuses pictures that are not square.
        filter: resampling; "lanczos" is sharper, "box" averages areas.
        every: take every so many-th picture or frame.
        max_images: end after so many pictures. Default: all.
        skip_bad: leave out pictures that cannot be used instead of stopping at the first.
        allow_upscaling: take pictures smaller than the resolution too.
    """
    at_least(1, resolution=resolution, every=every, max_images=max_images)
    recipe = Recipe(resolution, crop, filter, allow_upscaling)
    with tqdm(unit=" pictures", leave=False) as bar:
        written, left_out = build_zip(
            source, out, recipe, every, max_images, skip_bad, lambda done: bar.update(done - bar.n)
        )
    print(f"{written:,} pictures of {resolution}² in {out}")
    if left_out:
        print(
            "\n".join(
                [f"left out: {len(left_out):,}", *left_out[:10]] + ["…"] * (len(left_out) > 10)
            )
        )


@app.command
def check(path: Path, /, resolution: Derived[int] = None, sheet: Derived[Path] = None) -> None:
    """Decode every picture of a dataset and report what would stop or spoil a training run.

    Exit status 2 if a picture cannot be read, is too small, or lacks the camera label that others have.

    Args:
        path: a folder or zip of pictures.
        resolution: of the training run; smaller pictures are faults. Default: none are.
        sheet: also write a contact sheet of up to 64 pictures to this .png.
    """
    at_least(1, resolution=resolution)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet: {sheet}; give a path that ends in .png")
    if sheet is not None:
        check_writable(sheet)
    with tqdm(unit=" pictures", leave=False) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        report = check_pictures(path, resolution, show)
    print("\n".join(report.lines()))
    if sheet is not None and report.sheet is not None:
        with atomic_path(sheet) as temporary:
            report.sheet.save(temporary)
        print(f"contact sheet: {sheet}")
    if report.faults:
        raise UserError(
            f"{path}: {report.faults:,} of its pictures would stop a training run; remove or replace them"
        )
