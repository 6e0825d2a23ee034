"""`cips3d data`: makes, builds and checks datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from cips3d.cli.options import IMAGES, Derived, InputFile, Side, written_as
from cips3d.cli.output import finished, progress
from cips3d.configuration import Count, Seed
from cips3d.errors import UserError


def heads(
    out: Path,
    /,
    count: Count = 1000,
    resolution: Side = 64,
    seed: Seed = 0,
    style: Literal["natural", "cartoon"] = "natural",
) -> None:
    """Write the embedded heads as a dataset.

    Images, camera labels and attributes are in StyleGAN's layout.

    Args:
        out: New .zip file or folder.
        count: Number of images.
        resolution: Side of an image in pixels.
        seed: Other seeds give other heads.
        style: natural light, or the same heads as cartoon drawings.

    Examples:
        cips3d data heads heads.zip --count 5000 --resolution 128
        cips3d data heads cartoons --count 300 --style cartoon
    """
    from cips3d.heads import SyntheticHeads
    from cips3d.heads.archive import write_heads

    write_heads(out, SyntheticHeads(count, resolution, seed, style))
    finished(f"{count:,} images of {resolution}² in {out}", f"cips3d train runs/mine --data {out}")


def build(
    source: InputFile,
    out: Annotated[Path, written_as()],
    /,
    resolution: Annotated[tuple[Side, ...], arg(metavar="SIDE ...")],
    crop: Literal["center", "none"] = "center",
    filter: Literal["lanczos", "box"] = "lanczos",
    every: Count = 1,
    max_images: Derived[Count] = None,
    max_pixels: Derived[Count] = None,
    skip_bad: bool = False,
    allow_upscaling: bool = False,
) -> None:
    """Build a training zip from images or a video.

    The zip contains square images in StyleGAN's layout, the labels of the source's dataset.json,
    and a record of how it was made.

    Args:
        source: Folder or zip of images, or a video (.mp4, .mov, .mkv, .webm, .avi, .m4v, .gif).
        out: New .zip file; with several resolutions a new folder.
        resolution: Side of an image in pixels. Several give a zip for each in a folder, which
            train and eval take as --data: stages at a low resolution then load faster.
        crop: center takes the central square; none refuses images that are not square.
        filter: Resampling: lanczos is sharper, box averages areas.
        every: Take every Nth image or frame.
        max_images: Stop after this many images. Default: all.
        max_pixels: Largest number of pixels of an image or frame; decoding takes memory for all
            of them. Default: 89 million (Pillow's limit).
        skip_bad: Skip unusable images instead of stopping at the first.
        allow_upscaling: Accept images smaller than the resolution.

    Examples:
        cips3d data build photos photos.zip --resolution 256
        cips3d data build photos photos-by-size --resolution 32 64 128 256
        cips3d data build clip.mp4 frames.zip --resolution 128 --every 10
    """
    from cips3d.data.build import Recipe, build_zip
    from cips3d.data.sources import pixel_limit

    if not resolution:
        raise UserError("--resolution has no value; give a side in pixels, or several")
    *smaller, largest = sorted({*resolution})
    recipe = Recipe(largest, crop, filter, allow_upscaling)
    with pixel_limit(max_pixels), progress("building") as report:
        built = build_zip(
            source, out, recipe, smaller, every, max_images, skip_bad,
            progress=lambda done: report(None, f"{done:,} images"),
        )  # fmt: skip
    if built.passed_over:
        print(built.passed_over)
    if skipped := built.skipped:
        print(f"skipped: {len(skipped):,}", *skipped[:10], *["…"] * (len(skipped) > 10), sep="\n")
    sides = ", ".join(f"{side}²" for side in (*smaller, largest))
    wrote = f"{built.images:,} images of {sides} in {out}"
    finished(wrote, f"cips3d train runs/mine --data {out} --preset heads-64")


def check(
    path: InputFile,
    /,
    resolution: Derived[Side] = None,
    sheet: Derived[Annotated[Path, written_as(*IMAGES)]] = None,
    max_pixels: Derived[Count] = None,
) -> None:
    """Check every image of a dataset.

    Decodes every image, and reports whatever would stop or harm a training run. The exit status
    is 2 if an image is unreadable, too small, or lacks the label that others have.

    Args:
        path: Folder or zip of images.
        resolution: Training resolution; smaller images count as faults. Default: any size passes.
        sheet: Image file for a contact sheet of up to 64 images.
        max_pixels: Largest number of pixels of an image; larger ones count as faults. Default: 89
            million (Pillow's limit).

    Examples:
        cips3d data check photos
        cips3d data check photos.zip --resolution 256 --sheet sheet.png
    """
    from cips3d.data.check import SHEET_COLUMNS
    from cips3d.data.check import check as check_images
    from cips3d.data.sources import pixel_limit
    from cips3d.export.media import save_image
    from cips3d.export.sheets import image_grid

    with pixel_limit(max_pixels), progress("checking") as report:
        found = check_images(
            path, resolution,
            lambda done, total: report(done / max(1, total), f"{done:,} of {total:,} images"),
        )  # fmt: skip
    print("\n".join(found.lines()))
    if sheet is not None and found.thumbnails:
        columns = min(SHEET_COLUMNS, len(found.thumbnails))
        save_image(sheet, image_grid(found.thumbnails, columns))
        print(f"wrote {sheet}")
    if found.faults:
        raise UserError(
            f"{path}: {found.faults:,} images would stop a training run; remove or replace them"
        )
    print(f"try next: cips3d data build {path} images.zip --resolution {resolution or 256}")
