"""Training state in one safetensors file: weights, optimiser moments and counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cips3d.configuration import from_dict, to_dict
from cips3d.storage import load_weights, read_tensors, write_tensors
from cips3d.training.networks import Networks

#: Folder of the checkpoints in a run's directory.
FOLDER = "checkpoints"
#: Checkpoints kept on disk; the one before the last serves if a disk fault damages the last.
KEEP = 2
_KEY = "cips3d-training"


@dataclass
class Counters:
    """How far a run is."""

    step: int = 0
    images: int = 0
    """real images shown"""
    stage: int = 0
    """index of the current stage"""
    stage_images: int = 0
    stage_seconds: float = 0.0
    past_seconds: float | None = None
    """training time of the stages before, on the main process; None if it is unknown"""
    machines: tuple[str, ...] = ()
    """processors that the run's sessions used, for the model's record"""
    skipped: int = 0
    """steps not taken because their gradients were not finite"""
    skipped_in_a_row: int = 0
    rate_scale: float = 1.0
    """factor of all learning rates; halved each time the run rolls back"""
    augment: float = 0.0
    """adapted probability of DiffAugment"""
    real_signs: float = 0.0
    """sum of the steps' mean sign of real logits since that probability was last adapted"""
    loss_scale: float = 2.0**16
    """factor of the losses in precision fp16, whose small gradients would be 0"""
    scaled_steps: int = 0
    """steps taken since it last changed"""
    measured: int = -1
    """images shown when the metrics were last measured"""


def save_state(path: Path, networks: Networks, counters: Counters) -> None:
    """Writes the whole training state; an older file stays as it is if that fails (UserError)."""
    tensors: dict[str, Tensor] = {}
    for name, module in networks.modules.items():
        tensors |= _prefixed(name, module.state_dict())
    for name, optimizer in networks.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"{name}/{index}", moments)
    write_tensors(path, tensors, _KEY, to_dict(counters))


def load_state(path: Path, networks: Networks) -> Counters:
    """Restores a training state in place and returns its counters.

    Raises:
        UserError: if the file is damaged or does not fit the configuration.
    """
    remedy = "delete it to resume from the one before it"
    entry, tensors = read_tensors(path, _KEY, "a checkpoint", remedy)
    counters = from_dict(Counters, entry, str(path))
    for name, module in networks.modules.items():
        load_weights(module, _below(tensors, name), f"{path} ({name})")
    for name, optimizer in networks.optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in _below(tensors, name).items():
            index, moment = key.split("/")
            # a copy: optimisers keep what they are given, which is mapped from the file, and
            # Windows deletes no file in use
            state.setdefault(int(index), {})[moment] = value.clone()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return counters


def _prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for key, value in tensors.items()}


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    inside = {key: value for key, value in tensors.items() if key.startswith(f"{name}/")}
    return {key.removeprefix(f"{name}/"): value for key, value in inside.items()}


def checkpoint_path(folder: Path, images: int) -> Path:
    """The file of the checkpoint after that many real images."""
    return folder / f"{images:012d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def prune(folder: Path) -> None:
    """Deletes all but the newest `KEEP` checkpoints, and files that a killed process left."""
    for path in [*checkpoints(folder)[:-KEEP], *folder.glob(".*.safetensors")]:
        path.unlink(missing_ok=True)
