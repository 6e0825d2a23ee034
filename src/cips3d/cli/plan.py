"""`cips3d plan`: what a training run will cost, before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from cips3d.cli.options import Derived, Settings, at_least, positive
from cips3d.configuration import read_json, with_settings
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.training import gradients
from cips3d.training import planning as plans
from cips3d.training.presets import PRESETS, preset
from cips3d.training.recipe import Stage, TrainConfig, check_batches


def plan(
    what: str,
    /,
    gpus: int = 1,
    tflops: Derived[float] = None,
    memory: Derived[float] = None,
    set: Settings = (),
) -> None:
    """Print what a training run will cost: operations, memory for each way of gradients, images a second and days.

    The steps are carried out on shapes only, so this takes a minute or less and no data or GPU. Memory is what tensors need; a
    framework and its libraries add to it.

    Args:
        what: the name of a preset, a config.json or a run directory.
        gpus: GPUs, or processes on CPUs, that share each batch.
        tflops: 10¹² operations a second that one of them reaches in training, which is well below its data sheet's figure.
            Default: measured on this machine in a few seconds.
        memory: GiB of each. Default: this machine's GPU's, or its share of the memory.
        set: settings to change, as in `cips3d train`.
    """
    at_least(1, gpus=gpus)
    positive(tflops=tflops, memory=memory)
    config = with_settings(_config(what), set, "--set")
    check_batches(config.stages, gpus, "--gpus")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = gradients.device_memory(device, gpus) if memory is None else memory * 2**30
    speed = plans.measured_speed(config, gpus) if tflops is None else tflops * 1e12
    source = "measured here" if tflops is None else "given"
    share = plans.visible_share(config)
    machines = f"{gpus} x {speed / 1e12:,.2f} TFLOP/s ({source}), {limit / 2**30:,.0f} GiB each"
    print(f"{what} on {machines}, precision {config.precision}")
    shown = days = 0.0
    rows = []
    for stage in tqdm(config.stages, desc="stages", leave=False):
        costs = {
            mode: plans.step_cost(
                config, plans.in_mode(stage, mode), stage.batch // gpus, int(limit), share, gpus
            )
            for mode in get_args(plans.Mode)
        }
        rate = gpus * speed / costs[stage.gradients].flops
        kimg = (
            stage.kimg
            if stage.minutes is None
            else min(stage.kimg, rate * stage.minutes * 60 / 1000)
        )
        shown, days = shown + kimg, days + kimg * 1000 / rate / 86_400
        rows.append(_row(replace(stage, kimg=kimg), gpus, costs, limit, rate))
    for name, numbers in plans.parameters(config).items():
        print(f"  {name:<24}{numbers:>14,} parameters")
    print(
        f"\n{'stage':<8}{'kimg':>8}{'batch':>7}{'TFLOP/':>9}{'GiB per GPU, by gradients':^36}{'images/s':>11}{'days':>8}"
    )
    print(f"{'':8}{'':8}{'/GPU':>7}{'picture':>9}{'full':>12}{'partial':>12}{'checkpt.':>12}")
    print("\n".join(rows))
    print(
        "* the stage's own gradients; ! more than there is. Partial: as many rays as the stage says, or a quarter."
    )
    print(f"in all {shown:,.0f} thousand pictures shown in {days:,.2f} days")
    print(_dataset(config, shown))


def _row(
    stage: Stage, gpus: int, costs: dict[plans.Mode, plans.StepCost], limit: float, rate: float
) -> str:
    cells = ""
    for mode, cost in costs.items():
        marks = "*" * (mode == stage.gradients) + "!" * (cost.peak_bytes > limit)
        cells += f"{cost.peak_bytes / 2**30:>10.2f}{marks:<2}"
    days = stage.kimg * 1000 / rate / 86_400
    flops = costs[stage.gradients].flops / 1e12
    return f"{f'{stage.resolution}²':<8}{stage.kimg:>8,.0f}{stage.batch // gpus:>7}{flops:>9.3f}{cells}{rate:>11,.1f}{days:>8.2f}"


def _config(what: str) -> TrainConfig:
    if what in PRESETS:
        return preset(what)
    path = Path(what)
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise UserError(
            f"{what}: neither a preset ({', '.join(PRESETS)}) nor a config.json or a run directory"
        )
    return read_json(TrainConfig, path)


def _dataset(config: TrainConfig, kimg: float) -> str:
    side = max(stage.resolution for stage in config.stages)
    try:
        pictures = len(open_dataset(config.data, side))
    except UserError as error:
        if Path(config.data).exists():
            return f"dataset {error}"
        return f"dataset {config.data}: not here; at {side}² a picture takes {3 * side**2 / 2**10:,.0f} KiB uncompressed"
    size = f"{3 * side**2 * pictures / 2**30:,.2f} GiB uncompressed at {side}²"
    return f"dataset {config.data}: {pictures:,} pictures, {size}; each is shown {1000 * kimg / pictures:,.1f} times"
