"""Defaults of `cips3d eval` that depend on the model and its data."""

from __future__ import annotations

import sys
from pathlib import Path

from cips3d.configuration import read_json
from cips3d.data import Dataset
from cips3d.errors import UserError
from cips3d.metrics.features import feature_network
from cips3d.training.recipe import TrainConfig


def default_metrics(dataset: Dataset, has_inception: bool) -> tuple[str, ...]:
    """The distances that can be measured without a download.

    Args:
        has_inception: whether the user gave Inception's weights.
    """
    if dataset.truth() is not None:
        return ("fd2k_heads", "kd2k_heads") + (("fid2k", "kid2k") if has_inception else ())
    if not has_inception:
        try:
            feature_network("inception")
        except UserError as error:  # nobody asked for it: the rest can be measured without
            print(f"left out: {error}", file=sys.stderr)
            return ()
    return ("fid2k", "kid2k")


def trained_on(model: str) -> str:
    """The dataset of the run that a model's file belongs to; otherwise the embedded heads."""
    if not Path(model).is_file():
        return "heads"
    try:
        return read_json(TrainConfig, Path(model).with_name("config.json")).data
    except UserError:  # there is no such file, or it is something else
        return "heads"
