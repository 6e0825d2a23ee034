"""Where a model comes from: the record of its training, which stands in the model file's header."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict

from cips3d.configuration import Configuration


@dataclass(frozen=True)
class TrainingRecord(Configuration):
    """What a training run says of the model that it writes; None and empty where it is unknown."""

    __pydantic_config__ = ConfigDict(extra="ignore")  # a newer version may record more
    label: ClassVar[str] = "training record"

    data: str | None = None
    """name of the dataset, without its folder"""
    data_images: int | None = None
    """number of images in it"""
    start: str | None = None
    """model that the training started from"""
    command: str | None = None
    """command that trains such a model anew"""
    images: int | None = None
    """real images shown, without those that the starting model was shown"""
    minutes: int | None = None
    """training time, over all sessions of the run"""
    machines: tuple[str, ...] = ()
    """processors that the sessions ran on"""
    seed: int | None = None
    software: str | None = None
    """version of this package, and its commit if it is run from a repository"""

    def rows(self) -> dict[str, str]:
        """What is known, as text by name."""
        data = self.data
        if data is not None and self.data_images is not None:
            data += f" ({self.data_images:,} images)"
        minutes = None if self.minutes is None else f"{self.minutes:,} minutes"
        rows = {
            "data": data,
            "start": self.start,
            "command": self.command,
            "images shown": None if self.images is None else f"{self.images:,}",
            "time": "less than a minute" if self.minutes == 0 else minutes,
            "machine": "; ".join(self.machines) or None,
            "seed": None if self.seed is None else str(self.seed),
            "software": self.software,
        }
        return {name: text for name, text in rows.items() if text is not None}


def machine(device: torch.device, processes: int) -> str:
    """The processors of `processes` processes like this one, such as "2 × NVIDIA H200"."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    cores = processes * torch.get_num_threads()
    name = f"{_cpu()}, {cores} core{'s' * (cores > 1)}"
    return name if device.type == "cpu" else f"{device.type} of {name}"


def _cpu() -> str:
    """The processor's name: its model's on Linux, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine())


@cache
def software() -> str:
    """This package's version, with the commit where it is run from its repository."""
    text, root = f"cips3d {version('cips3d')}", Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return text
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    return f"{text}, commit {found.stdout.strip()}" if found.stdout.strip() else text
