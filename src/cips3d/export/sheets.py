"""Pictures that show a generator: subjects from several sides, with a row for each kind of picture; many subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.camera import Camera
from cips3d.export.media import blank_grid
from cips3d.export.strips import KINDS, Kind, PictureFormat, depth_range, fill, picture_strips
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, Styles

#: Views of a subject that are rendered together, since the modulated weights of each take memory.
_TOGETHER = 16


@torch.no_grad()
def view_sheet(
    generator: ImageGenerator,
    codes: Latents | Styles,
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: float | tuple[float, float] = 1.0,
    show: Kind | Sequence[Kind] = KINDS,
    supersample: int = 1,
    progress: Callable[[float], None] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A row for each kind of picture of each subject (INR image, NeRF image, depth), a column for each camera.

    The depth's colours span one range for each subject. Pictures of any size: besides the sheet itself, memory is constant.

    Args:
        codes: latents, or styles that are used as they are.
        cameras: the views.
        resolution: side of each picture, or (height, width), in pixels; by default the training resolution.
        psi: truncation of latents, one ψ or one each for shape and appearance.
        show: the kinds, in order.
        supersample: n, for n² rays a pixel (see `tiles.picture_strips`).
        progress: is told the share that is done, from 0 to 1, every now and then.

    Raises:
        UserError: if a value is out of range, or a camera stands within the sampled volume.
    """
    form = PictureFormat.of(generator, resolution, show, supersample)
    kinds = len(form.show)
    styles = codes if isinstance(codes, Styles) else generator.map(codes, psi)
    grid, cells = blank_grid(len(styles) * kinds, len(cameras), form.height, form.width)
    groups = [slice(first, first + _TOGETHER) for first in range(0, len(cameras), _TOGETHER)]
    for i in range(len(styles)):
        depths = depth_range(generator, styles[i], cameras) if "depth" in form.show else None
        for j, group in enumerate(groups):
            strips = picture_strips(generator, styles[i], cameras[group], form, depths)
            fill(
                cells[i * kinds : (i + 1) * kinds, group],
                strips,
                _part(progress, i * len(groups) + j, len(styles) * len(groups)),
            )
    return grid


@torch.no_grad()
def subject_grid(
    generator: ImageGenerator,
    latents: Latents,
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: float | tuple[float, float] = 1.0,
    supersample: int = 1,
    progress: Callable[[float], None] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The INR image of each subject, seen by its own camera, row by row in a grid with about as many rows as columns.

    Arguments as in `view_sheet`, with one camera for each subject.
    """
    form = PictureFormat.of(generator, resolution, "image", supersample)
    columns = max(1, round(len(latents) ** 0.5))
    grid, cells = blank_grid(-(-len(latents) // columns), columns, form.height, form.width)
    for i in range(len(latents)):
        strips = picture_strips(generator, generator.map(latents[i], psi), cameras[i], form)
        fill(cells[divmod(i, columns)][None, None], strips, _part(progress, i, len(latents)))
    return grid


def _part(
    progress: Callable[[float], None] | None, done: int, of: int
) -> Callable[[float], None] | None:
    """What to tell of the share of one part of several, `done` of which are finished."""
    return None if progress is None else lambda share: progress((done + share) / of)


def orbit_cameras(generator: ImageGenerator, yaws: Sequence[float], pitch: float = 0.0) -> Camera:
    """Cameras at the generator's own radius and field of view; yaws and pitch in degrees from the middle of its prior."""
    poses = generator.config.poses
    yaw = torch.deg2rad(torch.tensor(list(yaws))) + poses.yaw_mean
    return poses.at(yaw, math.radians(pitch) + poses.pitch_mean)
