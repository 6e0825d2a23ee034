"""The table of `cips3d plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from cips3d.cli.options import is_preset
from cips3d.cli.output import tracked
from cips3d.configuration import read_json, with_settings
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.models.cost import device_memory
from cips3d.training import planning
from cips3d.training.presets import preset
from cips3d.training.recipe import Stage, TrainConfig, check_batches


def plan_lines(
    what: str,
    path: Path,
    gpus: int,
    tflops: float | None,
    memory: float | None,
    settings: Sequence[str],
) -> Iterator[str]:
    """The lines; arguments as in `cips3d plan`, and `path` to a configuration file."""
    config = preset(what) if is_preset(what) else read_json(TrainConfig, path)
    config = with_settings(config, settings, "--set")
    check_batches(config.stages, gpus, "--gpus")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = device_memory(device, gpus) if memory is None else memory * 2**30
    speed = planning.measured_speed(config, gpus) if tflops is None else tflops * 1e12
    source = "measured here" if tflops is None else "given"
    machines = f"{gpus} x {speed / 1e12:,.2f} TFLOP/s ({source}), {limit / 2**30:,.0f} GiB each"
    yield f"{what} on {machines}, precision {config.precision}"
    for name, numbers in planning.parameters(config).items():
        yield f"  {name:<24}{numbers:>14,} parameters"
    memory_title = f"{'GiB per GPU, by gradients':^36}"
    yield ""
    yield (
        f"{'stage':<8}{'kimg':>8}{'batch':>7}{'TFLOP/':>9}{memory_title}{'images/s':>11}{'days':>8}"
    )
    yield f"{'':8}{'':8}{'/GPU':>7}{'image':>9}{'full':>12}{'partial':>12}{'checkpt.':>12}"
    shown = days = 0.0
    share = planning.visible_share(config)
    for stage in tracked(config.stages, "planning", len(config.stages)):
        costs = {
            mode: planning.step_cost(
                config, planning.in_mode(stage, mode), stage.batch // gpus, int(limit), share, gpus
            )
            for mode in get_args(planning.Mode)
        }
        rate = gpus * speed / costs[stage.gradients].flops
        most = stage.kimg if stage.minutes is None else rate * stage.minutes * 60 / 1000
        kimg = min(stage.kimg, most)
        shown, days = shown + kimg, days + kimg * 1000 / rate / 86_400
        yield _row(replace(stage, kimg=kimg), gpus, costs, limit, rate)
    yield (
        "* the stage's own gradients; ! exceeds the memory. "
        "Partial: the stage's number of gradient rays, or a quarter."
    )
    yield f"total: {shown:,.0f} thousand images shown in {days:,.2f} days"
    yield _dataset(config, shown)


def _row(
    stage: Stage,
    gpus: int,
    costs: dict[planning.Mode, planning.StepCost],
    limit: float,
    rate: float,
) -> str:
    cells = ""
    for mode, cost in costs.items():
        marks = "*" * (mode == stage.gradients) + "!" * (cost.peak_bytes > limit)
        cells += f"{cost.peak_bytes / 2**30:>10.2f}{marks:<2}"
    days = stage.kimg * 1000 / rate / 86_400
    flops = costs[stage.gradients].flops / 1e12
    side, batch = f"{stage.resolution}²", stage.batch // gpus
    return f"{side:<8}{stage.kimg:>8,.0f}{batch:>7}{flops:>9.3f}{cells}{rate:>11,.1f}{days:>8.2f}"


def _dataset(config: TrainConfig, kimg: float) -> str:
    side = max(stage.resolution for stage in config.stages)
    try:
        images = len(open_dataset(config.data, side))
    except UserError as error:
        if Path(config.data).exists():
            return f"dataset {error}"
        size = f"{3 * side**2 / 2**10:,.0f} KiB uncompressed at {side}²"
        return f"dataset {config.data}: not found here; an image takes {size}"
    size = f"{3 * side**2 * images / 2**30:,.2f} GiB uncompressed at {side}²"
    times = f"{1000 * kimg / images:,.1f} times"
    return f"dataset {config.data}: {images:,} images, {size}; each is shown {times}"
