"""Sheets: labelled grids of images. Every sheet of the package is a `labelled_grid`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.export.media import to_uint8
from cips3d.export.strips import (
    KINDS,
    Kind,
    depth_range,
    image_format,
    image_strips,
    ready,
)
from cips3d.models.ops.precision import Precision
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles

#: Default side of a cell, pixels.
DEFAULT_SIDE = 256
Sheet = UInt8[np.ndarray, "sheet_height sheet_width 3"]
#: Adjacent cells: the row and column of the first, and all of them in strips of pixel rows from the
#: top down, (rows, columns, strip height, width, 3) each.
Cells = tuple[int, int, Iterable[np.ndarray]]
#: One label per column, above the first row; or such labels by the row that they are above.
Headings = Sequence[str] | Mapping[int, Sequence[str]]

Font = ImageFont.FreeTypeFont
#: Pillow's own font of a size; it has ASCII, ° and · only.
_sized: Callable[[int], Font] = cache(ImageFont.load_default)  # pyright: ignore
_PAPER, _INK = 255, (45, 45, 45)
#: Font sizes for small and large cells, and the smallest, for labels that would not fit.
_SMALL, _LARGE, _SMALLEST = 11, 28, 9
#: Pixels between the lines of a label.
_SPACING = 2
_KIND_LABELS = {"image": "image", "nerf": "NeRF", "depth": "depth"}
#: Views of a subject that are rendered together; each needs memory for its modulated weights.
_TOGETHER = 16


def labelled_grid(
    rows: int,
    columns: int,
    size: tuple[int, int],
    cells: Iterable[Cells],
    row_labels: Sequence[str] = (),
    headings: Headings = (),
    progress: Callable[[float], None] | None = None,
) -> Sheet:
    """A grid of equal cells on white, filled strip by strip, so that only the sheet needs memory.

    Args:
        size: height and width of a cell in pixels.
        cells: may leave cells out; these stay white.
        row_labels: left of the rows. Labels may have several lines.
        headings: above the columns, or above single rows.
        progress: called with the share of the grid that is done, in (0, 1], after each strip.
    """
    if rows < 1 or columns < 1:
        raise UserError(f"grid: {rows} rows and {columns} columns; give at least 1 of each")
    sheet, tops, lefts = _empty_grid(rows, columns, size, row_labels, headings)
    done, total = 0, 3 * rows * columns * size[0] * size[1]
    for row, column, strips in cells:
        offset = 0
        for strip in strips:
            for i, j in np.ndindex(strip.shape[:2]):
                y, x = tops[row + i] + offset, lefts[column + j]
                sheet[y : y + strip.shape[2], x : x + size[1]] = strip[i, j]
            offset += strip.shape[2]
            done += strip.size
            if progress is not None:
                progress(done / total)
    return sheet


def _empty_grid(
    rows: int, columns: int, size: tuple[int, int], row_labels: Sequence[str], headings: Headings
) -> tuple[Sheet, list[int], list[int]]:
    """A sheet with labels only, and the first pixel row of each row and column of each column."""
    height, width = size
    above = dict(headings) if isinstance(headings, Mapping) else {0: headings}
    above = {row: labels for row, labels in above.items() if any(labels)}
    gap = max(2, min(size) // 64)
    margin = 3 * gap if above or any(row_labels) else 0
    font, fonts = _font(size), {row: _font(size, above[row], width) for row in above}
    bands = {row: _height(fonts[row], labels) for row, labels in above.items()}
    heights = [height + (bands[row] + 3 * gap if row in above else gap) for row in range(rows)]
    tops = [margin + sum(heights[: row + 1]) - height - gap for row in range(rows)]
    left = margin + (_width(font, row_labels) + margin if any(row_labels) else 0)
    lefts = [left + column * (width + gap) for column in range(columns)]
    shape = (tops[-1] + height + margin, lefts[-1] + width + margin, 3)
    sheet = np.full(shape, _PAPER, dtype=np.uint8)
    centres = [x + width / 2 for x in lefts]
    for row, labels in above.items():
        bottom = tops[row] - gap
        _write(sheet[bottom - bands[row] : bottom], labels, centres, fonts[row], "top")
    if any(row_labels):
        middles = [top + height / 2 for top in tops]
        _write(sheet[:, : left - margin], row_labels, middles, font, "left")
    return sheet, tops, lefts


def image_grid(
    images: Float[Tensor, "count 3 height width"] | Sequence[UInt8[np.ndarray, "height width 3"]],
    columns: int,
    row_labels: Sequence[str] = (),
    headings: Headings = (),
) -> Sheet:
    """Images row by row in a `labelled_grid`: tensors in [-1, 1], or arrays of 8 bits."""
    if columns < 1 or len(images) == 0:
        raise UserError(f"grid: {len(images)} images in {columns} columns; give at least 1 of each")
    arrays = to_uint8(images) if isinstance(images, Tensor) else images
    cells = ((*divmod(i, columns), [array[None, None]]) for i, array in enumerate(arrays))
    rows = -(-len(arrays) // columns)
    return labelled_grid(rows, columns, arrays[0].shape[:2], cells, row_labels, headings)


@torch.no_grad()
def view_sheet(
    generator: ImageGenerator,
    codes: Latents | Styles,
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: Psi = DEFAULT_PSI,
    show: Kind | Sequence[Kind] = KINDS,
    supersample: int = 1,
    adaptive: bool = False,
    precision: Precision = "auto",
    labels: Sequence[str] | bool = True,
    progress: Callable[[float], None] | None = None,
) -> Sheet:
    """A row for each kind of image of each subject, a column for each camera.

    The depth's colours span one range per subject.

    Args:
        resolution: side of a cell, or (height, width), in pixels; by default the training
            resolution.
        psi: truncation of latents; styles are used as they are.
        show: the kinds of images, in order.
        supersample: n, for n² rays per pixel.
        adaptive: whether smooth parts are interpolated (see `cips3d.models.adaptive`).
        precision: of the implicit network (see `cips3d.models.ops.precision`).
        labels: names of the subjects, such as "seed 3". True numbers them if there are several;
            False leaves out all labels of the sheet. A single image has none.
        progress: called with the share that is done, in (0, 1].
    """
    form = image_format(generator, resolution, show, supersample, adaptive, precision)
    styles = codes if isinstance(codes, Styles) else generator.map(codes, psi)

    def cells() -> Iterable[Cells]:
        for i in range(len(styles)):
            depths = depth_range(generator, styles[i], cameras) if "depth" in form.show else None
            subject = ready(generator, styles[i], form, len(cameras))
            for first in range(0, len(cameras), _TOGETHER):
                views = cameras[first : first + _TOGETHER]
                strips = image_strips(generator, subject, views, form, depths)
                yield i * len(form.show), first, strips

    rows, size = len(styles) * len(form.show), (form.height, form.width)
    row_labels, headings = [], []
    if labels is not False and rows * len(cameras) > 1:
        row_labels = _kinds_of(subject_names(len(styles), labels), form.show)
        headings = camera_labels(generator, cameras)
    return labelled_grid(rows, len(cameras), size, cells(), row_labels, headings, progress)


@torch.no_grad()
def subject_grid(
    generator: ImageGenerator,
    codes: Latents | Styles,
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: Psi = DEFAULT_PSI,
    supersample: int = 1,
    adaptive: bool = False,
    precision: Precision = "auto",
    labels: Sequence[str] | bool = True,
    progress: Callable[[float], None] | None = None,
) -> Sheet:
    """The INR image of each subject from its own camera, in about as many rows as columns.

    Arguments as in `view_sheet`, with one camera for each subject.
    """
    form = image_format(generator, resolution, "image", supersample, adaptive, precision)
    styles = codes if isinstance(codes, Styles) else generator.map(codes, psi)
    count = len(styles)
    columns = max(1, round(count**0.5))
    rows = -(-count // columns)
    cells = (
        (*divmod(i, columns), image_strips(generator, styles[i], cameras[i], form))
        for i in range(count)
    )
    names = subject_names(count, labels) if count > 1 else []
    headings = {row: names[row * columns : (row + 1) * columns] for row in range(rows)}
    # the last row may not be full
    report = progress and (lambda share: progress(share * rows * columns / count))
    return labelled_grid(rows, columns, (form.height, form.width), cells, (), headings, report)


def orbit_cameras(generator: ImageGenerator, yaws: Sequence[float], pitch: float = 0.0) -> Camera:
    """Cameras of the generator's prior at angles in degrees from its mean."""
    poses = generator.config.poses
    yaw = torch.deg2rad(torch.tensor(list(yaws))) + poses.yaw_mean
    return poses.at(yaw, math.radians(pitch) + poses.pitch_mean)


