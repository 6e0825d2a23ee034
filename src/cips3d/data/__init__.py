"""Datasets: the protocol, and a user's own images in a folder or zip."""

from __future__ import annotations

from cips3d.data.images import ImageDataset
from cips3d.data.protocol import Dataset, Truth

__all__ = ["EMBEDDED", "Dataset", "ImageDataset", "Truth", "open_dataset"]

#: Datasets that come with the package, by name.
EMBEDDED = ("heads", "heads-cartoon")


def open_dataset(name: str, resolution: int) -> Dataset:
    """Opens "heads" or "heads-cartoon", the embedded dataset, or a path (see `ImageDataset`).

    Raises:
        UserError: if there is no such dataset, or one of its images cannot be used.
    """
    if name in EMBEDDED:
        from cips3d.heads import SyntheticHeads  # imports numba, which other datasets do not need

        style = "natural" if name == "heads" else "cartoon"
        return SyntheticHeads(resolution=resolution, style=style)
    return ImageDataset(name, resolution)
