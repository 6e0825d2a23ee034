"""The deep implicit network (paper Section 3.2, Fig. 2c): from feature and style to colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.config import InrConfig
from cips3d.models.layers import (
    LEAKY_SLOPE,
    ModulatedLinear,
    autocast_dtype,
    rgb_head,
    widened,
    without_autocast,
)

#: Bytes of a hidden layer of the rows that are painted at a time without gradients on CPUs, so that
#: they stay in a core's cache: products of 512 columns are a quarter faster then.
CACHE_BYTES = 2 * 2**20


class InrBlock(nn.Module):
    """Two ModFC layers, each followed by LeakyReLU(0.2)."""

    def __init__(self, in_dim: int, out_dim: int, style_dim: int) -> None:
        super().__init__()
        self.first = ModulatedLinear(in_dim, out_dim, style_dim)
        self.second = ModulatedLinear(out_dim, out_dim, style_dim)

    def modulated(self, w: Float[Tensor, "batch w"]) -> list[Tensor]:
        """W'' of both layers, (B, in, out)."""
        return [self.first.modulated_weight(w), self.second.modulated_weight(w)]

    def forward(
        self, x: Float[Tensor, "batch rays in"], weights: list[Tensor]
    ) -> Float[Tensor, "batch rays out"]:
        for weight in weights:
            x = F.leaky_relu(torch.bmm(x, weight), LEAKY_SLOPE, inplace=True)
        return x


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
        return self.folded(w)(x)

    def folded(
        self,
        w: Float[Tensor, "batch w"] | Sequence[Float[Tensor, "batch w"]],
        dtype: torch.dtype | None = None,
    ) -> Callable[[Float[Tensor, "batch rays feature"]], Float[Tensor, "batch rays 3"]]:
        """The network of these styles, with modulation folded into plain weights once.

        Hidden layers are computed in `dtype`, by default autocast's or the parameters'; colours and
        their sum in 32 bits, or more.
        """
        styles = [w] * len(self.blocks) if isinstance(w, Tensor) else w
        dtype = dtype or autocast_dtype(styles[0].device) or widened(styles[0].dtype)
        weights = [
            [x.to(dtype) for x in block.modulated(style)]
            for block, style in zip(self.blocks, styles, strict=True)
            if isinstance(block, InrBlock)
        ]

        def paint(x: Float[Tensor, "batch rays feature"]) -> Float[Tensor, "batch rays 3"]:
            x = x.to(dtype)
            if torch.is_grad_enabled() or not x.is_cpu:
                return self._through(x, weights)
            rows = max(1, CACHE_BYTES // (4 * self.config.inr_width * max(1, len(x))))
            return torch.cat([self._through(part, weights) for part in x.split(rows, 1)], dim=1)

        return paint

    def _through(
        self, x: Float[Tensor, "batch rays feature"], weights: list[list[Tensor]]
    ) -> Float[Tensor, "batch rays 3"]:
        rgb: Tensor | None = None
        for i, block in enumerate(self.blocks):
            y = block(x, weights[i])
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
