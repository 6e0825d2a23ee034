"""Fewer rays for the same image: a quadtree of pixels, interpolated where an image is smooth.

Pixels are independent, so any subset can be rendered. The first pixels are those of a coarse
lattice, which includes the image's borders. Blocks whose corners differ are halved until they are
single pixels, one call of `render_rays` per level. A rendered pixel is exact; every other one is
interpolated bilinearly in its block.

The limit: a structure is certain to be found where it is as wide as the first lattice is coarse, 4
pixels (8 in large images). A narrower one may be interpolated away between the pixels of the
lattice, in parts or as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cips3d.camera import Rays
from cips3d.models.config import Sampling
from cips3d.models.rays import RenderRays, Stacked, in_chunks
from cips3d.models.types import RayDraws, Styles

#: Tolerance of images that are kept.
TOLERANCE = 0.06
#: Distances of the first pixels, powers of 2, by the shorter side from which they are used.
_STRIDES = {0: 4, 512: 8}


def adaptive(
    render: RenderRays,
    styles: Styles,
    rays: Rays,
    sampling: Sampling,
    draws: RayDraws | None,
    size: int,
    shape: tuple[int, int],
    tolerance: float,
    extent: float,
) -> Stacked:
    """All rays of images, most of them interpolated.

    Args:
        size: rays rendered at a time.
        shape: the images' height and width.
        tolerance: blocks are halved where colours, of the range from -1 to 1, or depths, in units
            of the extent, differ by more.
        extent: the volume's half depth, world units.
    """
    stride = max(s for side, s in _STRIDES.items() if min(shape) >= side)
    if min(shape) <= stride or len(rays) == 0:
        return in_chunks(render, styles, rays, sampling, draws, size)
    scale = rays.origins.new_tensor([1.0] * 6 + [1 / extent]) / tolerance

    def one(image: int) -> Float[Tensor, "rays 9"]:
        of_image = slice(image, image + 1)
        style, row = styles[of_image], rays.map(lambda x: x[of_image])
        draw = None if draws is None else draws.map(lambda x: x[of_image])

        def rendered(index: Int[Tensor, " n"]) -> Float[Tensor, "n 9"]:
            part = None if draw is None else draw[index]
            return in_chunks(render, style, row[index], sampling, part, size)[0]

        return _refined(rendered, scale, shape, stride)

    return torch.stack([one(image) for image in range(len(rays))])


def _refined(
    rendered: Callable[[Int[Tensor, " n"]], Float[Tensor, "n 9"]],
    scale: Float[Tensor, " 7"],
    shape: tuple[int, int],
    stride: int,
) -> Float[Tensor, "rays 9"]:
    """All pixels of one image, from a function that renders those at given indices.

    Args:
        scale: 1 over the tolerance of each channel of colours and depth.
        stride: distance of the first pixels.
    """
    y, x = (_lattice(side, stride, scale) for side in shape)
    exact = torch.ones(len(y), len(x), dtype=torch.bool, device=scale.device)
    values = rendered((y[:, None] * shape[1] + x).flatten()).unflatten(0, exact.shape)
    while stride > 1:
        differ = _corners_differ(values[..., :7] * scale)
        stride //= 2
        finer_y, finer_x = (_lattice(side, stride, scale) for side in shape)
        values = _resampled(_resampled(values, y, finer_y, 0), x, finer_x, 1)
        place = torch.searchsorted(finer_y, y)[:, None], torch.searchsorted(finer_x, x)
        known = exact.new_zeros(values.shape[:2])
        known[place] = exact
        # every corner of the parts of a block that is halved
        y, x = finer_y, finer_x
        halved = differ[y[:-1] // (2 * stride)][:, x[:-1] // (2 * stride)]
        corners = F.max_pool2d(F.pad(halved[None].float(), (1, 1, 1, 1)), 2, stride=1)[0] > 0
        new = corners & ~known
        exact = known | new
        index = (y[:, None] * shape[1] + x)[new]
        if len(index):
            values[new] = rendered(index)
    return values.flatten(0, 1)


def _lattice(side: int, stride: int, like: Tensor) -> Int[Tensor, " n"]:
    """Every `stride`th of the numbers below `side`, and the last one."""
    numbers = torch.arange(0, side - 1 + stride, stride, device=like.device)
    return numbers.clamp_(max=side - 1)


def _corners_differ(values: Float[Tensor, "y x channels"]) -> Bool[Tensor, "blocks_y blocks_x"]:
    """Whether a channel's values at the corners of each block differ by more than 1."""
    highest, lowest = values, values
    for axis, count in enumerate(values.shape[:2]):
        parts = [highest.narrow(axis, i, count - 1) for i in (0, 1)]
        highest = torch.maximum(*parts)
        parts = [lowest.narrow(axis, i, count - 1) for i in (0, 1)]
        lowest = torch.minimum(*parts)
    return (highest - lowest).amax(dim=-1) > 1


def _resampled(values: Tensor, old: Tensor, new: Tensor, axis: int) -> Tensor:
    """Values at new positions along an axis, interpolated linearly between the old ones."""
    after = torch.searchsorted(old, new).clamp_(min=1)
    low, high = old[after - 1], old[after]
    weight = ((new - low) / (high - low)).to(values)
    weight = weight.view(-1, *[1] * (values.dim() - 1 - axis))
    return torch.lerp(
        values.index_select(axis, after - 1), values.index_select(axis, after), weight
    )
