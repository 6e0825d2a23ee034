"""Coordinate embeddings, fixed and learned (paper Section 3.3, Eq. 5 to 7, Table 2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.layers import Linear
from cips3d.models.ops.sine import sine


def positional_encoding(x: Float[Tensor, "*shape 3"], octaves: int) -> Float[Tensor, "*shape out"]:
    """T(x; L) of Eq. 7: x, then sin(2^l π x_k) and cos(2^l π x_k) for l < L = `octaves`."""
    frequencies = math.pi * 2.0 ** torch.arange(octaves, dtype=x.dtype, device=x.device)
    angles = x[..., None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([x, waves.flatten(-3)], dim=-1)


class FixedEmbedding(nn.Module):
    """Positional encoding with a fixed number of octaves; no parameters."""

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.out_dim = 3 + 6 * octaves

    def forward(self, x: Float[Tensor, "batch points 3"]) -> Float[Tensor, "batch points out"]:
        return positional_encoding(x, self.octaves)


class LearnedEmbedding(nn.Module):
    """sin(30 (W x + b)): a fully connected layer and a sine, independent of style (Section 3.3).

    The coordinates x span about [-1, 1]. The factor of 30 is SIREN's.
    """

    def __init__(self, out_dim: int, in_dim: int = 3) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.linear = Linear(in_dim, out_dim)
        bound = math.sqrt(6 / in_dim) / 25
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "batch points in"]) -> Float[Tensor, "batch points out"]:
        weight, bias = self.linear.weight.to(x.dtype), self.linear.bias.to(x.dtype)
        return sine(30 * F.linear(x, weight), (30 * bias).repeat(len(x), 1, 1))
