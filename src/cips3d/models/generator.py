"""CIPS-3D's generator (paper Fig. 2): latents → styles → rays → pixels.

A pixel depends on its ray and the styles, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models import volume
from cips3d.models.config import Cips3dNetworks, FieldConfig, GeneratorConfig, Sampling
from cips3d.models.inr import ImplicitNetwork
from cips3d.models.layers import Linear, MappingNetwork, luminance, rgb_head, without_autocast
from cips3d.models.nerf import FieldOutput, RadianceField, ShallowNerf
from cips3d.models.ops.precision import Precision
from cips3d.models.prepared import CELLS, PreparedSubject
from cips3d.models.protocol import Prepared, RayGenerator
from cips3d.models.surroundings import Surroundings, turned
from cips3d.models.types import Latents, Points, RayDraws, RayOutput, Samples, StyleCodes, Styles

#: Above this share of rays that meet something, selecting them costs more than it saves.
_MOST_MEETING = 0.9


class FieldGenerator(RayGenerator):
    """Base of generators with a radiance field and a background behind it."""

    has_density = True
    networks: FieldConfig
    nerf: RadianceField
    background: nn.Module | None
    """w_s ↦ the feature behind the samples, for the background "plain" """

    def render_features(
        self, shape_style: StyleCodes, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> FieldOutput:
        """The NeRF half of `render_rays` (Eq. 4): rendered features V_r with the background."""
        field = self.nerf.render(shape_style, rays, sampling, draws)
        behind = self.feature_behind(shape_style)
        if behind is None:
            return field
        transmittance = (1 - field.opacity)[..., None]
        return field._replace(feature=field.feature + transmittance * behind[:, None])

    def feature_behind(self, shape_style: StyleCodes) -> Float[Tensor, "batch feature"] | None:
        """The feature behind all samples of a ray; None where there is none."""
        if self.networks.background == "white":
            return self.shape_mean.new_ones(len(shape_style), 1)
        if self.background is None:
            return None
        with without_autocast(self.device):
            return self.background(shape_style)

    def density(self, points: Points, styles: Styles) -> Float[Tensor, "batch points"]:
        sigma, _ = self.nerf(points, torch.zeros_like(points), styles.shape)
        return sigma

    def density_along(self, rays: Rays, t: Samples, styles: Styles) -> Samples:
        return self.nerf.density_along(rays, t, styles.shape)


class Generator(FieldGenerator):
    """CIPS-3D: mapping networks, shallow NeRF, implicit network and auxiliary colour head.

    `save_pretrained` and `push_to_hub` are the Hugging Face hub's; `from_pretrained` is
    `cips3d.load`.
    """

    Networks = Cips3dNetworks
    parts = (
        "shape_mapping", "appearance_mapping", "nerf", "inr", "aux_head", "aux_palette",
        "background", "surroundings",
    )  # fmt: skip
    geometry_parts = ("nerf", "shape_mapping", "background")
    has_aux_image = True
    networks: Cips3dNetworks

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__(config)
        c = self.networks
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
        #: w_a ↦ what is added to the weights of the auxiliary head
        self.aux_palette = (
            Linear(c.appearance_style_dim, 3 * c.feature_dim) if c.aux_palette else None
        )
        plain = c.background == "plain"
        self.background = Linear(c.shape_style_dim, c.feature_dim) if plain else None
        is_field = c.background == "field"
        width = c.nerf_width // 2
        self.surroundings = Surroundings(width, c.appearance_style_dim) if is_field else None
        self._register_means(c.shape_style_dim, c.appearance_style_dim)

    def mapped(self, latents: Latents) -> Styles:
        """The mapped codes w_s = m_s(z_s) and w_a = m_a(z_a)."""
        return Styles(
            self.shape_mapping(latents.shape), self.appearance_mapping(latents.appearance)
        )

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """Renders any rays; see `RayGenerator.render_rays`."""
        field = self.render_features(styles.shape, rays, sampling, draws)
        visible = field._replace(feature=self.in_sight(field.feature, field.opacity))
        feature, spread = _distinct(visible)
        rgb = spread(self.inr(feature, styles.appearance))
        aux_rgb = spread(self.aux_colour(feature, styles.appearance))
        rgb, aux_rgb = self.in_front(rgb, aux_rgb, field.opacity, styles, rays, draws)
        return RayOutput(rgb=rgb, aux_rgb=aux_rgb, **field._asdict())

    def in_sight(
        self, feature: Float[Tensor, "batch rays feature"], opacity: Float[Tensor, "batch rays"]
    ) -> Float[Tensor, "batch rays feature"]:
        """What the implicit network paints: V_r, or V_r / Σw with the background "field".

        There a colour is mixed by the opacity, and must not depend on it as well. 0 for nothing.
        """
        if self.surroundings is None:
            return feature
        return feature / opacity.clamp(min=torch.finfo(opacity.dtype).eps)[..., None]

    def in_front(
        self,
        rgb: Float[Tensor, "batch rays 3"],
        aux_rgb: Float[Tensor, "batch rays 3"],
        opacity: Float[Tensor, "batch rays"],
        styles: Styles,
        rays: Rays,
        draws: RayDraws | None = None,
    ) -> tuple[Float[Tensor, "batch rays 3"], Float[Tensor, "batch rays 3"]]:
        """Main and auxiliary colours with the background "field" behind them; else as they are.

        The background takes the appearance style of the first block.
        """
        if self.surroundings is None:
            return rgb, aux_rgb
        directions = rays.directions
        if draws is not None and draws.turn is not None:
            directions = turned(directions, draws.turn)
        w = styles.appearance
        behind = self.surroundings(directions, w if isinstance(w, Tensor) else w[0])
        gray = luminance(behind, -1) if self.config.aux_luminance else behind
        opacity = opacity[..., None]
        return torch.lerp(behind, rgb.to(behind), opacity), torch.lerp(gray, aux_rgb, opacity)

    def aux_colour(
        self,
        feature: Float[Tensor, "batch rows feature"],
        w: StyleCodes | Sequence[StyleCodes],
    ) -> Float[Tensor, "batch rows 3"]:
        """Colours of the auxiliary head, in [-1, 1]; gray with `aux_luminance`.

        Of one appearance style per block, the last one's colours count.
        """
        with without_autocast(self.device):
            colour = self.aux_head(feature)
            if self.aux_palette is not None:
                last = w if isinstance(w, Tensor) else w[-1]
                palette = self.aux_palette(last).unflatten(1, (-1, 3))
                colour = torch.baddbmm(colour, feature.to(palette.dtype), palette)
            colour = torch.tanh(colour)
        return luminance(colour, -1) if self.config.aux_luminance else colour

    @property
    def style_blocks(self) -> int:
        return self.networks.inr_blocks

    def activations_per_ray(self, sampling: Sampling) -> int:
        compiled = self.nerf.marches and not torch.is_grad_enabled()
        samples = 0 if compiled else sampling.coarse + sampling.fine
        return max(samples * self.networks.nerf_width * 2, self.networks.inr_width * 4)

    def prepare_for(
        self, styles: Styles, samples: float, precision: Precision = "auto"
    ) -> Styles | Prepared:
        pays = len(styles) == 1 and samples > 2 * CELLS**3 and not torch.is_grad_enabled()
        return self.prepare(styles, precision) if pays else styles

    def prepare(self, styles: Styles, precision: Precision = "auto") -> PreparedSubject:
        """One subject made ready for many views: pass it to `render` in the place of styles.

        Raises:
            UserError: if there is more than one style.
        """
        return PreparedSubject(self, styles, precision)


def _distinct(
    field: FieldOutput,
) -> tuple[Float[Tensor, "batch rows feature"], Callable[[Tensor], Tensor]]:
    """Features of the rays that meet something and, last, of one that meets nothing.

    Also the function that gives every ray the colour of its row. All rays are rows where nearly all
    meet something, and on the meta device, whose tensors have no values.
    """
    meets, count = field.opacity > 0, field.opacity.shape[1]
    most = volume.most_marked(meets)
    if most >= _MOST_MEETING * count:
        return field.feature, lambda rows: rows
    # no image has more than `most` rays that meet something, so the next one meets nothing
    index = volume.marked_first(meets, most + 1)[..., None]

    def spread(rows: Tensor) -> Tensor:
        everywhere = rows[:, -1:].expand(-1, count, -1)
        return everywhere.scatter(1, index.expand_as(rows), rows)

    return torch.take_along_dim(field.feature, index, dim=1), spread