# ---------------------------------------------------------------- labels
def subject_names(count: int, labels: Sequence[str] | bool) -> list[str]:
    """The names as given; True numbers the subjects if there are several; False gives none."""
    if not isinstance(labels, bool):
        return list(labels)
    return [f"subject {i}" for i in range(count)] if labels and count > 1 else []


def _kinds_of(names: Sequence[str], kinds: Sequence[Kind]) -> list[str]:
    """Row labels: the subject's name above the kind of its first row, then the other kinds."""
    if len(kinds) == 1:
        return list(names)
    first, *others = (_KIND_LABELS[kind] for kind in kinds)
    return [label for name in names or [""] for label in (f"{name}\n{first}".strip(), *others)]


def degrees(angle: float) -> str:
    """An angle as a label, in degrees with at most one decimal."""
    return f"{round(angle, 1) + 0.0:g}°"


def camera_labels(generator: ImageGenerator, cameras: Camera) -> list[str]:
    """Which of yaw, pitch (from the mean of the prior) and field of view vary; the yaw if none."""
    poses = generator.config.poses
    yaw, pitch = cameras.yaw_pitch()
    angles = {
        "yaw": torch.rad2deg(yaw - poses.yaw_mean),
        "pitch": torch.rad2deg(pitch - poses.pitch_mean),
        "fov": cameras.fov,
    }
    varying = [name for name, values in angles.items() if values.max() - values.min() > 0.05]
    if varying in ([], ["yaw"]):
        return [degrees(angle) for angle in angles["yaw"].tolist()]
    labels = {name: [degrees(angle) for angle in angles[name].tolist()] for name in varying}
    if "fov" in labels:  # far cameras have narrow ones
        labels["fov"] = [f"{angle:.2g}°" for angle in cameras.fov.tolist()]
    lines = [[f"{name} {label}" for label in labels[name]] for name in varying]
    return ["\n".join(label) for label in zip(*lines, strict=True)]


