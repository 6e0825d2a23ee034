"""CIPS (Anokhin et al. 2021) without its table of one learned vector per pixel ("CIPS-NE")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Rays
from cips3d.models.config import GeneratorConfig, InrConfig, Sampling
from cips3d.models.embedding import LearnedEmbedding
from cips3d.models.inr import ImplicitNetwork
from cips3d.models.layers import MappingNetwork, without_autocast
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Latents, RayDraws, RayOutput, Styles


@dataclass(frozen=True)
class CipsNetworks(InrConfig):
    """CIPS's networks; the published size is 14 ModFC layers of width 512 with as many sines.

    tRGB follows every block, without residual additions or tanh.
    """

    architecture: Literal["cips-2d"] = "cips-2d"
    feature_dim: int = 512
    inr_blocks: int = 7
    rgb_from_block: int = 0
    residual_from_block: int = 7
    rgb_tanh: bool = False


def image_coordinates(rays: Rays, fov: float) -> Float[Tensor, "batch rays 2"]:
    """Where each ray passes through the image of a camera that looks at the origin, +y upward.

    x points right and y up, in [-1, 1] across the full field of view `fov` (degrees) of the image's
    height. On the y axis, where up has no meaning, both are 0.
    """
    backward = F.normalize(rays.origins, dim=-1)
    up = backward.new_tensor([0.0, 1.0, 0.0]).expand_as(backward)
    right = F.normalize(torch.linalg.cross(up, backward), dim=-1)
    up = torch.linalg.cross(backward, right)
    x, y, z = ((rays.directions * axis).sum(dim=-1) for axis in (right, up, backward))
    return torch.stack([x, y], dim=-1) / (-z * math.tan(math.radians(fov) / 2))[..., None]


class Cips2d(RayGenerator):
    """CIPS: any image size, no third dimension. There is one code, z_a.

    A pixel's coordinates, found from its ray and the camera prior's field of view, are embedded as
    sines and turned into colour by the implicit network. Samples and draws have no effect. Depth is
    the camera's distance from the origin, opacity 1 and the last weight 0. Both images are equal.

    CIPS draws the frequencies of the sines from U(±√(9/2)), ±2.12; `LearnedEmbedding` from ±2.08.
    """

    Networks = CipsNetworks
    parts = ("appearance_mapping", "embedding", "inr")
    networks: CipsNetworks

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__(config)
        c = self.networks
        self.appearance_mapping = MappingNetwork(
            c.appearance_dim,
            c.appearance_style_dim,
            c.appearance_mapping_layers,
            c.appearance_mapping_norm,
        )
        self.embedding = LearnedEmbedding(c.feature_dim, in_dim=2)
        self.inr = ImplicitNetwork(c)
        self._register_means(c.shape_dim, c.appearance_style_dim)

    def mapped(self, latents: Latents) -> Styles:
        """The mapped code w_a = m_a(z_a); the shape code stays as it is."""
        return Styles(latents.shape, self.appearance_mapping(latents.appearance))

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """Renders any rays; the feature is the embedding."""
        with without_autocast(rays.origins.device):
            feature = self.embedding(image_coordinates(rays, self.config.poses.fov))
            depth = rays.origins.square().sum(dim=-1).sqrt()
        rgb = self.inr(feature, styles.appearance)
        return RayOutput(rgb, rgb, depth, torch.ones_like(depth), torch.zeros_like(depth), feature)

    @property
    def style_blocks(self) -> int:
        return self.networks.inr_blocks

    def activations_per_ray(self, sampling: Sampling) -> int:
        return self.networks.inr_width * 4
