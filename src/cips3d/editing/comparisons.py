"""Sheets of blended models and mixed styles, as in the paper's Fig. 13, and of inversions.

Cells have `resolution` pixels on a side; yaws are degrees from the mean of the camera prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Camera
from cips3d.editing.blending import interpolate, mix_styles
from cips3d.editing.inversion import SPACES, Inversion
from cips3d.export.media import depth_map
from cips3d.export.sheets import (
    DEFAULT_SIDE,
    Cells,
    Sheet,
    camera_labels,
    degrees,
    image_grid,
    labelled_grid,
    orbit_cameras,
    subject_names,
)
from cips3d.export.strips import ImageFormat, image_strips, ready
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles

Codes = Latents | Styles
#: Degrees of yaw in an inversion's sheet.
INVERSION_YAWS = (-40, -20, 0, 20, 40)
#: Models are blended and styles mixed as the cells are filled, without gradients.
_grid = torch.inference_mode()(labelled_grid)


def amounts_sheet(
    base: ImageGenerator,
    other: ImageGenerator,
    codes: Codes,
    steps: int,
    resolution: int,
    *,
    psi: Psi = DEFAULT_PSI,
    yaw: float = 0.0,
    labels: bool = True,
) -> Sheet:
    """A row per subject, a column for each of `steps` even amounts from 0 to 1 (Fig. 13c)."""
    camera = orbit_cameras(base, [yaw])
    amounts = [j / max(1, steps - 1) for j in range(steps)]

    def cells() -> Iterator[Cells]:  # column by column: one blended model at a time
        for j, amount in enumerate(amounts):
            model = interpolate(base, other, amount)
            for i in range(len(codes)):
                yield _cell(i, j, model, _styles(model, codes[i], psi), camera, resolution)

    headings = [f"amount {amount:.2g}" for amount in amounts] if labels else []
    names = subject_names(len(codes), labels)
    return _grid(len(codes), steps, (resolution, resolution), cells(), names, headings)


def views_sheet(
    generators: Sequence[ImageGenerator],
    codes: Codes,
    yaw: float,
    views: int,
    resolution: int,
    *,
    psi: Psi = DEFAULT_PSI,
    labels: Sequence[str] = (),
) -> Sheet:
    """For each subject a row per generator, seen from -yaw to yaw, or once from yaw (Fig. 13b).

    Args:
        labels: names of the generators; without them the sheet has no labels at all.
    """
    yaws = [yaw * (2 * i / (views - 1) - 1) if views > 1 else yaw for i in range(views)]
    rows = [(g, _styles(g, codes[i], psi)) for i in range(len(codes)) for g in generators]
    cells = (
        _cell(i, j, generator, styles, orbit_cameras(generator, [angle]), resolution)
        for i, (generator, styles) in enumerate(rows)
        for j, angle in enumerate(yaws)
    )
    headings = []
    if labels:
        headings = camera_labels(generators[0], orbit_cameras(generators[0], yaws))
    names = [*labels] * len(codes)
    return _grid(len(rows), views, (resolution, resolution), cells, names, headings)


def mixing_sheet(
    generator: ImageGenerator,
    content: Codes,
    style: Codes,
    from_block: int,
    resolution: int,
    *,
    psi: Psi = DEFAULT_PSI,
    yaw: float = 0.0,
    labels: bool = True,
) -> Sheet:
    """Subjects of `content` on the left, of `style` at the top, and in each cell the two mixed.

    Blocks from `from_block` on take the style of the subject at the top.
    """
    camera = orbit_cameras(generator, [yaw])
    left = [_styles(generator, codes, psi) for codes in content]
    top = [_styles(generator, codes, psi) for codes in style]
    shown = {(0, j): styles for j, styles in enumerate(top, 1)}
    shown |= {(i, 0): styles for i, styles in enumerate(left, 1)}
    shown |= {
        (i, j): mix_styles(generator, own, other, from_block)
        for i, own in enumerate(left, 1)
        for j, other in enumerate(top, 1)
    }
    cells = (_cell(i, j, generator, styles, camera, resolution) for (i, j), styles in shown.items())
    names, headings = [], []
    if labels:
        names = [f"style from\nblock {from_block}", *(f"content {i}" for i in range(len(left)))]
        headings = ["", *(f"style {j}" for j in range(len(top)))]
    size = (resolution, resolution)
    return _grid(len(left) + 1, len(top) + 1, size, cells, names, headings)


@torch.inference_mode()
def inversion_sheet(image: Float[Tensor, "1 3 side side"], found: Inversion) -> Sheet:
    """The image and its reconstruction after each step; then the subject from `INVERSION_YAWS`.

    Cells have `DEFAULT_SIDE` pixels or more, whatever the side on which the image was fitted.
    """
    image, columns = _enlarged(image), len(INVERSION_YAWS)
    steps = [*found.earlier, found]
    first = [
        step.generator.render(step.styles, step.camera, image.shape[-1]).image for step in steps
    ]
    blank = [torch.ones_like(image)] * (columns - 1 - len(steps))
    cells = torch.cat([image, *first, *blank, *_turned(found, INVERSION_YAWS, image)])
    headings = {0: ["input", *SPACES[: len(steps)]], 1: [degrees(yaw) for yaw in INVERSION_YAWS]}
    return image_grid(cells, columns, ["", "views", "depth"], headings)


@torch.inference_mode()
def found_views_sheet(
    image: Float[Tensor, "1 3 side side"], found: Inversion, yaws: Sequence[float]
) -> Sheet:
    """The image beside views of the subject that was found; depth below. Cells as above."""
    image = _enlarged(image)
    views, depth = _turned(found, yaws, image)
    cells = torch.cat([image, views, torch.ones_like(image), depth])
    headings = ["input", *(degrees(yaw) for yaw in yaws)]
    return image_grid(cells, len(headings), ["image", "depth"], headings)


def _enlarged(image: Float[Tensor, "1 3 side side"]) -> Float[Tensor, "1 3 shown shown"]:
    side = max(image.shape[-1], DEFAULT_SIDE)
    return F.interpolate(image, size=side, mode="bicubic", antialias=True).clamp(-1, 1)


def _turned(found: Inversion, yaws: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Images of a found subject and its depth from these yaws, at another image's size."""
    generator, side = found.generator, like.shape[-1]
    subject = ready(generator, found.styles, ImageFormat(side, side), len(yaws))
    out = generator.render(subject, orbit_cameras(generator, yaws), side)
    return out.image, depth_map(out.depth, out.subject_opacity).to(out.image)


def _styles(generator: ImageGenerator, codes: Codes, psi: Psi) -> Styles:
    return codes if isinstance(codes, Styles) else generator.map(codes, psi)


def _cell(
    row: int, column: int, generator: ImageGenerator, styles: Styles, camera: Camera, side: int
) -> Cells:
    return row, column, image_strips(generator, styles, camera, ImageFormat(side, side))
