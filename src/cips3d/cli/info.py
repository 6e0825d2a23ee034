"""`cips3d info`: what a preset or a model costs, and what geometry a model has learned."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import Derived, at_least
from cips3d.errors import UserError
from cips3d.metrics.geometry import geometry_report
from cips3d.models.cost import Cost, discriminator_cost, generator_cost
from cips3d.training.presets import PRESETS, preset


def info(what: str, /, resolution: Derived[int] = None, geometry: bool = False) -> None:
    """Print parameters, floating-point operations and activations of a training preset or of a model.

    `cips3d plan` tells what memory and time the preset's training takes.

    Args:
        what: the name of a preset, or a model ("heads", which comes with the package, a file, a folder or a hub id).
        resolution: side of a picture in pixels. Default: the one that it is made for.
        geometry: also measure a model's geometry against the embedded heads (for models trained on them).
    """
    at_least(1, resolution=resolution)
    if what in PRESETS:
        if geometry:
            raise UserError(
                f"--geometry: {what} is a preset, which has learned nothing yet; give a model"
            )
        config = preset(what)
        side = resolution or config.stages[-1].resolution
        judges = {"discriminator": config.discriminator}
        if side in config.aux_discriminator.channels:  # at the largest sides there is none
            judges["auxiliary"] = config.aux_discriminator
        costs = {name: discriminator_cost(judge, side) for name, judge in judges.items()}
        print(
            _table(
                f"{what} at {side}²", {"generator": generator_cost(config.generator, side)} | costs
            )
        )
        return
    if "/" not in what and what not in pretrained.BUNDLED and not Path(what).exists():
        raise UserError(
            f"{what}: neither a preset ({', '.join(PRESETS)}) nor a model ({', '.join(pretrained.BUNDLED)}, a file, a folder)"
        )
    generator = pretrained.load(what)
    side = resolution or generator.config.resolution
    print(_table(f"{what} at {side}²", {"generator": generator_cost(generator.config, side)}))
    if geometry:
        print("\n".join(geometry_report(generator).lines()))


def _table(title: str, costs: dict[str, Cost]) -> str:
    rows = [f"{title:<24}{'parameters':>14}{'GFLOP/picture':>16}{'MiB kept/picture':>18}"]
    for name, cost in costs.items():
        rows.append(
            f"{name:<24}{cost.parameters:>14,}{cost.flops / 1e9:>16.3f}{cost.saved_bytes / 2**20:>18.1f}"
        )
    return "\n".join(rows)