# ---------------------------------------------------------------- text
def _font(cell: tuple[int, int], labels: Sequence[str] = ("",), width: float = math.inf) -> Font:
    """The font for cells of this height and width, smaller where a label exceeds `width`."""
    size = round(min(max(_SMALL, 6 + min(cell) / 20), _LARGE))
    while size > _SMALLEST and _width(_sized(size), labels) > width:
        size -= 1
    return _sized(size)


def _width(font: Font, labels: Sequence[str]) -> int:
    """Pixels that the longest line needs."""
    lines = "\n".join(labels).split("\n")
    return math.ceil(max(map(font.getlength, lines)))


def _height(font: Font, labels: Sequence[str]) -> int:
    """Pixels that the label with the most lines needs."""
    lines = 1 + max(label.count("\n") for label in labels)
    return lines * (sum(font.getmetrics()) + _SPACING)


def _write(
    area: Sheet, labels: Sequence[str], centres: Sequence[float], font: Font, side: str
) -> None:
    """Writes labels above columns or left of rows: all, or every Nth where they would overlap."""
    needed = _width(font, labels) + 2 if side == "top" else _height(font, labels)
    apart = centres[1] - centres[0] if len(centres) > 1 else math.inf
    image = Image.fromarray(np.ascontiguousarray(area))
    draw = ImageDraw.Draw(image)
    every = max(1, math.ceil(needed / apart))
    height, width = area.shape[:2]
    for label, centre in zip(labels[::every], centres[::every], strict=False):
        if side == "top":  # and within the sheet, where a label is wider than its column
            x = max(min(centre, width - needed / 2), needed / 2)
            draw.multiline_text((x, height / 2), label, _INK, font, "mm", _SPACING, "center")
        else:
            draw.multiline_text((width, centre), label, _INK, font, "rm", _SPACING, "right")
    area[:] = np.asarray(image)
