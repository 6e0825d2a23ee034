"""`cips3d plan`: what a training run will cost, before it starts."""

from __future__ import annotations

from pathlib import Path

from cips3d.cli.options import PRESET_NAMES, Count, Derived, Limited, Settings, is_preset
from cips3d.errors import UserError


def plan(
    what: str,
    /,
    gpus: Count = 1,
    tflops: Derived[Limited] = None,
    memory: Derived[Limited] = None,
    set: Settings = (),
) -> None:
    """Estimate memory and time of a training run.

    Prints operations, memory for each gradient mode, images per second and days. Steps run on
    shapes only, so this takes at most a minute and needs neither data nor a GPU. Memory counts
    tensors; the framework and its libraries need more on top.

    Args:
        what: A preset, a config.json or a run directory.
        gpus: GPUs, or processes on CPUs, that share each batch.
        tflops: Training speed of each in 10¹² operations per second, which is well below the data
            sheet. Default: measured on this machine in a few seconds.
        memory: GiB of each. Default: this machine's GPU memory, or its share of the main memory.
        set: Settings to change, as in `cips3d train`.

    Examples:
        cips3d plan heads-64
        cips3d plan ffhq-256 --gpus 8 --tflops 30 --memory 32
    """
    path = Path(what)
    path = path / "config.json" if path.is_dir() else path
    if not is_preset(what) and not path.exists():
        raise UserError(
            f"{what}: is neither a preset ({', '.join(PRESET_NAMES)}) "
            "nor a config.json or a run directory"
        )
    from cips3d.cli.planning import plan_lines

    for line in plan_lines(what, path, gpus, tflops, memory, set):
        print(line)
    start = f"--preset {what}" if is_preset(what) else ""
    print(f"try next: cips3d train {'runs/mine' if start else path.parent} {start}".rstrip())
