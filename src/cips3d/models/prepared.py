"""One subject made ready for many views: folded weights, and a map of where its field is empty.

`Generator.prepare` makes it, and `render` takes it in the place of styles. The pixels are the same
up to rounding, for less work:

- FiLM gains, modulation and demodulation are folded into plain weights once.
- An occupancy grid marks the cells in which there can be density. Samples elsewhere are never
  evaluated.
- The hidden activations behind a density are kept for the samples that turn out to be visible,
  instead of computed again.
- Rays that meet nothing take one colour of the implicit network, which paints it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cips3d.camera import Rays
from cips3d.errors import UserError
from cips3d.models import volume
from cips3d.models.config import Sampling
from cips3d.models.layers import without_autocast
from cips3d.models.nerf import CHUNK_SAMPLES
from cips3d.models.ops import march
from cips3d.models.ops.precision import Precision, fast_products, inr_dtype
from cips3d.models.ops.sine import sine_
from cips3d.models.protocol import Prepared
from cips3d.models.rays import chunks
from cips3d.models.types import RayDraws, RayOutput, Styles

if TYPE_CHECKING:
    from cips3d.models.generator import Generator

#: Cells along each side of the occupancy grid.
CELLS = 96
#: Half the grid's side, in half depths of the volume: what a view of 12° from the unit sphere sees.
HALF_SIDE = 1.6


class OccupancyGrid:
    """Marks the cells of a cube around the origin in which a field can have positive density.

    A cell is empty if σ is negative at all corners of the cell and of its neighbours, by more than
    σ varies there. Points outside the cube count as occupied.

    Args:
        sigma: (n + 1)³ densities at the corners of n³ cells.
        half_side: half the cube's side, world units.
    """

    def __init__(self, sigma: Float[Tensor, "x y z"], half_side: float) -> None:
        self.cells = sigma.shape[0] - 1
        self.scale = self.cells / (2 * half_side)
        """cells per world unit"""
        corners = sigma[None, None]
        highest = F.max_pool3d(corners, 4, stride=1, padding=2)
        lowest = -F.max_pool3d(-corners, 4, stride=1, padding=2)
        possible = highest + (highest - lowest) / 2 > 0
        # a border of occupied cells stands for everything outside
        grid = possible[0, 0, 1:-1, 1:-1, 1:-1]
        self.occupied = F.pad(grid, (1,) * 6, value=True).flatten()

    def __call__(self, points: Float[Tensor, "*points 3"]) -> Bool[Tensor, "*points"]:
        """Whether there can be density at the points."""
        cell = points.mul(self.scale).add_(self.cells / 2 + 1).clamp_(0, self.cells + 1).int()
        side = self.cells + 2
        x, y, z = cell.unbind(dim=-1)
        return self.occupied[(x * side + y) * side + z]


class PreparedSubject(Prepared):
    """One subject of a CIPS-3D generator, ready to be seen from many cameras.

    Pass it to `render` in the place of latents or styles. It notices when a weight of the generator
    changes, and prepares itself anew.

    Args:
        generator: draws it.
        styles: one entry.
        precision: of the implicit network, see `cips3d.models.ops.precision`; not autocast's.

    Raises:
        UserError: if there is more than one entry.
    """

    def __init__(self, generator: Generator, styles: Styles, precision: Precision) -> None:
        if len(styles) != 1:
            raise UserError(f"styles: {len(styles)} subjects; prepare one at a time")
        self.generator: Generator = generator
        self.styles = styles.map(Tensor.detach)
        self.precision: Precision = precision
        self._refresh()

    @property
    def occupied_share(self) -> float:
        """Share of the grid's cells in which there can be density."""
        return float(self._grid.occupied.float().mean())

    @property
    def compiled(self) -> bool:
        """Whether rays go through the compiled loop of `cips3d.models.ops.march`."""
        return bool(self._fields)

    @torch.no_grad()
    def _refresh(self) -> None:
        self._versions = _versions(self.generator)
        with without_autocast(self.generator.device):
            self._fold()

    def _fold(self) -> None:
        g, styles = self.generator, self.styles.to(self.generator.like)
        film = g.nerf.folded(styles.shape)
        self._film = [(matrix[0], offset) for matrix, offset in film]
        dtype = inr_dtype(self.precision, g.device, styles.shape.dtype)
        self._appearance = styles.appearance
        self._inr = g.inr.folded(styles.appearance, dtype)
        self._behind = g.feature_behind(styles.shape)
        self._grid = self._mapped_out()
        grid = (self._grid.occupied, self._grid.cells + 2, self._grid.scale)
        self._fields = g.nerf.compiled(film, grid)

    def _mapped_out(self) -> OccupancyGrid:
        g = self.generator
        half = HALF_SIDE * g.nerf.config.extent
        axis = torch.linspace(-half, half, CELLS + 1, device=g.device, dtype=g.like.dtype)
        rows = torch.cartesian_prod(axis, axis)
        start = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)[None]
        along = Rays(start, start.new_tensor([0.0, 0, 1]).expand_as(start))
        t = axis.expand(1, len(rows), -1)
        sigma = g.nerf.density_along(along, t, self.styles.shape.to(start))
        return OccupancyGrid(sigma.view(CELLS + 1, CELLS + 1, CELLS + 1), half)

    @torch.no_grad()
    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """As `Generator.render_rays`, without gradients; only the number of styles is looked at."""
        if _versions(self.generator) != self._versions:
            self._refresh()
        batch, count = len(rays), rays.count
        flat = rays.map(lambda x: x.reshape(1, -1, 3))
        if draws is None:
            draws = RayDraws.even(flat, sampling)
        else:
            draws = draws.map(lambda x: x.reshape(1, batch * count, x.shape[2]))
        with without_autocast(self.generator.device), fast_products(self.precision):
            output = self._rendered(flat, sampling, draws)
        return output.map(lambda x: x.reshape(batch, count, *x.shape[2:]))

    def _rendered(self, rays: Rays, sampling: Sampling, draws: RayDraws) -> RayOutput:
        g = self.generator
        rays, distance = rays.centred()
        if self._fields and draws.noise is None and draws.coarse_noise is None:
            importance = draws.importance[..., : sampling.fine]
            marched = march.march(self._fields, rays, draws.jitter, importance)
        else:
            marched = self._marched(rays, sampling, draws)
        hidden, depth, opacity, last_weight = marched
        depth = distance + depth + (1 - opacity) * g.nerf.config.extent
        feature = g.nerf.project(hidden, opacity)
        if self._behind is not None:
            feature = feature + (1 - opacity)[..., None] * self._behind
        rgb, aux = self._painted(g.in_sight(feature, opacity)[0], opacity[0])
        rgb, aux = g.in_front(rgb, aux, opacity, self.styles.to(g.like), rays, draws)
        return RayOutput(rgb, aux, depth, opacity, last_weight, feature)

    def _marched(self, rays: Rays, sampling: Sampling, draws: RayDraws) -> march.Marched:
        """As `march.march`, for every device, type and field."""
        field = self.generator.nerf
        near, far = field.bounds(rays)
        noise = 0.0 if draws.noise is None else draws.noise
        t = volume.stratified_depths(near, far, sampling.coarse, draws.jitter)
        always = field.config.background == "last" or draws.noise is not None
        samples = [self._evaluated(rays, t, always)]
        sigma = samples[0][0]
        order = torch.arange(t.shape[-1], device=t.device).expand_as(t)
        if sampling.fine:
            noisy = sigma if draws.coarse_noise is None else sigma + draws.coarse_noise
            weights = field.weights(t, noisy, far)
            fine_t = volume.importance_depths(t, weights, draws.importance)
            samples.append(self._evaluated(rays, fine_t, always))
            t, order = torch.cat([t, fine_t], dim=-1).sort(dim=-1)
            sigma = torch.cat([s for s, _, _ in samples], dim=-1).gather(-1, order)
        weights = field.weights(t, sigma + noise, far)
        # the weights in the order in which the samples were evaluated
        unsorted = torch.empty_like(weights).scatter_(-1, order, weights)
        parts = unsorted.split([s.shape[-1] for s, _, _ in samples], dim=-1)
        summed = t.new_zeros(rays.count, field.feature_layer.linear.out_features)
        for (_, index, x), part in zip(samples, parts, strict=True):
            weight = part.flatten()[index]
            visible = (weight > torch.finfo(weight.dtype).eps).nonzero()[:, 0]
            ray = index[visible] // part.shape[-1]
            hidden = self._feature(x[visible], rays.directions[0, ray])
            summed.index_add_(0, ray, hidden * weight[visible, None])
        depth, opacity = (weights * t).sum(dim=-1), weights.sum(dim=-1)
        return march.Marched(summed[None], depth, opacity, weights[..., -1])

    def _evaluated(
        self, rays: Rays, t: Tensor, everywhere: bool
    ) -> tuple[Tensor, Int[Tensor, " n"], Float[Tensor, "n hidden"]]:
        """σ at all depths; the indices of the evaluated samples; their last hidden activations."""
        field = self.generator.nerf
        points = rays.at(t).view(-1, 3)
        if everywhere:
            index = torch.arange(len(points), device=t.device)
        else:
            index = self._grid(points).nonzero()[:, 0]
            points = points[index]
        hidden, densities = [], []
        for part in chunks(len(points), CHUNK_SAMPLES[points.is_cpu]):
            p = points[part]
            x = (p / field.config.extent)[None]
            if field.embedding is not None:
                x = field.embedding(x)
            for matrix, offset in self._film[:-1]:
                x = sine_(x @ matrix, offset)
            hidden.append(x[0])
            densities.append(field.raw_density(x[0], p.square().sum(dim=-1)))
        sigma = t.new_zeros(t.numel()).index_copy_(0, index, torch.cat(densities))
        return sigma.view_as(t), index, torch.cat(hidden)

    def _feature(self, x: Float[Tensor, "n hidden"], directions: Tensor) -> Tensor:
        if self.generator.nerf.config.view_direction:
            x = torch.cat([x, directions], dim=-1)
        matrix, offset = self._film[-1]
        return sine_((x @ matrix)[None], offset)[0]

    def _painted(
        self, feature: Float[Tensor, "n feature"], opacity: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "1 n 3"], Float[Tensor, "1 n 3"]]:
        """Main and auxiliary colours; rays that meet nothing share the first such ray's."""
        empty = opacity == 0
        chosen = torch.cat([empty.nonzero()[:1, 0], (~empty).nonzero()[:, 0]])
        feature = feature[chosen]
        rgb = self._inr(feature[None])[0]
        aux = self.generator.aux_colour(feature[None], self._appearance)[0]
        source = torch.cumsum(~empty, dim=0) - (0 if bool(empty.any()) else 1)
        source = source.masked_fill(empty, 0)
        return rgb[source][None], aux[source][None]


def _versions(generator: Generator) -> list[tuple[int, int]]:
    """Changes whenever a tensor of the generator is replaced or written to."""
    return [(x.data_ptr(), x._version) for x in generator.state_dict(keep_vars=True).values()]
