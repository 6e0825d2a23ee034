"""Each process's share of the real images, from where the run is, without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from cips3d.interrupts import serve_to_the_end
from cips3d.training.draws import real_order
from cips3d.training.recipe import Stage
from cips3d.training.run import Run


def real_batches(run: Run, stage: Stage) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images of the run's dataset, uint8, and their labels where a discriminator sees cameras."""
    config, dataset, shown = run.config, run.dataset, run.counters.images
    positions = run.positions(stage.batch)

    def order() -> Iterator[list[int]]:
        return real_order(len(dataset), config.seed, shown, stage.batch, positions)

    together = max(1, dataset.batch_hint // len(positions))
    loaded = DataLoader(
        dataset,  # pyright: ignore[reportArgumentType] (any object with indexing and a length)
        batch_sampler=(
            list(itertools.chain(*batches)) for batches in zip(*[order()] * together, strict=True)
        ),
        num_workers=config.workers,
        worker_init_fn=serve_to_the_end,
        pin_memory=run.device.type == "cuda",
    )
    split = (batches.split(len(positions)) for batches in loaded)
    real = itertools.chain.from_iterable(split)
    if not config.judges_cameras:
        return zip(real, itertools.repeat(None), strict=False)
    return zip(real, map(dataset.camera_labels, order()), strict=True)
