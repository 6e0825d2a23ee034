"""What a process gets of each step's real pictures, from where the run stands on without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from cips3d.data import ImageDataset
from cips3d.heads import SyntheticHeads
from cips3d.interrupts import serve_to_the_end
from cips3d.training.draws import real_order
from cips3d.training.recipe import Stage, TrainConfig


def real_batches(
    dataset: SyntheticHeads | ImageDataset,
    config: TrainConfig,
    images: int,
    batch: int,
    positions: range,
    pin_memory: bool,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Pictures, uint8, and their camera labels where a discriminator sees them.

    Args:
        images: pictures that the run has shown before.
        batch: pictures per step over all processes.
        positions: of them, this process's.
        pin_memory: for copies to a GPU.
    """

    def order() -> Iterator[list[int]]:
        return real_order(len(dataset), config.seed, images, batch, positions)

    together = max(1, dataset.batch_hint // len(positions))
    loaded = DataLoader(
        dataset,
        batch_sampler=(
            list(itertools.chain(*batches)) for batches in zip(*[order()] * together, strict=True)
        ),
        num_workers=config.workers,
        worker_init_fn=serve_to_the_end,
        pin_memory=pin_memory,
    )
    pictures = itertools.chain.from_iterable(batches.split(len(positions)) for batches in loaded)
    if not config.judges_cameras:
        return zip(pictures, itertools.repeat(None), strict=False)
    return zip(pictures, map(dataset.camera_labels, order()), strict=True)


def pieces(stage: Stage, positions: range, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """Positions and what belongs to them, in the pieces that a process takes one after the other."""
    size = len(positions) // stage.accumulate
    starts = range(0, len(positions), size)
    return [
        (positions[i : i + size], *(None if t is None else t[i : i + size] for t in tensors))
        for i in starts
    ]
