"""The shallow NeRF (paper Section 3.1, Fig. 2b): points and a style code to density and feature."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.embedding import FixedEmbedding, LearnedEmbedding
from cips3d.models.layers import LEAKY_SLOPE, FilmSiren


class RadianceField(nn.Module):
    """g(x, w_s) -> (σ, h): FiLM-SIREN layers, a density head, and one more half-width FiLM-SIREN layer for the feature.

    The last linear layer h -> v commutes with the weighted sum along the ray, so it is a method of its own (`project`) that the
    caller applies once per ray instead of once per sample: Σ w (A h + a) = A Σ w h + a Σ w.

    Args:
        width: hidden width.
        layers: FiLM-SIREN layers before the density, ≥ 1.
        feature_dim: width of v.
        style_dim: width of w_s.
        extent: half size of the sampled volume, world units; coordinates are divided by it, so that they span [-1, 1].
        embedding: "film", the authors' (the first FiLM-SIREN layer takes the coordinates); "learned", the paper's FC + sine as
            a layer of its own; "fixed", positional encoding (Eq. 7).
        octaves: L of the positional encoding.
        view_direction: feed the ray direction to the feature layer (Table 2, first row).
        density_gain: the raw density is the density head's output times this. With 1 (the authors') a head has to grow weights
            near 50 before a surface is opaque, which takes thousands of steps.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        feature_dim: int,
        style_dim: int,
        extent: float,
        embedding: Literal["film", "learned", "fixed"] = "film",
        octaves: int = 10,
        view_direction: bool = False,
        density_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.extent = extent
        self.view_direction = view_direction
        self.density_gain = density_gain
        self.embedding = {"film": None, "learned": LearnedEmbedding(width), "fixed": FixedEmbedding(octaves)}[embedding]
        in_dim = 3 if self.embedding is None else self.embedding.out_dim
        self.layers = nn.ModuleList(FilmSiren(in_dim if i == 0 else width, width, style_dim) for i in range(layers))
        self.density = nn.Linear(width, 1)
        self.feature_layer = FilmSiren(width + (3 if view_direction else 0), width // 2, style_dim)
        self.feature = nn.Linear(width // 2, feature_dim)
        nn.init.kaiming_normal_(self.feature.weight, a=LEAKY_SLOPE)

    def forward(
        self,
        origins: Float[Tensor, "batch rays 3"],
        directions: Float[Tensor, "batch rays 3"],
        t: Float[Tensor, "batch rays samples"],
        w: Float[Tensor, "batch w"],
    ) -> tuple[Float[Tensor, "batch rays samples"], Float[Tensor, "batch rays samples hidden"]]:
        """Raw density σ and hidden feature h at the points origins + t·directions.

        σ may be negative; compositing takes its positive part. `project` turns (sums of) h into features v.
        """
        batch, rays, samples = t.shape
        points = torch.addcmul(origins[:, :, None], t[..., None], directions[:, :, None]).flatten(1, 2)
        x = points / self.extent
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, w)
        sigma = self.density_gain * self.density(x).view(batch, rays, samples)
        if self.view_direction:
            x = torch.cat([x, directions[:, :, None].expand(-1, -1, samples, -1).flatten(1, 2)], dim=-1)
        return sigma, self.feature_layer(x, w).view(batch, rays, samples, -1)

    def project(
        self, hidden: Float[Tensor, "batch rays hidden"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays feature"]:
        """Σ w v from Σ w h and Σ w."""
        return hidden @ self.feature.weight.t() + opacity[..., None] * self.feature.bias

    def at_points(
        self, points: Float[Tensor, "batch points 3"], w: Float[Tensor, "batch w"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points feature"]]:
        """Density relu(σ) (per world unit) and feature v at world points; a view-dependent field is seen along -z."""
        directions = torch.zeros_like(points)
        directions[..., 2] = -1.0
        sigma, hidden = self(points, directions, points.new_zeros(*points.shape[:2], 1), w)
        return torch.relu(sigma[..., 0]), self.feature(hidden[..., 0, :])
