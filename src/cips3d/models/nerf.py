"""The shallow NeRF (paper Section 3.1, Fig. 2b): points and a style code to density and feature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models import volume
from cips3d.models.config import FieldConfig, Sampling
from cips3d.models.embedding import FixedEmbedding, LearnedEmbedding
from cips3d.models.layers import LEAKY_SLOPE, FilmSiren, Linear, without_autocast
from cips3d.models.ops import kernels, march
from cips3d.models.ops.sine import sine_, sine_along
from cips3d.models.rays import chunks
from cips3d.models.types import Points, RayDraws, Samples, StyleCodes

#: Samples whose density `density_along` computes at a time: on other devices, and on CPUs, whose
#: caches then hold the activations.
CHUNK_SAMPLES = (2**20, 2**13)


class FieldOutput(NamedTuple):
    """What a radiance field renders along rays."""

    feature: Float[Tensor, "batch rays feature"]
    """V_r = Σ w v"""
    depth: Float[Tensor, "batch rays"]
    """Σ w t + (1 − Σ w)·far, world units"""
    opacity: Float[Tensor, "batch rays"]
    """Σ w"""
    last_weight: Float[Tensor, "batch rays"]
    """the deepest sample's weight"""


class RadianceField(nn.Module):
    """g(x, w_s) ↦ (σ, v) (Eq. 3): FiLM-SIREN layers, a density head, one more layer for v.

    The last linear layer h ↦ v commutes with the weighted sum along a ray. So it is a method of its
    own (`project`), applied once per ray: Σ w (A h + a) = A Σ w h + a Σ w.

    Args:
        config: sizes, embedding, volume and background.
        head_width: width of h, the FiLM-SIREN layer behind the density.
    """

    def __init__(self, config: FieldConfig, head_width: int) -> None:
        super().__init__()
        self.config = config
        width, style_dim = config.nerf_width, config.shape_style_dim
        embeddings = {
            "film": None,
            "learned": LearnedEmbedding(width),
            "fixed": FixedEmbedding(config.embedding_octaves),
        }
        self.embedding = embeddings[config.embedding]
        in_dim = 3 if self.embedding is None else self.embedding.out_dim
        in_dims = [in_dim] + [width] * (config.nerf_layers - 1)
        self.layers = nn.ModuleList(FilmSiren(in_dim, width, style_dim) for in_dim in in_dims)
        self.density = Linear(width, 1)
        in_dim = width + (3 if config.view_direction else 0)
        self.feature_layer = FilmSiren(in_dim, head_width, style_dim)

    def forward(
        self, points: Points, directions: Points | None, w: StyleCodes
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points hidden"]]:
        """Raw density σ and hidden feature h at world points.

        σ may be negative; compositing takes its positive part. `project` turns (sums of) h into v.

        Args:
            directions: unit viewing directions d, used only with `view_direction`.
        """
        x = points / self.config.extent
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, w)
        sigma = self.raw_density(x, points.square().sum(dim=-1))
        if self.config.view_direction:
            assert directions is not None
            x = torch.cat([x, directions], dim=-1)
        return sigma, self.feature_layer(x, w)

    def project(
        self, hidden: Float[Tensor, "batch rays hidden"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays feature"]:
        """Σ w v from Σ w h and Σ w."""
        raise NotImplementedError

    def raw_density(
        self, x: Float[Tensor, "*points hidden"], squared_radius: Float[Tensor, "*points"]
    ) -> Float[Tensor, "*points"]:
        """σ from the last hidden activations, with a blob as in DreamFusion (Poole et al. 2022)."""
        sigma = self.config.density_gain * self.density(x)[..., 0]
        if self.config.density_blob:
            falloff = 1 - squared_radius / (self.config.extent / 2) ** 2
            sigma = sigma + self.config.density_blob * falloff
        return sigma

    @torch.no_grad()
    def density_along(self, rays: Rays, t: Samples, w: StyleCodes) -> Samples:
        """σ at depths t of each ray, without gradients; equal to `forward`'s up to rounding.

        The first layer is affine in t, W(o + t d) = W o + t W d, so its matrix products are per ray
        instead of per sample.
        """
        folded = [layer.folded(w) for layer in self.layers if isinstance(layer, FilmSiren)]
        o, d = rays.origins, rays.directions
        start = slope = None
        if self.embedding is None:
            (matrix, offset), *folded = folded
            matrix = matrix / self.config.extent
            start, slope = torch.baddbmm(offset, o, matrix), torch.bmm(d, matrix)
        # |o + t d|² = o·o + t (2 o·d + t d·d)
        oo, od, dd = (x.sum(dim=-1, keepdim=True) for x in (o * o, 2 * o * d, d * d))
        squared_radius = oo + t * (od + t * dd)
        size = CHUNK_SAMPLES[o.is_cpu] // max(1, t.shape[0] * t.shape[2])
        parts = []
        for part in chunks(rays.count, size):
            depth = t[:, part]
            if start is not None and slope is not None:
                x = sine_along(start, slope, t, part)
            else:
                assert self.embedding is not None
                x = self.embedding(rays[part].at(depth).flatten(1, 2) / self.config.extent)
            for matrix, offset in folded:
                x = sine_(torch.bmm(x, matrix), offset)
            parts.append(self.raw_density(x.unflatten(1, depth.shape[1:]), squared_radius[:, part]))
        return torch.cat(parts, dim=1)

    # ---------------------------------------------------------------- volume rendering
    def render(
        self, w: StyleCodes, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> FieldOutput:
        """Composited features along rays (Eq. 4), without the background behind them.

        Densities of all samples are computed first, without gradients. The visible samples are then
        evaluated again, with features and gradients. The samples' places on a ray are constants to
        the gradient, measured from its centre: a camera that moves back leaves them where they are.
        Without gradients a compiled loop does it in one go where it applies.
        """
        draws = RayDraws.even(rays, sampling) if draws is None else draws
        noiseless = draws.noise is None and draws.coarse_noise is None
        if noiseless and len(rays) and not torch.is_grad_enabled():
            marched = self._marched(w, rays, sampling, draws)
            if marched is not None:
                return marched
        noise = 0.0 if draws.noise is None else draws.noise
        with without_autocast(rays.origins.device):
            rays, distance = rays.centred()
            with torch.no_grad():
                near, far = self.bounds(rays)
                t, sigma = self._sampled_density(w, rays, near, far, sampling, draws)
                weights = self.weights(t, sigma + noise, far)
                index = volume.visible_samples(weights, draws.visible_share)
            t, sigma = t.detach(), sigma.detach()  # constants in forward mode too
            ray = index // t.shape[-1]
            points = torch.take_along_dim(rays.at(t).flatten(1, 2), index[..., None], dim=1)
            directions = None
            if self.config.view_direction:
                directions = torch.take_along_dim(rays.directions, ray[..., None], dim=1)
            visible_sigma, hidden = self(points, directions, w)
            sigma = sigma.flatten(1).scatter(1, index, visible_sigma).view_as(t)
            weights = self.weights(t, sigma + noise, far)
            weighted = hidden * weights.flatten(1).gather(1, index)[..., None]
            opacity = weights.sum(dim=-1)
            depth = distance + (weights * t).sum(dim=-1) + (1 - opacity) * far[..., 0]
            feature = self.project(volume.sum_by_ray(weighted, ray, rays.count), opacity)
        return FieldOutput(feature, depth, opacity, weights[..., -1])

    @property
    def marches(self) -> bool:
        """Whether a compiled loop takes rays without gradients, and keeps no activations."""
        return False

    def compiled(
        self,
        film: march.Film,
        grid: tuple[Tensor, int, float] | None = None,
    ) -> list[march.Field]:
        """The fields of styles for the compiled loop; none where that does not apply.

        Args:
            film: the folded layers, see `folded`.
            grid: occupied cells, cells along a side and per world unit; None for no empty cells.
        """
        return []

    def folded(self, w: StyleCodes) -> march.Film:
        """Matrices and offsets of all FiLM-SIREN layers, the one behind the density last."""
        layers = [*self.layers, self.feature_layer]
        return [layer.folded(w) for layer in layers if isinstance(layer, FilmSiren)]

    def _marched(
        self, w: Tensor, rays: Rays, sampling: Sampling, draws: RayDraws
    ) -> FieldOutput | None:
        """`render` by the compiled loop; None where there is none."""
        return None

    def bounds(
        self, rays: Rays
    ) -> tuple[Float[Tensor, "batch rays 1"], Float[Tensor, "batch rays 1"]]:
        """Where the volume begins and ends on each ray, from its centre."""
        far = rays.origins.new_full((len(rays), rays.count, 1), self.config.extent)
        return -far, far

    def _sampled_density(
        self, w: Tensor, rays: Rays, near: Tensor, far: Tensor, sampling: Sampling, draws: RayDraws
    ) -> tuple[Samples, Samples]:
        """Sorted depths of the coarse and fine samples of each ray, and σ there."""
        if draws.coarse_noise is None:
            subjects = self.compiled(self.folded(w))
            if subjects:
                importance = draws.importance[..., : sampling.fine]
                return march.samples(subjects, rays, draws.jitter, importance)
        t = volume.stratified_depths(near, far, sampling.coarse, draws.jitter)
        sigma = self.density_along(rays, t, w)
        if not sampling.fine:
            return t, sigma
        noisy = sigma if draws.coarse_noise is None else sigma + draws.coarse_noise
        fine_t = volume.importance_depths(t, self.weights(t, noisy, far), draws.importance)
        fine_sigma = self.density_along(rays, fine_t, w)
        t, order = torch.cat([t, fine_t], dim=-1).sort(dim=-1)
        return t, torch.cat([sigma, fine_sigma], dim=-1).gather(-1, order)

    def weights(self, t: Samples, sigma: Samples, far: Float[Tensor, "batch rays 1"]) -> Samples:
        """Compositing weights of sorted samples; with the background "last" they sum to 1."""
        endless = self.config.background == "endless"
        weights = volume.compositing_weights(t, sigma, volume.ENDLESS if endless else far)
        if self.config.background != "last":
            return weights
        last = weights[..., -1:] + 1 - weights.sum(dim=-1, keepdim=True)
        return torch.cat([weights[..., :-1], last], dim=-1)


class ShallowNerf(RadianceField):
    """CIPS-3D's field: a half-width FiLM-SIREN layer behind the density, then a linear layer."""

    def __init__(self, config: FieldConfig, feature_dim: int) -> None:
        width = config.nerf_width // 2
        super().__init__(config, width)
        self.feature = Linear(width, feature_dim)
        nn.init.kaiming_normal_(self.feature.weight, a=LEAKY_SLOPE)

    def project(
        self, hidden: Float[Tensor, "batch rays hidden"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays feature"]:
        weight = self.feature.weight.t().to(hidden.dtype)
        return hidden @ weight + opacity[..., None] * self.feature.bias

    def _marched(
        self, w: Tensor, rays: Rays, sampling: Sampling, draws: RayDraws
    ) -> FieldOutput | None:
        with without_autocast(rays.origins.device):
            subjects = self.compiled(self.folded(w))
            if not subjects:
                return None
            rays, distance = rays.centred()
            importance = draws.importance[..., : sampling.fine]
            hidden, *scalars = march.march(subjects, rays, draws.jitter, importance)
            depth, opacity, last_weight = scalars
            depth = distance + depth + (1 - opacity) * self.config.extent
            return FieldOutput(self.project(hidden, opacity), depth, opacity, last_weight)

    @property
    def marches(self) -> bool:
        c = self.config
        narrow = c.nerf_width <= march.WIDEST and not c.view_direction
        weight = self.density.weight
        return c.embedding == "film" and narrow and weight.is_cpu and weight.itemsize <= 4

    def compiled(
        self, film: march.Film, grid: tuple[Tensor, int, float] | None = None
    ) -> list[march.Field]:
        if not self.marches or not kernels.apply_to(film[0][0]):
            return []
        c, (matrix, offset) = self.config, film[0]
        gain = c.density_gain
        weight, bias = (x.to(matrix.dtype) for x in (self.density.weight, self.density.bias))
        return march.fields(
            [(matrix / c.extent, offset), *film[1:]],
            density=(gain * weight, gain * bias + c.density_blob),
            falloff=c.density_blob / (c.extent / 2) ** 2,
            extent=c.extent,
            background=c.background,
            grid=grid or (torch.ones(1, dtype=torch.bool, device="cpu"), 1, 0.0),
        )
