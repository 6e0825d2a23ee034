"""CIPS-3D's generator (paper Fig. 2): latents → styles → rays → pixels.

A pixel sees its ray and the styles, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models.config import Cips3dNetworks, GeneratorConfig, Sampling
from cips3d.models.inr import ImplicitNetwork
from cips3d.models.layers import MappingNetwork, rgb_head, without_autocast
from cips3d.models.nerf import FieldOutput, ShallowNerf
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Latents, RayDraws, RayOutput, Styles


class Generator(RayGenerator):
    """CIPS-3D: mapping networks, shallow NeRF, implicit network and auxiliary colour head.

    `save_pretrained` and `push_to_hub` are the Hugging Face hub's; `from_pretrained` is
    `cips3d.load`.
    """

    Networks = Cips3dNetworks
    parts = ("shape_mapping", "appearance_mapping", "nerf", "inr", "aux_head", "background")
    geometry_parts = ("nerf", "shape_mapping", "background")
    has_density = True
    has_aux_image = True

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__(config)
        c = self.config.networks
        assert isinstance(c, Cips3dNetworks)
        self.networks = c
        self.shape_mapping = MappingNetwork(
            c.shape_dim, c.shape_style_dim, c.shape_mapping_layers, norm=False
        )
        self.appearance_mapping = MappingNetwork(
            c.appearance_dim,
            c.appearance_style_dim,
            c.appearance_mapping_layers,
            c.appearance_mapping_norm,
        )
        self.nerf = ShallowNerf(c, c.feature_dim)
        self.inr = ImplicitNetwork(c)
        self.aux_head = rgb_head(c.feature_dim, 25)
        plain = c.background == "plain"
        self.background = nn.Linear(c.shape_style_dim, c.feature_dim) if plain else None
        self._register_means(c.shape_style_dim, c.appearance_style_dim)

    def mapped(self, latents: Latents) -> Styles:
        """The mapped codes w_s = m_s(z_s) and w_a = m_a(z_a)."""
        return Styles(
            self.shape_mapping(latents.shape), self.appearance_mapping(latents.appearance)
        )

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """See `RayGenerator.render_rays`."""
        field = self.render_features(styles.shape, rays, sampling, draws)
        return RayOutput(
            rgb=self.inr(field.feature, styles.appearance),
            aux_rgb=torch.tanh(self.aux_head(field.feature)),
            depth=field.depth,
            opacity=field.opacity,
            last_weight=field.last_weight,
            feature=field.feature,
        )

    def render_features(
        self,
        shape_style: Float[Tensor, "batch ws"],
        rays: Rays,
        sampling: Sampling,
        draws: RayDraws | None = None,
    ) -> FieldOutput:
        """The NeRF half of `render_rays` (Eq. 4): rendered features V_r with the background."""
        field = self.nerf.render(shape_style, rays, sampling, draws)
        transmittance = (1 - field.opacity)[..., None]
        if self.networks.background == "white":
            return field._replace(feature=field.feature + transmittance)
        if self.background is None:
            return field
        with without_autocast(self.device):
            behind = self.background(shape_style.to(rays.origins.dtype))[:, None]
        return field._replace(feature=field.feature + transmittance * behind)

    def density(
        self, points: Float[Tensor, "batch points 3"], styles: Styles
    ) -> Float[Tensor, "batch points"]:
        """Raw density σ at world points, per world unit."""
        sigma, _ = self.nerf(points, torch.zeros_like(points), styles.shape)
        return sigma

    def density_along(
        self, rays: Rays, t: Float[Tensor, "batch rays samples"], styles: Styles
    ) -> Float[Tensor, "batch rays samples"]:
        """`density` at depths t of each ray, without gradients."""
        return self.nerf.density_along(rays, t, styles.shape)

    @property
    def style_blocks(self) -> int:
        """Blocks of the implicit network."""
        return self.networks.inr_blocks

    def activations_per_ray(self, sampling: Sampling) -> int:
        """Hidden activations of the field's samples or of the implicit network."""
        samples = sampling.coarse + sampling.fine
        return max(samples * self.networks.nerf_width * 2, self.networks.inr_width * 4)
