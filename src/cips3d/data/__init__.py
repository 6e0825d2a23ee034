"""Datasets: the embedded heads, and folders or zips of a user's own pictures. Items are (3, R, R) uint8 tensors."""

from __future__ import annotations

from cips3d.data.images import ImageDataset
from cips3d.heads.dataset import HeadBatch, SyntheticHeads

__all__ = ["HeadBatch", "ImageDataset", "SyntheticHeads", "open_dataset"]


def open_dataset(name: str, resolution: int) -> SyntheticHeads | ImageDataset:
    """The dataset that a configuration or a command line names.

    Args:
        name: "heads" or "heads-cartoon" for the embedded dataset, else the path of a folder or zip.
        resolution: side of the pictures, pixels.

    Raises:
        UserError: if there is no such dataset, or a picture in it cannot serve.
    """
    if name == "heads":
        return SyntheticHeads(resolution=resolution)
    if name == "heads-cartoon":
        return SyntheticHeads(resolution=resolution, style="cartoon")
    return ImageDataset(name, resolution)
