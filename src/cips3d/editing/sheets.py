"""Pictures that show blended models and mixed styles, as the paper's Fig. 13 does, and what an inversion came to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.editing.blend import interpolate, mix_styles
from cips3d.editing.invert import Inversion
from cips3d.export.media import depth_picture, image_grid
from cips3d.export.sheets import orbit_cameras
from cips3d.models.generator import Generator
from cips3d.models.records import Latents, Styles

Codes = Latents | Styles
Psi = float | tuple[float, float]
Sheet = UInt8[np.ndarray, "height width 3"]
#: Degrees of yaw that an inverted subject is shown from.
INVERSION_YAWS = (-40, -20, 0, 20, 40)


@torch.inference_mode()
def amounts_sheet(
    base: Generator, other: Generator, codes: Codes, steps: int, resolution: int, *, psi: Psi = 1.0, yaw: float = 0.0
) -> Sheet:
    """A row for each subject, seen from one yaw (degrees), a column for each of `steps` even amounts from 0 to 1 (Fig. 13c)."""
    amounts = [i / max(1, steps - 1) for i in range(steps)]
    camera = orbit_cameras(base, [yaw])
    columns = [interpolate(base, other, a).render(codes, camera, resolution, psi=psi).image for a in amounts]
    return image_grid(torch.stack(columns, dim=1).flatten(0, 1), columns=steps)


@torch.inference_mode()
def views_sheet(
    generators: Sequence[Generator], codes: Codes, yaw: float, views: int, resolution: int, *, psi: Psi = 1.0
) -> Sheet:
    """For each subject a row for each generator, seen from −yaw to yaw (degrees; Fig. 13b)."""
    yaws = [yaw * (2 * i / (views - 1) - 1) if views > 1 else 0.0 for i in range(views)]
    rows = [
        generator.render(codes[i], orbit_cameras(generator, yaws), resolution, psi=psi).image
        for i in range(len(codes))
        for generator in generators
    ]
    return image_grid(torch.cat(rows), columns=views)


@torch.inference_mode()
def mixing_sheet(
    generator: Generator,
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
    content, style = (codes if isinstance(codes, Styles) else generator.map(codes, psi) for codes in (content, style))

    def seen(styles: Styles) -> torch.Tensor:
        return generator.render(styles, camera, resolution).image

    top = seen(style)
    pictures = [torch.ones_like(top[:1]), top]
    for i in range(len(content)):
        row = content[i].map(lambda w: w.expand(len(style), -1))
        pictures += [seen(content[i]), seen(mix_styles(generator, row, style, from_block))]
    return image_grid(torch.cat(pictures), columns=len(style) + 1)


@torch.inference_mode()
def inversion_sheet(picture: torch.Tensor, found: Inversion) -> Sheet:
    """The picture and what each step made of it; then the subject from `INVERSION_YAWS`, and its depth.

    Args:
        picture: (1, 3, side, side) in [-1, 1].
    """
    side = picture.shape[-1]
    steps = [*found.earlier, found]
    first = [picture, *(step.generator.render(step.styles, step.camera, side).image for step in steps)]
    first += [torch.ones_like(picture)] * (len(INVERSION_YAWS) - len(first))
    out = found.generator.render(found.styles, orbit_cameras(found.generator, INVERSION_YAWS), side)
    depth = depth_picture(out.depth, out.subject_opacity).to(out.image)
    return image_grid(torch.cat([*first, out.image, depth]), columns=len(INVERSION_YAWS))
