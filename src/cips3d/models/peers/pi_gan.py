"""pi-GAN (Chan et al. 2021): a radiance field whose composited colours are the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models.config import FieldConfig, GeneratorConfig, Sampling, VolumeBackground
from cips3d.models.generator import FieldGenerator
from cips3d.models.layers import FilmSiren, Linear, MappingNetwork, rgb_head
from cips3d.models.nerf import RadianceField
from cips3d.models.types import Latents, Points, RayDraws, RayOutput, StyleCodes, Styles


@dataclass(frozen=True)
class PiGanNetworks(FieldConfig):
    """pi-GAN's networks; the published size is 8 layers of width 256, three mapping layers."""

    architecture: Literal["pi-gan"] = "pi-gan"
    shape_mapping_layers: int = 3
    view_direction: bool = True
    nerf_width: int = 256
    nerf_layers: int = 8
    background: VolumeBackground = "endless"


class ColourField(RadianceField):
    """g(x, w) → (σ, c): a full-width FiLM-SIREN layer behind the density, linear, sigmoid.

    Initial weights are pi-GAN's: U(±√(6/fan_in)/25) everywhere, heads included, but U(±1/fan_in) in
    the layer that takes the coordinates.
    """

    def __init__(self, config: FieldConfig) -> None:
        super().__init__(config, config.nerf_width)
        self.colour = rgb_head(config.nerf_width, 25)
        bound = math.sqrt(6 / config.nerf_width) / 25
        nn.init.uniform_(self.density.weight, -bound, bound)
        first = self.layers[0]
        if self.embedding is None and isinstance(first, FilmSiren):
            nn.init.uniform_(first.linear.weight, -1 / 3, 1 / 3)

    def forward(
        self, points: Points, directions: Points | None, w: StyleCodes
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Raw density σ, and colours in [-1, 1] of every sample."""
        sigma, hidden = super().forward(points, directions, w)
        return sigma, 2 * torch.sigmoid(self.colour(hidden)) - 1

    def project(
        self, hidden: Float[Tensor, "batch rays 3"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays 3"]:
        return hidden  # Σ w c already


class PiGan(FieldGenerator):
    """pi-GAN. There is one code, z_s.

    Both images are Σ w c and, where light passes, the background: "white"; "plain", a colour from
    w_s; none with "endless" and "last". The authors' code differs: no background is black there and
    medium grey here (0 of [-1, 1]), their mapping network does not normalise z, and it has an
    activation after its last layer too.
    """

    Networks = PiGanNetworks
    parts = ("shape_mapping", "nerf", "background")

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__(config)
        c = self.networks
        self.shape_mapping = MappingNetwork(
            c.shape_dim, c.shape_style_dim, c.shape_mapping_layers, norm=False
        )
        self.nerf = ColourField(c)
        plain = c.background == "plain"
        colour = nn.Sequential(Linear(c.shape_style_dim, 3), nn.Tanh()) if plain else None
        self.background = colour
        self._register_means(c.shape_style_dim, c.appearance_dim)

    def mapped(self, latents: Latents) -> Styles:
        """The mapped code w = m(z); the appearance code stays as it is."""
        return Styles(self.shape_mapping(latents.shape), latents.appearance)

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """Renders any rays; the feature is the colour."""
        field = self.render_features(styles.shape, rays, sampling, draws)
        return RayOutput(rgb=field.feature, aux_rgb=field.feature, **field._asdict())

    def activations_per_ray(self, sampling: Sampling) -> int:
        return (sampling.coarse + sampling.fine) * self.networks.nerf_width * 2
