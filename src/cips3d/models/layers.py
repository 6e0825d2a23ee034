"""Mapping networks, FiLM-SIREN and ModFC layers (paper Eq. 2, Fig. 2a, 2d and 4)."""

from __future__ import annotations

import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.ops.sine import sine, sine_

LEAKY_SLOPE = 0.2


def luminance(rgb: Tensor, dim: int) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in the place of each of the three colours."""
    red, green, blue = rgb.unbind(dim)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(dim).expand_as(rgb)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which coordinates, sines and densities keep the parameters' precision."""
    if torch.amp.is_autocast_available(device.type):  # the meta device has none
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type in which products are computed under autocast; None without it."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def widened(dtype: torch.dtype) -> torch.dtype:
    """The type in which parameters of `dtype` compute: 16 bits hold neither codes nor depths."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Linear):
    """A linear layer whose parameters may be stored in 16 bits; it computes in 32, or more.

    Autocast still makes it compute in 16 bits.
    """

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        dtype = widened(torch.promote_types(x.dtype, self.weight.dtype))
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class LayerNorm(nn.LayerNorm):
    """As `Linear`, for normalisation."""

    def forward(self, x: Float[Tensor, "batch w"]) -> Float[Tensor, "batch w"]:
        dtype = widened(torch.promote_types(x.dtype, self.weight.dtype))
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


class MappingNetwork(nn.Module):
    """m_s or m_a: maps a latent code z to a style code w (paper Fig. 2a, 2d).

    z is normalised to unit mean square. `layers` linear layers follow, with LeakyReLU(0.2) between
    them. With `norm`, a LayerNorm follows each of them, as in the authors' appearance mapping.
    """

    def __init__(self, in_dim: int, out_dim: int, layers: int, norm: bool) -> None:
        super().__init__()
        widths = [in_dim] + [out_dim] * layers
        self.linears = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(LayerNorm(out_dim) for _ in range(layers)) if norm else None
        for name, parameter in self.linears.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, a=LEAKY_SLOPE)

    def forward(self, z: Float[Tensor, "batch z"]) -> Float[Tensor, "batch w"]:
        # 16 bits would move the codes by half a percent, between training and evaluation too
        with without_autocast(z.device):
            x = z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-8)
            for i, linear in enumerate(self.linears):
                x = linear(F.leaky_relu(x, LEAKY_SLOPE) if i > 0 else x)
                if self.norms is not None:
                    x = self.norms[i](x)
        return x


class FilmSiren(nn.Module):
    """sin(γ ⊙ (W x + b) + β) with γ = 15·A_γ(w) + 30 and β = A_β(w) (paper Eq. 2).

    The constants are the authors'. The sine's argument is large (gains near 30) and needs the
    parameters' own precision: call this outside autocast.
    """

    def __init__(self, in_dim: int, out_dim: int, style_dim: int) -> None:
        super().__init__()
        self.linear = Linear(in_dim, out_dim)
        self.gain = Linear(style_dim, out_dim)
        self.phase = Linear(style_dim, out_dim)
        bound = math.sqrt(6 / in_dim) / 25
        nn.init.uniform_(self.linear.weight, -bound, bound)
        with torch.no_grad():
            self.gain.weight.mul_(0.25)
            self.phase.weight.mul_(0.25)

    def folded(
        self, w: Float[Tensor, "batch w"]
    ) -> tuple[Float[Tensor, "batch in_dim out"], Float[Tensor, "batch 1 out"]]:
        """M and c of each style that make the layer sin(x M + c), with γ folded in."""
        gain = 15 * self.gain(w) + 30
        matrix = self.linear.weight.t() * gain[:, None, :]
        offset = gain * self.linear.bias + self.phase(w)
        return matrix, offset[:, None, :]

    def forward(
        self, x: Float[Tensor, "batch points in"], w: Float[Tensor, "batch w"]
    ) -> Float[Tensor, "batch points out"]:
        matrix, offset = self.folded(w)
        argument = torch.bmm(x, matrix)
        return sine(argument, offset) if torch.is_grad_enabled() else sine_(argument, offset)


class ModulatedLinear(nn.Module):
    """The weights of ModFC (paper Section 3.2, Fig. 4): s = A(w) + 1, W' = W ⊗ s, Y = X W''."""

    def __init__(self, in_dim: int, out_dim: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.affine = Linear(style_dim, in_dim)
        nn.init.kaiming_normal_(self.weight, a=LEAKY_SLOPE)
        nn.init.kaiming_normal_(self.affine.weight, a=LEAKY_SLOPE)

    def modulated_weight(self, w: Float[Tensor, "batch w"]) -> Float[Tensor, "batch in_dim out"]:
        """W'' = W' ⊗ (Σ_in W'² + ε)^(−1/2), the demodulated weights of each style."""
        # not in 16 bits: all pixels would share the error of a style
        with without_autocast(w.device):
            weight = self.weight * (self.affine(w) + 1)[:, :, None]
            return weight * torch.rsqrt(weight.square().sum(dim=1, keepdim=True) + 1e-8)


def rgb_head(in_dim: int, divisor: float) -> Linear:
    """A linear layer to three colours with initial weights from U(±√(6/in_dim)/divisor)."""
    head = Linear(in_dim, 3)
    bound = math.sqrt(6 / in_dim) / divisor
    nn.init.uniform_(head.weight, -bound, bound)
    return head
