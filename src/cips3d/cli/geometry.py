"""The geometry figures that `cips3d demo` and `cips3d info` print."""

from __future__ import annotations

from cips3d.heads import SyntheticHeads
from cips3d.metrics.evaluation import geometry_table
from cips3d.models.protocol import ImageGenerator


def geometry_lines(generator: ImageGenerator) -> list[str]:
    """One line per figure, for a model of the embedded heads."""
    heads = SyntheticHeads(resolution=generator.config.resolution)
    return geometry_table(generator, heads).lines()
