"""Fig. 7 and Proposition 1: positional encoding brings a point nearer to its mirror image than to its neighbour."""

from __future__ import annotations

import math

import torch
from common import Result
from matplotlib.figure import Figure

from cips3d.models.embedding import positional_encoding

OCTAVES = range(13)


def circle(degrees: float) -> torch.Tensor:
    """The point of the unit circle of the xz plane at that angle from the x axis."""
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), 0.0, math.sin(angle)], dtype=torch.float64)


def main() -> None:
    result = Result(
        "figure_7",
        "After positional encoding with L = 10, a is farther from its neighbour b than from its mirror image c (Eq. 9)",
    )
    points = circle(70), circle(80), circle(110)
    encoded = [[positional_encoding(x, octaves) for x in points] for octaves in OCTAVES]
    neighbour = [float((a - b).norm()) for a, b, _ in encoded]
    mirror = [float((a - c).norm()) for a, _, c in encoded]
    figure = Figure(figsize=(5, 3.2))
    axes = figure.subplots()
    axes.plot(OCTAVES, neighbour, "o-", label="d(T(a), T(b)), neighbour")
    axes.plot(OCTAVES, mirror, "s-", label="d(T(a), T(c)), mirror image")
    axes.set_xlabel("octaves L")
    axes.set_ylabel("distance")
    axes.legend()
    crossing = next((octaves for octaves in OCTAVES if neighbour[octaves] > mirror[octaves]), None)
    values = {
        "octaves": list(OCTAVES),
        "neighbour": neighbour,
        "mirror": mirror,
        "first_octaves_with_mirror_nearer": crossing,
    }
    result.write(values, neighbour[0] < mirror[0] and neighbour[10] > mirror[10], figure)


if __name__ == "__main__":
    main()
