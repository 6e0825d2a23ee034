"""Volume rendering (paper Eq. 4, Section 3.1): where to sample a ray and how to composite.

Depths t are in world units along unit directions. Samples are the last axis throughout.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cips3d.models.ops import kernels, sampling
from cips3d.models.ops.sine import fast
from cips3d.records import has_values

Bound = Float[Tensor, "*rays 1"]
Samples = Float[Tensor, "*rays samples"]
Fine = Float[Tensor, "*rays fine"]

#: The authors' stand-in for an endless last interval: any density there makes the ray opaque.
ENDLESS = 1e10


def stratified_depths(
    near: Bound, far: Bound, count: int, jitter: Samples | None = None
) -> Samples:
    """`count` ≥ 2 evenly spaced depths from near to far, each jittered by up to half a spacing.

    Args:
        jitter: draws in [0, 1); ½ leaves a depth as it is, and None all of them.
    """
    steps = torch.linspace(0, 1, count, dtype=near.dtype, device=near.device)
    t = torch.lerp(near, far, steps)
    if jitter is None:
        return t
    return t + (jitter - 0.5) * ((far - near) / (count - 1))


@torch.no_grad()
def importance_depths(t: Samples, weights: Samples, u: Fine) -> Fine:
    """Depths distributed like the weights of sorted coarse depths t, for draws u in [0, 1].

    The inverse CDF runs over the mid-points of t. The first and last weight are dropped and 1e-5 is
    added, as in NeRF and the authors' code.
    """
    return invert_cdf((t[..., :-1] + t[..., 1:]) / 2, weights[..., 1:-1] + 1e-5, u)


def invert_cdf(
    edges: Float[Tensor, "*rays edges"], weights: Float[Tensor, "*rays bins"], u: Fine
) -> Fine:
    """Positions at which the piecewise linear CDF of a histogram reaches u in [0, 1].

    Args:
        edges: sorted bin edges, one more than weights.
        weights: histogram, ≥ 0; 1e-5 is added to every bin, so that none is empty.
    """
    if fast(edges, weights, u):
        return sampling.invert_cdf(edges, weights, u)
    density = weights + 1e-5
    cdf = torch.cumsum(density / density.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)
    # searchsorted by counting: one fused pass for a dozen edges, and the same on every device
    above = (cdf[..., None, :] <= u[..., :, None]).sum(dim=-1)
    low = (above - 1).clamp(min=0)
    high = above.clamp(max=edges.shape[-1] - 1)
    cdf_low, cdf_high = cdf.gather(-1, low), cdf.gather(-1, high)
    edge_low, edge_high = edges.gather(-1, low), edges.gather(-1, high)
    width = cdf_high - cdf_low
    fraction = (u - cdf_low) / torch.where(width < 1e-5, torch.ones_like(width), width)
    return edge_low + fraction * (edge_high - edge_low)


def compositing_weights(t: Samples, sigma: Samples, end: Bound | float) -> Samples:
    """w_i = α_i T_i of the quadrature of Eq. 4, α = 1 − exp(−δ relu(σ)), T_i = Π_{j<i} (1 − α_j).

    Args:
        t: sorted depths.
        sigma: raw densities, noise included, per world unit.
        end: end of the last interval; `ENDLESS` for the authors' endless one.
    """
    last = t[..., :1]
    ends = end.expand_as(last) if isinstance(end, Tensor) else torch.full_like(last, end)
    # a jittered last sample may lie past the end; its interval is then empty
    delta = torch.diff(t, dim=-1, append=torch.maximum(ends, t[..., -1:]))
    transparency = torch.exp(-delta * torch.relu(sigma))
    # exp(cumsum(log)) rather than cumprod, whose backward pass is slow on CPUs; 1e-10 as in NeRF
    attenuation = torch.log(transparency + 1e-10)
    transmittance = torch.exp(torch.cumsum(attenuation, dim=-1) - attenuation)
    return (1 - transparency) * transmittance


def visible_samples(
    weights: Float[Tensor, "batch rays samples"], assumed_share: float = 1.0
) -> Int[Tensor, "batch visible"]:
    """Indices of the samples that can affect each image, into its flattened (ray, sample) pairs.

    Where the density is not positive, weight and gradient are exactly 0. Behind an opaque surface
    both are below the rounding of the sum. So only samples whose weight exceeds the machine epsilon
    need a feature and gradients: a third or fewer once there are surfaces. Images with fewer of
    them than others are filled up with samples that have no effect. `assumed_share` is the visible
    share on the meta device, whose tensors have no values.
    """
    return first_marked(weights.flatten(1) > torch.finfo(weights.dtype).eps, assumed_share)


def first_marked(
    marked: Bool[Tensor, "batch n"], assumed_share: float = 1.0
) -> Int[Tensor, "batch most"]:
    """Indices of the marked entries of each row, in order.

    A row with fewer of them than another is filled up with its first unmarked ones; there is at
    least one. `assumed_share` is the marked share on the meta device, whose tensors have no values.
    """
    count, most = marked.shape[1], max(1, most_marked(marked, assumed_share))
    if most >= count:  # all of them, which need no order
        return torch.arange(count, device=marked.device).expand(len(marked), -1)
    return marked_first(marked, most)


def most_marked(marked: Bool[Tensor, "batch n"], assumed_share: float = 1.0) -> int:
    """The largest number of marked entries of a row, rounded up by at most 6 %.

    So there are few sizes, which allocators and oneDNN's compiled products can use again. Inside
    `torch.func`, where sizes cannot depend on values, that of all entries.
    """
    count = marked.shape[1]
    if len(marked) == 0:
        return 0
    if not (marked.is_meta or has_values(marked)):
        return count
    most = round(assumed_share * count) if marked.is_meta else int(marked.sum(dim=1).max())
    step = 1 << max(0, most.bit_length() - 5)
    return min(count, -(-most // step) * step)


def marked_first(
    marked: Bool[Tensor, "batch n"], most: int | None = None
) -> Int[Tensor, "batch most"]:
    """Indices of the marked entries of each row, then of the others, both in order; `most` of them.

    By default all.
    """
    if kernels.readable(marked):
        count = marked.shape[1]
        return sampling.marked_first(marked, count if most is None else min(most, count))
    # not `sort`, which is wrong for booleans in some releases for MPS
    before = torch.cumsum(marked, dim=1)
    place = torch.where(marked, before - 1, before[:, -1:] + torch.cumsum(~marked, dim=1) - 1)
    entries = torch.arange(marked.shape[1], device=marked.device).expand_as(place)
    return torch.empty_like(place).scatter_(1, place, entries)[:, :most]


def sum_by_ray(
    values: Float[Tensor, "batch n channels"], ray: Int[Tensor, "batch n"], rays: int
) -> Float[Tensor, "batch rays channels"]:
    """Sums of the values of each ray; `ray` gives the ray that each value belongs to."""
    batch, _, channels = values.shape
    row = ray + rays * torch.arange(batch, device=ray.device)[:, None]
    sums = values.new_zeros(batch * rays, channels)
    sums = sums.index_add(0, row.flatten(), values.flatten(0, 1))
    return sums.view(batch, rays, channels)
