"""The shallow NeRF (paper Section 3.1, Fig. 2b): points and a style code to density and feature."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models.config import GeneratorConfig
from cips3d.models.embedding import FixedEmbedding, LearnedEmbedding
from cips3d.models.layers import LEAKY_SLOPE, FilmSiren
from cips3d.models.ops.sine import sine_, sine_along

#: Samples whose density `density_along` finds at a time, on other devices and on CPUs.
CHUNK_SAMPLES = (2**20, 2**13)


class RadianceField(nn.Module):
    """g(x, w_s) -> (σ, h): FiLM-SIREN layers, a density head, and one more half-width FiLM-SIREN layer for the feature.

    The last linear layer h -> v commutes with the weighted sum along the ray, so it is a method of its own (`project`) that the
    caller applies once per ray instead of once per sample: Σ w (A h + a) = A Σ w h + a Σ w.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.extent, self.view_direction = config.extent, config.view_direction
        self.density_gain, self.density_blob = config.density_gain, config.density_blob
        width = config.nerf_width
        embeddings = {
            "film": None,
            "learned": LearnedEmbedding(width),
            "fixed": FixedEmbedding(config.embedding_octaves),
        }
        self.embedding = embeddings[config.embedding]
        in_dims = [3 if self.embedding is None else self.embedding.out_dim] + [width] * (
            config.nerf_layers - 1
        )
        self.layers = nn.ModuleList(
            FilmSiren(in_dim, width, config.shape_style_dim) for in_dim in in_dims
        )
        self.density = nn.Linear(width, 1)
        self._make_head(width + (3 if config.view_direction else 0), config)

    def _make_head(self, in_dim: int, config: GeneratorConfig) -> None:
        """Makes the layers behind the density.

        Args:
            in_dim: hidden width, and 3 more with a view direction.
        """
        width = config.nerf_width // 2
        self.feature_layer = FilmSiren(in_dim, width, config.shape_style_dim)
        self.feature = nn.Linear(width, config.feature_dim)
        nn.init.kaiming_normal_(self.feature.weight, a=LEAKY_SLOPE)

    def forward(
        self,
        points: Float[Tensor, "batch points 3"],
        directions: Float[Tensor, "batch points 3"] | None,
        w: Float[Tensor, "batch w"],
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points hidden"]]:
        """Raw density σ and hidden feature h at world points.

        σ may be negative; compositing takes its positive part. `project` turns (sums of) h into features v.

        Args:
            directions: unit viewing directions, used only by a field with `view_direction`.
        """
        x = points / self.extent
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, w)
        sigma = self.density_gain * self.density(x)[..., 0]
        if self.density_blob:
            sigma = sigma + self._blob(points.square().sum(dim=-1))
        if self.view_direction:
            assert directions is not None
            x = torch.cat([x, directions], dim=-1)
        return sigma, self.feature_layer(x, w)

    @torch.no_grad()
    def density_along(
        self, rays: Rays, t: Float[Tensor, "batch rays samples"], w: Float[Tensor, "batch w"]
    ) -> Float[Tensor, "batch rays samples"]:
        """Raw density σ at depths t of each ray, without gradients; the same numbers as `forward` up to rounding.

        The first layer is affine in t, W(o + t d) = W o + t W d, so that its matrix products are per ray, not per sample.
        Activations are made and used up in pieces: on a CPU they then stay in its caches.
        """
        samples = CHUNK_SAMPLES[rays.origins.device.type == "cpu"]
        chunk = max(1, samples // (t.shape[0] * t.shape[2]))
        folded = [layer.folded(w) for layer in self.layers if isinstance(layer, FilmSiren)]
        if self.embedding is None:
            (matrix, offset), *folded = folded
            matrix = matrix / self.extent
            start, slope = (
                torch.baddbmm(offset, rays.origins, matrix),
                torch.bmm(rays.directions, matrix),
            )
        parts = []
        for first in range(0, max(1, rays.count), chunk):  # no rays give an empty result
            part = slice(first, first + chunk)
            if self.embedding is None:
                x = sine_along(start, slope, t, part)
            else:
                x = self.embedding(rays[part].at(t[:, part]).flatten(1, 2) / self.extent)
            for matrix, offset in folded:
                x = sine_(torch.bmm(x, matrix), offset)
            parts.append(self.density(x).view_as(t[:, part]))
        sigma = torch.cat(parts, dim=1) * self.density_gain
        if self.density_blob:
            o, d = rays.origins, rays.directions  # |o + t d|² = o·o + t (2 o·d + t d·d)
            oo, od, dd = (x.sum(dim=-1, keepdim=True) for x in (o * o, 2 * o * d, d * d))
            sigma += self._blob(oo + t * (od + t * dd))
        return sigma

    def _blob(self, square: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
        """What the blob adds to σ at squared distances from the centre: `density_blob` · (1 − (r/r₀)²), r₀ half the extent.

        DreamFusion (Poole et al. 2022) has a like term.
        """
        return self.density_blob * (1 - square / (self.extent / 2) ** 2)

    def project(
        self, hidden: Float[Tensor, "batch rays hidden"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays feature"]:
        """Σ w v from Σ w h and Σ w."""
        return hidden @ self.feature.weight.t() + opacity[..., None] * self.feature.bias
