"""`cips3d info`: what a preset or a model costs, and what geometry a model has learned."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import Derived, at_least
from cips3d.errors import UserError
from cips3d.metrics.geometry import geometry_report
from cips3d.models.cost import Cost, discriminator_cost, generator_cost
from cips3d.training.presets import PRESETS, preset


def info(what: str, /, resolution: Derived[int] = None, batch: Derived[int] = None, geometry: bool = False) -> None:
    """Print parameters, floating-point operations and memory of a training preset or of a model.

    Args:
        what: the name of a preset, or a model ("heads", which comes with the package, a file, a folder or a hub id).
        resolution: side of a picture in pixels. Default: the one that it is made for.
        batch: pictures in memory at a time while training. Default: the preset's.
        geometry: also measure a model's geometry against the embedded heads (for models trained on them).
    """
    at_least(1, resolution=resolution, batch=batch)
    if what in PRESETS:
        if geometry:
            raise UserError(f"--geometry: {what} is a preset, which has learned nothing yet; give a model")
        _print_preset(what, resolution, batch)
        return
    if "/" not in what and what not in pretrained.BUNDLED and not Path(what).exists():
        raise UserError(
            f"{what}: neither a preset ({', '.join(PRESETS)}) nor a model ({', '.join(pretrained.BUNDLED)}, a file, a folder)"
        )
    if batch is not None:
        raise UserError(f"--batch: {what} is a model, which trains no more; give it with the name of a preset")
    generator = pretrained.load(what)
    side = resolution or generator.config.resolution
    print(_table(f"{what} at {side}²", {"generator": generator_cost(generator.config, side)}))
    if geometry:
        print("\n".join(geometry_report(generator).lines()))


def _print_preset(name: str, resolution: int | None, batch: int | None) -> None:
    config = preset(name)
    last = config.stages[-1]
    side, pictures = resolution or last.resolution, batch or last.batch
    costs = {
        "generator": generator_cost(config.generator, side),
        "discriminator": discriminator_cost(config.discriminator, side),
        "auxiliary": discriminator_cost(config.aux_discriminator, side),
    }
    print(_table(f"{name} at {side}²", costs))
    judged = costs["discriminator"], costs["auxiliary"]
    # weights, gradient, two Adam moments; the generator has its average besides
    state = 4 * (5 * costs["generator"].parameters + 4 * sum(cost.parameters for cost in judged))
    activations = pictures * (costs["generator"].saved_bytes + 2 * sum(cost.saved_bytes for cost in judged))
    print(
        f"training with {pictures} pictures at a time: about {(state + activations) / 2**20:,.0f} MiB "
        f"(weights and optimisers {state / 2**20:,.0f}, activations {activations / 2**20:,.0f})"
    )


def _table(title: str, costs: dict[str, Cost]) -> str:
    rows = [f"{title:<24}{'parameters':>14}{'GFLOP/picture':>16}{'MiB kept/picture':>18}"]
    for name, cost in costs.items():
        rows.append(f"{name:<24}{cost.parameters:>14,}{cost.flops / 1e9:>16.3f}{cost.saved_bytes / 2**20:>18.1f}")
    return "\n".join(rows)
