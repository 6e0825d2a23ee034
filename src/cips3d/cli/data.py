"""`cips3d data`: makes, builds and checks datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    out: Annotated[Path, written_as(".zip")],
    /,
    resolution: Side,
    crop: Literal["center", "none"] = "center",
    filter: Literal["lanczos", "box"] = "lanczos",
    every: Count = 1,
    max_images: Derived[Count] = None,
    skip_bad: bool = False,
    allow_upscaling: bool = False,
) -> None:
    """Build a training zip from images or a video.

    The zip contains square images in StyleGAN's layout, the labels of the source's dataset.json,
    and a record of how it was made.

    Args:
        source: Folder or zip of images, or a video (.mp4, .mov, .mkv, .webm, .avi, .m4v, .gif).
        out: New .zip file.
        resolution: Side of an image in pixels.
        crop: center takes the central square; none refuses images that are not square.
        filter: Resampling: lanczos is sharper, box averages areas.
        every: Take every Nth image or frame.
        max_images: Stop after this many images. Default: all.
        skip_bad: Skip unusable images instead of stopping at the first.
        allow_upscaling: Accept images smaller than the resolution.

    Examples:
        cips3d data build photos photos.zip --resolution 256
        cips3d data build clip.mp4 frames.zip --resolution 128 --every 10
    """
    from cips3d.data.build import Recipe, build_zip

    recipe = Recipe(resolution, crop, filter, allow_upscaling)
    with progress("building") as report:
        written, skipped = build_zip(
            source, out, recipe, every, max_images, skip_bad,
            progress=lambda done: report(None, f"{done:,} images"),
        )  # fmt: skip
    if skipped:
        print(f"skipped: {len(skipped):,}", *skipped[:10], *["…"] * (len(skipped) > 10), sep="\n")
    wrote = f"{written:,} images of {resolution}² in {out}"
    finished(wrote, f"cips3d train runs/mine --data {out} --preset heads-64")


def check(
    path: InputFile,
    /,
    resolution: Derived[Side] = None,
    sheet: Derived[Annotated[Path, written_as(*IMAGES)]] = None,
) -> None:
    """Check every image of a dataset.

    Decodes every image, and reports whatever would stop or harm a training run. The exit status
    is 2 if an image is unreadable, too small, or lacks the camera label that others have.

    Args:
        path: Folder or zip of images.
        resolution: Training resolution; smaller images count as faults. Default: any size passes.
        sheet: Image file for a contact sheet of up to 64 images.

    Examples:
        cips3d data check photos
        cips3d data check photos.zip --resolution 256 --sheet sheet.png
    """
    from cips3d.data.check import SHEET_COLUMNS
    from cips3d.data.check import check as check_images
    from cips3d.export.media import save_image
    from cips3d.export.sheets import image_grid

    with progress("checking") as report:
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
