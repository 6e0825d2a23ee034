"""Every choice of rays: all at once, in chunks, a subset with gradients, all in little memory.

Pixels are independent, so rays of one image may be rendered in different ways. All functions return
the same values for the same draws. They differ in the gradients, and in the memory that they hold
until the backward pass:

- `full`: gradients of all rays; holds the activations of all rays.
- `in_chunks`: for inference; holds one chunk's activations.
- `partial`: the paper's (Section 3.2, Fig. 3). Gradients of n_r rays, the others are constants.
- `checkpointed`: gradients of all rays; holds one chunk's activations, for one more forward pass.

`size` is the number of rays per image in a chunk. It changes memory, not pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cips3d.camera import Rays
from cips3d.errors import UserError
from cips3d.models.config import Sampling
from cips3d.models.types import RayDraws, RayOutput, RenderOutput, Styles
from cips3d.models.volume import marked_first

#: `render_rays` of a generator.
RenderRays = Callable[[Styles, Rays, Sampling, RayDraws | None], RayOutput]
#: `RayOutput.stacked`.
Stacked = Float[Tensor, "batch rays 9"]


def chunks(count: int, size: int) -> list[slice]:
    """Slices of at most `size` items that cover `count`; a single empty one for none."""
    size = max(1, size)
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


def full(
    render: RenderRays, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None
) -> Stacked:
    """All rays in one go."""
    return render(styles, rays, sampling, draws).stacked()


def in_chunks(
    render: RenderRays,
    styles: Styles,
    rays: Rays,
    sampling: Sampling,
    draws: RayDraws | None,
    size: int,
) -> Stacked:
    """All rays, chunk by chunk."""
    parts = [
        full(render, styles, rays[part], sampling, _part(draws, part))
        for part in chunks(rays.count, size)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def partial(
    render: RenderRays,
    styles: Styles,
    rays: Rays,
    sampling: Sampling,
    draws: RayDraws,
    index: Int[Tensor, "#batch gradient_rays"],
    size: int,
) -> Stacked:
    """All rays, with gradients of the n_r different ones at `index` only, of each image or of all.

    On average over random subsets, the gradient of a loss is n_r/(H·W) times the full one (to first
    order: a mapping network's gradient is a sum over rays as well). It is not scaled up, as in the
    paper and the authors' code.
    """
    index = index.expand(len(rays), -1)
    chosen = torch.zeros(len(rays), rays.count, dtype=torch.bool, device=index.device)
    chosen = chosen.scatter_(1, index, True)
    others = marked_first(~chosen)[:, : rays.count - index.shape[1]]
    parts = [full(render, styles, rays.gathered(index), sampling, draws.gathered(index))]
    with torch.no_grad():
        constant = styles.map(torch.Tensor.detach)
        for part in others.split(size, dim=1):
            parts.append(
                full(render, constant, rays.gathered(part), sampling, draws.gathered(part))
            )
    order = torch.argsort(torch.cat([index, others], dim=1), dim=1)
    return torch.cat(parts, dim=1).take_along_dim(order[..., None], dim=1)


def checkpointed(
    render: RenderRays,
    styles: Styles,
    rays: Rays,
    sampling: Sampling,
    draws: RayDraws | None,
    size: int,
) -> Stacked:
    """All rays, with the gradients of `full` up to the order of summation."""

    def rendered(part: slice, _: Tensor) -> Tensor:
        return full(render, styles, rays[part], sampling, _part(draws, part))

    # rendering draws nothing, so no random state is kept; checkpoint reads the device of the styles
    parts = [
        checkpoint(rendered, part, styles.shape, use_reentrant=False, preserve_rng_state=False)
        for part in chunks(rays.count, size)
    ]
    return torch.cat(parts, dim=1)


def _part(draws: RayDraws | None, part: slice) -> RayDraws | None:
    return None if draws is None else draws[part]


def as_images(stacked: Stacked, height: int, width: int) -> RenderOutput:
    """Images from the outputs of their rays, row by row."""
    image = stacked.transpose(1, 2).unflatten(2, (height, width))
    return RenderOutput(*image.split([3, 3, 1, 1, 1], dim=1))


def paired(styles: Styles, rays: Rays) -> tuple[Styles, Rays]:
    """Styles and rays with one batch size: a single one of either is repeated for the other.

    Raises:
        UserError: if both are several and differ in number.
    """
    codes, cameras = len(styles), len(rays)
    if codes == cameras:
        return styles, rays
    if codes == 1:
        return styles.map(lambda x: x.expand(cameras, -1)), rays
    if cameras == 1:
        return styles, rays.map(lambda x: x.expand(codes, -1, -1))
    raise UserError(
        f"cameras: {cameras} cameras for {codes} codes; give one of either, or as many of both"
    )
