"""Compiled loops that choose samples, for CPUs; `cips3d.models.volume` has the plain reference."""

from __future__ import annotations

import typing

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cips3d.models.ops.kernels import kernel


def marked_first(marked: Bool[Tensor, "batch n"], most: int) -> Int[Tensor, "batch most"]:
    """`volume.marked_first`."""
    out = torch.empty(len(marked), most, dtype=torch.int64, device="cpu")
    _marked_first(marked.numpy(), out.numpy())
    return out


def invert_cdf(
    edges: Float[Tensor, "*rays edges"],
    weights: Float[Tensor, "*rays bins"],
    u: Float[Tensor, "*rays fine"],
) -> Float[Tensor, "*rays fine"]:
    """`volume.invert_cdf` in float32."""
    out = torch.empty_like(u)
    arrays = (x.numpy().reshape(-1, x.shape[-1]) for x in (edges, weights, u, out))
    _invert_cdf(*arrays)
    return out


@typing.no_type_check
@kernel()
def _marked_first(marked, out):
    most = out.shape[1]
    for b in range(len(marked)):
        found = 0
        for wanted in (True, False):
            for i in range(marked.shape[1]):
                if found == most:
                    break
                if marked[b, i] == wanted:
                    out[b, found] = i
                    found += 1


@typing.no_type_check
@kernel()
def _invert_cdf(edges, weights, u, out):
    cdf = np.empty(edges.shape[1], np.float32)
    for r in range(len(edges)):
        invert_row(edges[r], weights[r], u[r], cdf, out[r])


@typing.no_type_check
@kernel()
def invert_row(edges, weights, u, cdf, out):
    """`volume.invert_cdf` of one ray; `cdf` has room for as many numbers as `edges`."""
    bins, total = len(weights), np.float32(0)
    for i in range(bins):
        total += weights[i] + np.float32(1e-5)
    cdf[0] = np.float32(0)
    for i in range(bins):
        cdf[i + 1] = cdf[i] + (weights[i] + np.float32(1e-5)) / total
    for j in range(len(u)):
        above = 0
        while above <= bins and cdf[above] <= u[j]:
            above += 1
        low, high = max(above - 1, 0), min(above, bins)
        width = cdf[high] - cdf[low]
        fraction = (u[j] - cdf[low]) / (width if width >= np.float32(1e-5) else np.float32(1))
        out[j] = edges[low] + fraction * (edges[high] - edges[low])
