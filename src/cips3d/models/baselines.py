"""The paper's comparisons (Table 1, Fig. 8 and 9) out of our own parts, each one half of CIPS-3D: pi-GAN and the 2D CIPS."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models.config import Architecture, GeneratorConfig
from cips3d.models.embedding import LearnedEmbedding
from cips3d.models.generator import Generator
from cips3d.models.inr import ImplicitNetwork, rgb_head
from cips3d.models.layers import FilmSiren, MappingNetwork, without_autocast
from cips3d.models.nerf import RadianceField
from cips3d.models.types import Latents, RayDraws, RayOutput, Sampling, Styles


def build_generator(config: GeneratorConfig) -> Generator:
    """A new generator of the configuration's architecture, with random weights."""
    return GENERATORS[config.architecture](config)


# ---------------------------------------------------------------- pi-GAN
class ColourField(RadianceField):
    """g(x, w) -> (σ, c): FiLM-SIREN layers, a density head, one more FiLM-SIREN layer of full width, a linear layer, a sigmoid.

    Initial weights are pi-GAN's: U(±√(6/fan_in)/25) everywhere, heads included, but U(±1/fan_in) in the layer that takes the
    coordinates.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        bound = math.sqrt(6 / config.nerf_width) / 25
        nn.init.uniform_(self.density.weight, -bound, bound)
        first = self.layers[0]
        if self.embedding is None and isinstance(first, FilmSiren):
            nn.init.uniform_(first.linear.weight, -1 / 3, 1 / 3)

    def _make_head(self, in_dim: int, config: GeneratorConfig) -> None:
        self.feature_layer = FilmSiren(in_dim, config.nerf_width, config.shape_style_dim)
        self.colour = rgb_head(config.nerf_width, 25)

    def forward(
        self,
        points: Float[Tensor, "batch points 3"],
        directions: Float[Tensor, "batch points 3"] | None,
        w: Float[Tensor, "batch w"],
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Raw density σ, and colours in [-1, 1] of every sample."""
        sigma, hidden = super().forward(points, directions, w)
        return sigma, 2 * torch.sigmoid(self.colour(hidden)) - 1

    def project(
        self, hidden: Float[Tensor, "batch rays 3"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays 3"]:
        """Σ w c as it is."""
        return hidden


class PiGan(Generator):
    """pi-GAN (Chan et al. 2021): a radiance field of `nerf_layers` FiLM-SIREN layers whose composited colours are the picture.

    The published network: 8 layers of width 256, three mapping layers, view direction, 12 + 12 samples. There is one code, z_s;
    z_a and the fields of implicit network and appearance are passed over (`Styles.appearance` carries z_a). Both pictures are
    Σ w c and, where light passes, the background: "white"; "plain", a colour that w_s gives; none with "endless" and "last".

    The authors' code differs: no background is black there and medium grey here (0 of [-1, 1]), their mapping network does not
    normalise z, and it has an activation after its last layer too.
    """

    architecture = "pi-gan"
    parts = ("shape_mapping", "nerf", "background")

    def _make_parts(self, c: GeneratorConfig) -> None:
        self.shape_mapping = MappingNetwork(
            c.shape_dim, c.shape_style_dim, c.shape_mapping_layers, norm=False
        )
        self.nerf = ColourField(c)
        plain = c.background == "plain"
        self.background = (
            nn.Sequential(nn.Linear(c.shape_style_dim, 3), nn.Tanh()) if plain else None
        )

    @staticmethod
    def _style_widths(c: GeneratorConfig) -> tuple[int, int]:
        return c.shape_style_dim, c.appearance_dim

    def _mapped(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "batch ws"], Float[Tensor, "batch za"]]:
        return self.shape_mapping(latents.shape), latents.appearance

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """See `Generator.render_rays`; the feature is the colour."""
        colour, depth, opacity, last_weight = self.render_features(
            styles.shape, rays, sampling, draws
        )
        return RayOutput(colour, colour, depth, opacity, last_weight, feature=colour)

    def _hidden_per_ray(self, sampling: Sampling) -> int:
        return (sampling.coarse + sampling.fine) * self.config.nerf_width * 2


# ---------------------------------------------------------------- CIPS
def picture_coordinates(rays: Rays, fov: float) -> Float[Tensor, "batch rays 2"]:
    """Where each ray passes through the picture of a camera that stands at its origin, looks at the world's and has +y upward.

    Args:
        rays: seen from anywhere but the y axis, along which up has no meaning (x and y are 0 there).
        fov: full field of view across the picture's height, degrees.

    Returns:
        (x, y), x to the right and y upward, in [-1, 1] across the height of the field of view.
    """
    backward = F.normalize(rays.origins, dim=-1)
    right = F.normalize(
        torch.linalg.cross(backward.new_tensor([0.0, 1.0, 0.0]).expand_as(backward), backward),
        dim=-1,
    )
    up = torch.linalg.cross(backward, right)
    x, y, z = ((rays.directions * axis).sum(dim=-1) for axis in (right, up, backward))
    return torch.stack([x, y], dim=-1) / (-z * math.tan(math.radians(fov) / 2))[..., None]


class Cips2d(Generator):
    """CIPS (Anokhin et al. 2021) without its table of one learned vector per pixel ("CIPS-NE"): any size, no third dimension.

    The pixel's place in the picture, found from its ray and the camera prior's field of view, is embedded as `feature_dim`
    sines and painted by the implicit network. The published network: 14 ModFC layers of width 512 (`inr_blocks` 7), sines as
    many, tRGB after every block, no tanh. There is one code, z_a; z_s and the fields of radiance field, shape and background
    are passed over (`Styles.shape` carries z_s), and so are samples and draws of a rendering. Depth is the camera's distance
    from the origin, opacity 1, the last weight 0, both pictures the same.

    CIPS draws the frequencies of the sines from U(±√(9/2)), ±2.12; `LearnedEmbedding` for two coordinates has ±2.08.
    """

    architecture = "cips-2d"
    parts = ("appearance_mapping", "embedding", "inr")

    def _make_parts(self, c: GeneratorConfig) -> None:
        self.appearance_mapping = MappingNetwork(
            c.appearance_dim,
            c.appearance_style_dim,
            c.appearance_mapping_layers,
            c.appearance_mapping_norm,
        )
        self.embedding = LearnedEmbedding(c.feature_dim, in_dim=2)
        self.inr = ImplicitNetwork(c)

    @staticmethod
    def _style_widths(c: GeneratorConfig) -> tuple[int, int]:
        return c.shape_dim, c.appearance_style_dim

    def _mapped(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "batch zs"], Float[Tensor, "batch wa"]]:
        return latents.shape, self.appearance_mapping(latents.appearance)

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """See `Generator.render_rays`; the feature is the embedding."""
        with without_autocast(rays.origins.device):
            feature = self.embedding(picture_coordinates(rays, self.config.poses.fov))
            depth = rays.origins.square().sum(dim=-1).sqrt()
        rgb = self.inr(feature, styles.appearance)
        return RayOutput(rgb, rgb, depth, torch.ones_like(depth), torch.zeros_like(depth), feature)

    def _hidden_per_ray(self, sampling: Sampling) -> int:
        return self.config.inr_width * 4


#: The class of each architecture.
GENERATORS: dict[Architecture, type[Generator]] = {
    kind.architecture: kind for kind in (Generator, PiGan, Cips2d)
}
