"""Builds a zip of square images in StyleGAN's layout from images or video frames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import av
import av.error
from PIL import Image

from cips3d.configuration import Configuration, Count
from cips3d.data.images import Filter, central_square, check_size
from cips3d.data.layout import (
    LABEL_FILE,
    Labels,
    check_free,
    member_name,
    new_folder,
    new_zip,
    read_contents,
)
from cips3d.data.pixels import upright_rgb
from cips3d.data.sources import check_pixels, open_image, open_source
from cips3d.errors import UserError, first_line, printable
from cips3d.files import atomic_path, png

#: Extensions of videos, in any case.
VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
_REMEDY = "convert it, or give its images"


@dataclass(frozen=True)
class Recipe(Configuration):
    """How images are made square. The zip records it."""

    label: ClassVar[str] = "data build"

    resolution: Count
    crop: Literal["center", "none"] = "center"  # "none" refuses images that are not square
    filter: Filter = "lanczos"  # the two differ by a whole point of FID at 256²
    allow_upscaling: bool = False  # accept images smaller than the resolution

    def apply(self, image: Image.Image, place: str) -> Image.Image:
        """The square image; raises UserError if the settings refuse it."""
        if self.crop == "none" and image.width != image.height:
            fault = f"is {image.width}x{image.height}, not square"
            raise UserError(f"{place}: {fault}; crop it, or leave out --crop none")
        if not self.allow_upscaling:
            check_size(image.size, self.resolution, place)
        return central_square(image, self.resolution, self.filter)


class Built(NamedTuple):
    """What was written, and what was not."""

    images: int
    skipped: list[str]  # one line per skipped image that says why
    passed_over: str  # a line for the source's files that are no images; empty if all are


class _Entry(NamedTuple):
    """One image of a source."""

    name: str
    place: str  # its name in errors
    open: Callable[[], AbstractContextManager[Image.Image]]


def build_zip(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe,
    smaller: Sequence[int] = (),
    every: int = 1,
    most: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Built:
    """Writes the images of a folder or zip, or the frames of a video, into a new zip.

    Equal sources give equal files. `dataset.json` holds the recipe and the source's labels under
    the new names.

    Args:
        smaller: further resolutions, below the recipe's. Then `out` is a new folder with one zip
            per resolution, such as 64.zip. A small zip holds exactly what `ImageDataset` makes of
            the largest one, but need not decode it.
        every: takes every Nth image or frame.
        most: largest number of images to write.
        progress: called with the number of images read so far.

    Raises:
        UserError: if the source or, without `skip_bad`, an image cannot be used, or the zip cannot
            be written.
    """
    path, target = Path(source), Path(out)
    is_zip = target.suffix.lower() == ".zip"
    if smaller and is_zip:
        raise UserError(f"{out}: several resolutions go into a new folder; leave out .zip")
    if not smaller and not is_zip:
        raise UserError(f"{out}: give a path that ends in .zip")
    check_free(out)
    entries, labels, passed_over = _entries(path)
    written: list[tuple[str, Any]] = []
    skipped: list[str] = []
    with ExitStack() as stack:
        if smaller:
            folder = stack.enter_context(new_folder(target))
            sides = [*smaller, recipe.resolution]
            files = {side: folder / f"{side}.zip" for side in sides}
        else:
            files = {recipe.resolution: stack.enter_context(atomic_path(target))}
        zips = {side: stack.enter_context(new_zip(file)) for side, file in files.items()}
        usable = _up_to_damage(entries, skipped) if skip_bad else entries
        for number, entry in islice(enumerate(usable), None, None, every):
            if most is not None and len(written) >= most:
                break
            progress(number + 1)
            try:
                with entry.open() as image:
                    square = recipe.apply(upright_rgb(image), entry.place)
                label = None if labels is None else labels[entry.name]
            except UserError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
                continue
            name = member_name(len(written))
            for side, add in zips.items():
                add(name, png(central_square(square, side, recipe.filter)))
            written.append((name, label))
        if not written:
            reason = f": {skipped[0]}" if skipped else ""
            raise UserError(f"{printable(path)}: none of its images can be used{reason}")
        for side, add in zips.items():
            settings = vars(replace(recipe, resolution=side))
            record = {"source": path.name, "every": every, "images": len(written)} | settings
            content = {"labels": None if labels is None else written, "cips3d": record}
            add(LABEL_FILE, json.dumps(content).encode())
    return Built(len(written), skipped, passed_over)


def _up_to_damage(entries: Iterator[_Entry], skipped: list[str]) -> Iterator[_Entry]:
    """The entries before the damage of a video that cannot be read to its end."""
    try:
        yield from entries
    except UserError as error:
        skipped.append(str(error))


def _entries(path: Path) -> tuple[Iterator[_Entry], Labels | None, str]:
    """The images of a source in order, its labels, and the line for what is passed over."""
    if path.is_file() and path.suffix.lower() in VIDEO_EXTENSIONS:
        return _frames(path), None, ""
    source = open_source(path)
    contents = read_contents(source)
    entries = (
        _Entry(name, printable(source.place(name)), partial(open_image, source, name))
        for name in contents.names
    )
    return entries, contents.labels, contents.passed_over


def _frames(path: Path) -> Iterator[_Entry]:
    """The frames of a video, decoded one at a time."""
    video, number = printable(path), 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"{video}: contains only sound; give a video")
            aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
            for frame in container.decode(video=0):
                place = f"frame {number} of {video}"
                check_pixels(frame.width, frame.height, place)
                yield _Entry(str(number), place, partial(_upright, frame, aspect, place))
                number += 1
    except (av.error.FFmpegError, OSError) as error:
        fault = "cannot be read" if number == 0 else f"is damaged after frame {number - 1}"
        raise UserError(f"{video}: {fault} ({first_line(error)}); {_REMEDY}") from error
    if number == 0:
        raise UserError(f"{video}: contains no frame that can be decoded; {_REMEDY}")


@contextmanager
def _upright(frame: av.VideoFrame, aspect: float, place: str) -> Iterator[Image.Image]:
    """A frame as an image, rotated as the video's metadata says (phones record that way).

    `aspect` is a pixel's width in its heights: the image is enlarged to square pixels.
    """
    width = round(frame.width * max(aspect, 1))
    height = round(frame.height / min(aspect, 1))
    check_pixels(width, height, place)
    try:
        image = frame.to_image()
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.rotate(frame.rotation, expand=True)
    except (av.error.FFmpegError, ValueError) as error:
        fault = f"cannot be converted to RGB ({first_line(error)}); convert the video"
        raise UserError(f"{place}: {fault}") from error
    yield image
