"""Fig. 7, Proposition 1: positional encoding moves a point closer to its mirror image.

With enough octaves, the mirror image is nearer than a close neighbour.
"""

from __future__ import annotations

import math

import torch
from common import Result
from matplotlib.figure import Figure

from cips3d.models.embedding import positional_encoding

OCTAVES = range(13)


def circle(degrees: float) -> torch.Tensor:
    """The point of the unit circle in the xz plane at that angle from the x axis."""
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), 0.0, math.sin(angle)], dtype=torch.float64)


def main() -> None:
    claim = (
        "After positional encoding with L = 10, a point is nearer to its mirror image than to its "
        "neighbour (Eq. 9)"
    )
    result = Result("figure_7", claim)
    points = circle(70), circle(80), circle(110)
    encoded = [[positional_encoding(x, octaves) for x in points] for octaves in OCTAVES]
    neighbour = [float((a - b).norm()) for a, b, _ in encoded]
    mirror = [float((a - c).norm()) for a, _, c in encoded]
    figure = Figure(figsize=(5, 3.2))
    axes = figure.subplots()
    axes.plot(OCTAVES, neighbour, "o-", label="d(T(a), T(b)), neighbour")
    axes.plot(OCTAVES, mirror, "s-", label="d(T(a), T(c)), mirror image")
    axes.set(xlabel="octaves L", ylabel="distance")
    axes.legend()
    values = {
        "octaves": list(OCTAVES),
        "neighbour": neighbour,
        "mirror": mirror,
        "first_octaves_with_nearer_mirror": next(
            (octaves for octaves in OCTAVES if neighbour[octaves] > mirror[octaves]), None
        ),
    }
    result.write(values, neighbour[0] < mirror[0] and neighbour[10] > mirror[10], figure)


if __name__ == "__main__":
    main()
