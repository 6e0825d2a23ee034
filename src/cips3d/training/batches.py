"""Each process's share of the real images, from where the run is, without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from cips3d.data import Dataset
from cips3d.interrupts import serve_to_the_end
from cips3d.training.draws import real_order
from cips3d.training.recipe import TrainConfig


def real_batches(
    dataset: Dataset,
    config: TrainConfig,
    images: int,
    batch: int,
    positions: range,
    pin_memory: bool,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images, uint8, and their camera labels where a discriminator sees them.

    Args:
        images: images that the run has shown before.
        batch: images per step over all processes.
        positions: which of them this process reads.
        pin_memory: for copies to a GPU.
    """

    def order() -> Iterator[list[int]]:
        return real_order(len(dataset), config.seed, images, batch, positions)

    together = max(1, dataset.batch_hint // len(positions))
    loaded = DataLoader(
        dataset,  # pyright: ignore[reportArgumentType] (any object with indexing and a length)
        batch_sampler=(
            list(itertools.chain(*batches)) for batches in zip(*[order()] * together, strict=True)
        ),
        num_workers=config.workers,
        worker_init_fn=serve_to_the_end,
        pin_memory=pin_memory,
    )
    split = (batches.split(len(positions)) for batches in loaded)
    real = itertools.chain.from_iterable(split)
    if not config.judges_cameras:
        return zip(real, itertools.repeat(None), strict=False)
    return zip(real, map(dataset.camera_labels, order()), strict=True)
