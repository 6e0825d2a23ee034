"""The tables of `cips3d info`."""

from __future__ import annotations

from cips3d import pretrained
from cips3d.cli.geometry import geometry_lines
from cips3d.models.cost import Cost, discriminator_cost, generator_cost
from cips3d.training.presets import preset


def preset_lines(name: str, resolution: int | None) -> list[str]:
    """The cost of a preset's networks, per image."""
    config = preset(name)
    side = resolution or config.stages[-1].resolution
    costs = {
        "generator": generator_cost(config.generator, side),
        "discriminator": discriminator_cost(config.discriminator, side),
    }
    if side in config.aux_discriminator.channels:  # the largest sides have none
        costs["auxiliary"] = discriminator_cost(config.aux_discriminator, side)
    return _table(f"{name} at {side}²", costs)


def model_lines(name: str, resolution: int | None, geometry: bool) -> list[str]:
    """The cost of a model per image, and its geometry if asked for."""
    generator = pretrained.load(name)
    side = resolution or generator.config.resolution
    lines = _table(f"{name} at {side}²", {"generator": generator_cost(generator.config, side)})
    return lines + (geometry_lines(generator) if geometry else [])


def _table(title: str, costs: dict[str, Cost]) -> list[str]:
    rows = [f"{title:<24}{'parameters':>14}{'GFLOP/image':>16}{'MiB kept/image':>18}"]
    for name, cost in costs.items():
        flops, kept = cost.flops / 1e9, cost.saved_bytes / 2**20
        rows.append(f"{name:<24}{cost.parameters:>14,}{flops:>16.3f}{kept:>18.1f}")
    return rows
