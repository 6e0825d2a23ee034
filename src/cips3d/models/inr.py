"""The deep implicit network (paper Section 3.2, Fig. 2c): from feature and style to colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.config import InrConfig
from cips3d.models.layers import LEAKY_SLOPE, ModulatedLinear, rgb_head, without_autocast


class InrBlock(nn.Module):
    """Two ModFC layers, each followed by LeakyReLU(0.2)."""

    def __init__(self, in_dim: int, out_dim: int, style_dim: int) -> None:
        super().__init__()
        self.first = ModulatedLinear(in_dim, out_dim, style_dim)
        self.second = ModulatedLinear(out_dim, out_dim, style_dim)

    def forward(
        self, x: Float[Tensor, "batch rays in"], w: Float[Tensor, "batch w"]
    ) -> Float[Tensor, "batch rays out"]:
        x = F.leaky_relu(self.first(x, w), LEAKY_SLOPE, inplace=True)
        return F.leaky_relu(self.second(x, w), LEAKY_SLOPE, inplace=True)


class ImplicitNetwork(nn.Module):
    """(V_r, w_a) ↦ rgb, pixel by pixel: blocks of two ModFC layers, whose tRGB layers add up."""

    def __init__(self, config: InrConfig) -> None:
        super().__init__()
        self.config = config
        width, count = config.inr_width, config.inr_blocks
        in_dims = [config.feature_dim] + [width] * (count - 1)
        self.blocks = nn.ModuleList(
            InrBlock(in_dim, width, config.appearance_style_dim) for in_dim in in_dims
        )
        self.to_rgb = nn.ModuleList(
            rgb_head(width, 100) for _ in range(config.rgb_from_block, count)
        )

    def forward(
        self,
        x: Float[Tensor, "batch rays feature"],
        w: Float[Tensor, "batch w"] | Sequence[Float[Tensor, "batch w"]],
    ) -> Float[Tensor, "batch rays 3"]:
        """Colours, in [-1, 1] with tanh, from features V_r and one style, or one per block."""
        styles = [w] * len(self.blocks) if isinstance(w, Tensor) else w
        rgb: Tensor | None = None
        for i, (block, style) in enumerate(zip(self.blocks, styles, strict=True)):
            y = block(x, style)
            x = x + y if i >= self.config.residual_from_block else y
            if i >= self.config.rgb_from_block:
                part = self._colour(i, x)
                rgb = part if rgb is None else rgb + part
        assert rgb is not None  # InrConfig guarantees rgb_from_block < inr_blocks
        return torch.tanh(rgb) if self.config.rgb_tanh else rgb

    def _colour(self, block: int, x: Tensor) -> Tensor:
        """The tRGB layer behind a block.

        Not in 16 bits: the gradient of the hyperbolic tangent would vanish from 3.5 on.
        """
        with without_autocast(x.device):
            return self.to_rgb[block - self.config.rgb_from_block](x)

    def folded(
        self, w: Float[Tensor, "one w"] | Sequence[Float[Tensor, "one w"]], dtype: torch.dtype
    ) -> Callable[[Float[Tensor, "rays feature"]], Float[Tensor, "rays 3"]]:
        """The network of a single style with modulation folded into plain weights, in `dtype`.

        Hidden layers are computed in `dtype`, colours and their sum in 32 bits, or more.
        """
        styles = [w] * len(self.blocks) if isinstance(w, Tensor) else w
        layers = [
            [layer.modulated_weight(style)[0].to(dtype) for layer in (block.first, block.second)]
            for block, style in zip(self.blocks, styles, strict=True)
            if isinstance(block, InrBlock)
        ]
        config = self.config

        def paint(feature: Float[Tensor, "rays feature"]) -> Float[Tensor, "rays 3"]:
            x = feature.to(dtype)
            rgb = feature.new_zeros(len(feature), 3)
            for i, matrices in enumerate(layers):
                y = x
                for matrix in matrices:
                    y = F.leaky_relu_(y @ matrix, LEAKY_SLOPE)
                x = x + y if i >= config.residual_from_block else y
                if i >= config.rgb_from_block:
                    rgb = rgb.add_(self._colour(i, x))
            return rgb.tanh_() if config.rgb_tanh else rgb

        return paint
