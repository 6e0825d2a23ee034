"""Pictures that show blended models and mixed styles, as the paper's Fig. 13 does, and what an inversion came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.camera import Camera
from cips3d.editing.blending import interpolate, mix_styles
from cips3d.editing.inversion import Inversion
from cips3d.export.media import blank_grid, depth_picture, image_grid
from cips3d.export.sheets import orbit_cameras
from cips3d.export.strips import PictureFormat, fill, picture_strips
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, Styles

Codes = Latents | Styles
Psi = float | tuple[float, float]
#: What is seen in a sheet's row and column.
_Cell = tuple[tuple[int, int], ImageGenerator, Styles, Camera]
Sheet = UInt8[np.ndarray, "height width 3"]
#: Degrees of yaw that an inverted subject is shown from.
INVERSION_YAWS = (-40, -20, 0, 20, 40)


def amounts_sheet(
    base: ImageGenerator,
    other: ImageGenerator,
    codes: Codes,
    steps: int,
    resolution: int,
    *,
    psi: Psi = 1.0,
    yaw: float = 0.0,
) -> Sheet:
    """A row for each subject, seen from one yaw (degrees), a column for each of `steps` even amounts from 0 to 1 (Fig. 13c)."""
    camera = orbit_cameras(base, [yaw])

    def cells() -> Iterator[_Cell]:  # column by column: one blended model at a time
        for j in range(steps):
            model = interpolate(base, other, j / max(1, steps - 1))
            yield from (
                ((i, j), model, _styles(model, codes[i], psi), camera) for i in range(len(codes))
            )

    return _sheet(len(codes), steps, cells(), resolution)


def views_sheet(
    generators: Sequence[ImageGenerator],
    codes: Codes,
    yaw: float,
    views: int,
    resolution: int,
    *,
    psi: Psi = 1.0,
) -> Sheet:
    """For each subject a row for each generator, seen from −yaw to yaw (degrees; Fig. 13b), or, in a single view, from yaw."""
    yaws = [yaw * (2 * i / (views - 1) - 1) if views > 1 else yaw for i in range(views)]
    rows = [
        (generator, _styles(generator, codes[i], psi))
        for i in range(len(codes))
        for generator in generators
    ]
    cells = (
        ((i, j), generator, styles, orbit_cameras(generator, [at]))
        for i, (generator, styles) in enumerate(rows)
        for j, at in enumerate(yaws)
    )
    return _sheet(len(rows), len(yaws), cells, resolution)


def mixing_sheet(
    generator: ImageGenerator,
    content: Codes,
    style: Codes,
    from_block: int,
    resolution: int,
    *,
    psi: Psi = 1.0,
    yaw: float = 0.0,
) -> Sheet:
    """At the top the subjects of `style`, on the left those of `content`, in each cell the two mixed; yaw in degrees."""
    camera = orbit_cameras(generator, [yaw])
    left, top = (
        [_styles(generator, codes[i], psi) for i in range(len(codes))] for codes in (content, style)
    )
    shown = {(0, j + 1): there for j, there in enumerate(top)} | {
        (i + 1, 0): own for i, own in enumerate(left)
    }
    for i, own in enumerate(left):
        shown |= {
            (i + 1, j + 1): mix_styles(generator, own, there, from_block)
            for j, there in enumerate(top)
        }
    cells = ((place, generator, styles, camera) for place, styles in shown.items())
    return _sheet(len(left) + 1, len(top) + 1, cells, resolution)


def _styles(generator: ImageGenerator, codes: Codes, psi: Psi) -> Styles:
    return codes if isinstance(codes, Styles) else generator.map(codes, psi)


@torch.inference_mode()
def _sheet(rows: int, columns: int, cells: Iterable[_Cell], resolution: int) -> Sheet:
    """Pictures of any size, cell by cell: besides the sheet itself, memory is constant. Cells without a subject are white."""
    grid, places = blank_grid(rows, columns, resolution, resolution)
    places[:] = 255
    for place, generator, styles, camera in cells:
        fill(
            places[place][None, None],
            picture_strips(generator, styles, camera, PictureFormat(resolution, resolution)),
        )
    return grid


@torch.inference_mode()
def inversion_sheet(picture: torch.Tensor, found: Inversion) -> Sheet:
    """The picture and what each step made of it; then the subject from `INVERSION_YAWS`, and its depth.

    Args:
        picture: (1, 3, side, side) in [-1, 1].
    """
    side = picture.shape[-1]
    steps = [*found.earlier, found]
    first = [
        picture,
        *(step.generator.render(step.styles, step.camera, side).image for step in steps),
    ]
    first += [torch.ones_like(picture)] * (len(INVERSION_YAWS) - len(first))
    out = found.generator.render(found.styles, orbit_cameras(found.generator, INVERSION_YAWS), side)
    depth = depth_picture(out.depth, out.subject_opacity).to(out.image)
    return image_grid(torch.cat([*first, out.image, depth]), columns=len(INVERSION_YAWS))
