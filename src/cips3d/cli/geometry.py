"""The geometry figures that `cips3d demo` and `cips3d info` print."""

from __future__ import annotations

from cips3d.metrics.geometry import geometry_report
from cips3d.models.protocol import ImageGenerator


def geometry_lines(generator: ImageGenerator) -> list[str]:
    """One line per figure, for a model of the embedded heads."""
    return geometry_report(generator).lines()
