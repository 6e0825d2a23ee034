"""Training state in one safetensors file: weights, optimiser moments and counters; saved whole or not at all, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cips3d.configuration import Configuration, from_dict, to_dict
from cips3d.storage import load_weights, read_tensors, write_tensors

#: Where they are in the folder of a run.
FOLDER = "checkpoints"
#: Checkpoints that stay on disk; the one before the last serves if a disk fault damages the last.
KEEP = 2


@dataclass
class Counters(Configuration):
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        images: real pictures shown.
        stage: index of the current stage.
        stage_images: real pictures shown in it.
        stage_seconds: training time spent in it.
        skipped: steps not taken because their gradients were not finite; all, and the last ones in a row.
        rate_scale: factor of all learning rates; halved each time that the run rolls back.
        augment: adapted probability of DiffAugment.
        measured: pictures shown when the metrics were last measured.
        real_signs: sum of the signs of real logits, in mean over each batch, since that probability was last adapted.
    """

    step: int = 0
    images: int = 0
    stage: int = 0
    stage_images: int = 0
    stage_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rate_scale: float = 1.0
    augment: float = 0.0
    measured: int = -1
    real_signs: float = 0.0


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Counters,
) -> None:
    """Writes the whole training state to `path`.

    Raises:
        UserError: if it cannot be written; an older file of that name is then untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors.update({f"{name}/{key}": value for key, value in module.state_dict().items()})
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors.update({f"{name}/{index}/{key}": value for key, value in moments.items()})
    write_tensors(path, tensors, "cips3d-training", to_dict(counters))


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> Counters:
    """Puts a saved training state back, in place, and returns its counters.

    Raises:
        UserError: if the file is damaged, or was made with another configuration.
    """
    remedy = "delete it to resume from the one before it"
    entry, tensors = read_tensors(path, "cips3d-training", "a checkpoint", remedy)
    counters = from_dict(Counters, entry, str(path))
    for name, module in modules.items():
        load_weights(module, _below(tensors, name), f"{path} ({name})")
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in _below(tensors, name).items():
            index, moment = key.split("/")
            # a copy: optimizers keep what they are given, which lies in the file, and Windows deletes no file that is in use
            state.setdefault(int(index), {})[moment] = value.clone()
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    return counters


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in tensors.items()
        if key.startswith(f"{name}/")
    }


def checkpoint_path(folder: Path, images: int) -> Path:
    """The file of the checkpoint after that many real pictures."""
    return folder / f"{images:012d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def prune(folder: Path) -> None:
    """Deletes all but the newest `KEEP` checkpoints, and what a killed process left half-written."""
    for path in [*checkpoints(folder)[:-KEEP], *folder.glob(".*.safetensors")]:
        path.unlink(missing_ok=True)
