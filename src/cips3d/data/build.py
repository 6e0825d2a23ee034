"""Pictures or video frames to a zip of square pictures in StyleGAN's layout, written whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import av.error
from PIL import Image

from cips3d.data.images import FILTERS, LABEL_FILE, central_square, read_labels
from cips3d.data.sources import open_source, opened_picture, picture_names, upright_rgb
from cips3d.errors import UserError, first_line, printable
from cips3d.files import atomic_path, png
from cips3d.heads.archive import member_name

#: File names that are taken for videos, in any case.
VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")

#: A picture: its name in the source, how errors call it, and how it is opened.
_Entry = tuple[str, str, Callable[[], AbstractContextManager[Image.Image]]]


@dataclass(frozen=True)
class Recipe:
    """How pictures are made square; it is recorded in the archive.

    Attributes:
        resolution: side of the pictures, pixels.
        crop: the central square, or none, for pictures that must be square already.
        filter: resampling; box and Lanczos differ by a whole point of FID at 256².
    """

    resolution: int
    crop: Literal["center", "none"] = "center"
    filter: Literal["lanczos", "box"] = "lanczos"
    allow_upscaling: bool = False

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise UserError(f"--resolution: {self.resolution} has no pixels; give at least 1")

    def apply(self, image: Image.Image, place: str) -> Image.Image:
        """The square picture.

        Raises:
            UserError: if the picture is too small, or not square and not to be cropped.
        """
        size = f"{image.width}x{image.height}"
        if self.crop == "none" and image.width != image.height:
            raise UserError(f"{place}: is {size}, not square; crop it, or leave out --crop none")
        if min(image.size) < self.resolution and not self.allow_upscaling:
            raise UserError(
                f"{place}: is {size}, smaller than the resolution {self.resolution}; "
                "choose a lower resolution, remove the picture or allow upscaling"
            )
        return central_square(image, self.resolution, FILTERS[self.filter])


def build_zip(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe,
    every: int = 1,
    most: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[int, list[str]]:
    """Writes the pictures of a folder or zip, or the frames of a video, into a new zip.

    Pictures are `00000/img00000000.png` and so on, a thousand to a folder, stored without dates, so that equal sources give
    equal files. `dataset.json` holds the labels of the source's own, of any kind, under the new names, and the recipe.

    Args:
        every: takes every so many-th picture or frame.
        most: ends after so many pictures.
        skip_bad: leaves out pictures that cannot be used, instead of raising.
        progress: called with the number of pictures that were looked at.

    Returns:
        The number of pictures written, and what was wrong with each that was left out.

    Raises:
        UserError: if the source or a picture cannot be used, or the zip cannot be written.
    """
    path = Path(source)
    if Path(out).suffix.lower() != ".zip":
        raise UserError(f"{out}: give a path that ends in .zip")
    if os.path.lexists(out):
        raise UserError(f"cannot write {out}: it exists; delete it or give another path")
    entries, labels = _entries(path)
    written: list[tuple[str, Any]] = []
    left_out: list[str] = []
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, (name, place, opened) in enumerate(
            _up_to_damage(entries, left_out) if skip_bad else entries
        ):
            if number % every:
                continue
            if most is not None and len(written) >= most:
                break
            progress(number + 1)
            try:
                with opened() as image:
                    square = recipe.apply(upright_rgb(image), place)
                if labels is not None and name not in labels:
                    raise UserError(
                        f"{place}: has no label in {LABEL_FILE}; add one, or remove the picture or the labels"
                    )
            except UserError as error:
                if not skip_bad:
                    raise
                left_out.append(str(error))
                continue
            target = member_name(len(written))
            archive.writestr(zipfile.ZipInfo(target), png(square))
            written.append((target, None if labels is None else labels[name]))
        if not written:
            raise UserError(
                f"{printable(path)}: none of its pictures can be used{': ' + left_out[0] if left_out else ''}"
            )
        record = {"source": path.name, "every": every, "pictures": len(written)} | vars(recipe)
        content = {"labels": None if labels is None else written, "cips3d": record}
        archive.writestr(zipfile.ZipInfo(LABEL_FILE), json.dumps(content))
    return len(written), left_out


def _up_to_damage(entries: Iterator[_Entry], left_out: list[str]) -> Iterator[_Entry]:
    """The entries up to where a damaged video cannot be read on."""
    try:
        yield from entries
    except UserError as error:
        left_out.append(str(error))


def _entries(path: Path) -> tuple[Iterator[_Entry], dict[str, Any] | None]:
    """The pictures of a source in order, and its labels by name."""
    if path.is_file() and path.suffix.lower() in VIDEO_EXTENSIONS:
        return _frames(path), None
    source = open_source(path)

    def pictures() -> Iterator[_Entry]:
        for name in names:
            yield (
                name,
                printable(source.place(name)),
                lambda name=name: opened_picture(source, name),
            )

    names = picture_names(source)
    return pictures(), read_labels(source)


def _frames(path: Path) -> Iterator[_Entry]:
    """The frames of a video, decoded one at a time."""
    number = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(
                    f"{printable(path)}: has no pictures in it, only sound; give a video"
                )
            for frame in container.decode(video=0):
                place = f"frame {number} of {printable(path)}"
                limit = Image.MAX_IMAGE_PIXELS
                if limit is not None and frame.width * frame.height > limit:
                    raise UserError(
                        f"{place}: has more than the {limit} pixels that are safe to decode; scale the video down"
                    )
                yield (
                    f"{number}",
                    place,
                    lambda frame=frame, place=place: nullcontext(_upright(frame, place)),
                )
                number += 1
    except (av.error.FFmpegError, OSError) as error:
        where = "cannot be read" if number == 0 else f"is damaged after frame {number - 1}"
        raise UserError(
            f"{printable(path)}: {where} ({first_line(error)}); convert it, or give its pictures"
        ) from error
    if number == 0:
        raise UserError(
            f"{printable(path)}: holds no frame that can be decoded; convert it, or give its pictures"
        )


def _upright(frame: av.VideoFrame, place: str) -> Image.Image:
    """A frame's picture, turned as the video says that it is to be shown (as phones do, held upright)."""
    try:
        return frame.to_image().rotate(frame.rotation, expand=True)
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(
            f"{place}: cannot be converted to RGB ({first_line(error)}); convert the video"
        ) from error
