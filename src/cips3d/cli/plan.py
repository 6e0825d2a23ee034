"""`cips3d plan`: what a training run will cost, before it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cips3d.cli.options import Derived, Limited, Settings, is_preset, no_such
from cips3d.cli.output import tracked
from cips3d.configuration import Count, read_json, with_settings
from cips3d.errors import UserError

if TYPE_CHECKING:
    from cips3d.training.recipe import TrainConfig

_HEADER = """
stage       kimg  batch   TFLOP/     GiB per GPU, by gradients         images/s    days  slowest
                   /GPU    image        full     partial    checkpt."""


def plan(
    what: str,
    /,
    gpus: Count = 1,
    tflops: Derived[Limited] = None,
    bandwidth: Derived[Limited] = None,
    memory: Derived[Limited] = None,
    set: Settings = (),
) -> None:
    """Estimate memory and time of a training run.

    Prints operations, memory for each gradient mode, images per second and days. Steps run on
    shapes only, so this takes at most a minute and needs neither data nor a GPU. A step takes as
    long as the slowest of its arithmetic (matrix products and convolutions), its launches (10 µs
    for each call of torch on a GPU) and the passes of all other calls over memory. Memory counts
    tensors; the framework and its libraries need more on top.

    Args:
        what: A preset, a config.json or a run directory.
        gpus: GPUs, or processes on CPUs, that share each batch.
        tflops: Training speed of each in 10¹² operations per second, which is well below the data
            sheet. Default: measured on this machine in a few seconds.
        bandwidth: GB/s of each one's memory. Default: measured on this machine's GPU, or 900 (a
            V100) with --tflops.
        memory: GiB of each. Default: this machine's GPU memory, or its share of the main memory.
        set: Settings to change, as in `cips3d train`.

    Examples:
        cips3d plan heads-64
        cips3d plan ffhq-256 --gpus 8 --tflops 30 --memory 32
        cips3d plan ffhq-256 --tflops 200 --bandwidth 2000 --memory 80
    """
    path = Path(what)
    path = path / "config.json" if path.is_dir() else path
    if not is_preset(what) and not path.exists():
        raise no_such(what, "a config.json or a run directory")

    import torch

    from cips3d.models.cost import device_memory
    from cips3d.training import planning
    from cips3d.training.presets import preset
    from cips3d.training.recipe import TrainConfig, check_batches

    config = preset(what) if is_preset(what) else read_json(TrainConfig, path)
    config = with_settings(config, set, "--set")
    check_batches(config.stages, gpus, "--gpus")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = device_memory(device, gpus) if memory is None else memory * 2**30
    source = "measured here" if tflops is None else "given"
    if tflops is None:
        machine = planning.measured_machine(config, gpus)
    else:
        machine = planning.Machine(tflops * 1e12)
    if bandwidth is not None:
        machine = replace(machine, bandwidth=bandwidth * 1e9)
    speeds = f"{machine.speed / 1e12:,.2f} TFLOP/s ({source})"
    if machine.bandwidth < math.inf:
        speeds += f", {machine.bandwidth / 1e9:,.0f} GB/s"
    limits = f"{limit / 2**30:,.0f} GiB each, precision {config.precision}"
    print(f"{what} on {gpus} x {speeds}, {limits}")
    for name, numbers in planning.parameters(config).items():
        print(f"  {name:<24}{numbers:>14,} parameters")
    print(_HEADER)
    shown = days = 0.0
    share = planning.visible_share(config)
    for stage in tracked(config.stages, "planning", len(config.stages)):
        costs = {
            mode: planning.step_cost(
                config, planning.in_mode(stage, mode), stage.batch // gpus, int(limit), share, gpus
            )
            for mode in get_args(planning.Mode)
        }
        seconds = costs[stage.gradients].seconds(stage.batch // gpus, machine)
        rate = stage.batch / max(seconds.values())
        most = math.inf if stage.minutes is None else rate * stage.minutes * 60 / 1000
        kimg = min(stage.kimg, most)
        stage_days = kimg * 1000 / rate / 86_400
        shown, days = shown + kimg, days + stage_days
        row = f"{f'{stage.resolution}²':<8}{kimg:>8,.0f}{stage.batch // gpus:>7}"
        row += f"{costs[stage.gradients].flops / 1e12:>9.3f}"
        for mode, cost in costs.items():
            marks = "*" * (mode == stage.gradients) + "!" * (cost.peak_bytes > limit)
            row += f"{cost.peak_bytes / 2**30:>10.2f}{marks:<2}"
        slowest = max(seconds, key=seconds.__getitem__)
        print(f"{row}{rate:>11,.1f}{stage_days:>8.2f}  {slowest}")
    print(
        "* the stage's own gradients; ! exceeds the memory. "
        "Partial: the stage's number of gradient rays, or a quarter."
    )
    print(f"total: {shown:,.0f} thousand images shown in {days:,.2f} days")
    print(_dataset(config, shown))
    run = f"runs/mine --preset {what}" if is_preset(what) else path.parent
    print(f"try next: cips3d train {run}")


def _dataset(config: TrainConfig, kimg: float) -> str:
    """The line for the data that a run needs."""
    from cips3d.data import open_dataset

    side = max(stage.resolution for stage in config.stages)
    try:
        images = len(open_dataset(config.data, side))
    except UserError as error:
        if Path(config.data).exists():
            return f"dataset {error}"
        size = f"{3 * side**2 / 2**10:,.0f} KiB uncompressed at {side}²"
        return f"dataset {config.data}: not found here; an image takes {size}"
    size = f"{3 * side**2 * images / 2**30:,.2f} GiB uncompressed at {side}²"
    times = f"each is shown {1000 * kimg / images:,.1f} times"
    return f"dataset {config.data}: {images:,} images, {size}; {times}"
