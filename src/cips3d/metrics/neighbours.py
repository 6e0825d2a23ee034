"""Fidelity and diversity apart: precision, recall, density and coverage of two sets of features.

The ball of a point has the distance to its k-th nearest neighbour in its own set as its radius.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["precision", "recall", "density", "coverage"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: k: 3 for precision and recall (Kynkäänniemi et al. 2019), 5 for the others (Naeem et al. 2020).
NEAREST: dict[Kind, int] = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
#: Points whose distances to all others are in memory at a time.
_ROWS = 1024


def neighbourhood(
    kind: Kind, real: Float[Tensor, "real width"], fake: Float[Tensor, "fake width"]
) -> float:
    """One of the four measures, from features on one device.

    - precision: share of generated images in the ball of any real one (fidelity);
    - recall: share of real images in the ball of any generated one (diversity);
    - density: mean number of real balls around a generated image, divided by k (fidelity; 1 for
      equal distributions, more if generated images are where real ones are dense);
    - coverage: share of real images with a generated one in their ball (diversity; 1 − 2⁻ᵏ, about
      0.97, for equal distributions of equal size).

    Each set has more than k points (`NEAREST`).
    """
    k = NEAREST[kind]
    match kind:
        case "precision":
            found = [inside.any(dim=1) for inside in _inside(fake, real, k)]
        case "recall":
            found = [inside.any(dim=1) for inside in _inside(real, fake, k)]
        case "density":
            found = [inside.sum(dim=1) / k for inside in _inside(fake, real, k)]
        case "coverage":
            radii = _radii(real, k)
            nearest = torch.cat([d.amin(dim=1) for d in _distances(real, fake)])
            found = [nearest <= radii]
    return float(torch.cat(found).double().mean())


def _inside(points: Tensor, centres: Tensor, k: int) -> Iterator[Tensor]:
    """Which centres' balls each point lies in, some rows of (points, centres) at a time."""
    radii = _radii(centres, k)
    return (distances <= radii for distances in _distances(points, centres))


def _radii(points: Tensor, k: int) -> Float[Tensor, " count"]:
    """The distance of each point to its k-th nearest other one."""
    # the nearest of all is the point itself
    return torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(points, points)])


def _distances(a: Tensor, b: Tensor) -> Iterator[Float[Tensor, "rows count"]]:
    """Euclidean distances of some rows of `a` at a time to all of `b`."""
    return (torch.cdist(part.double(), b.double()) for part in a.split(_ROWS))
