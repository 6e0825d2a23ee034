"""Exports the embedded heads as PNG files with camera labels, in StyleGAN's and EG3D's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from PIL import Image

from cips3d.data.layout import ATTRIBUTE_FILE, LABEL_FILE, member_name, write_files
from cips3d.errors import UserError
from cips3d.files import png
from cips3d.heads.dataset import SyntheticHeads
from cips3d.heads.traits import OPTIONS


def write_heads(
    path: str | os.PathLike[str], dataset: SyntheticHeads, count: int | None = None
) -> None:
    """Writes the first `count` images (default: all) into a new zip, or a folder without .zip.

    `dataset.json` holds `{"labels": [[name, 25 numbers], …]}` (see `Camera.to_label`).
    `attributes.json` holds `{"kinds": {attribute: [names]}, "attributes": {name: {…}}}`.

    Raises:
        UserError: if `path` exists or cannot be written, or the dataset has too few images.
    """
    count = len(dataset) if count is None else count
    if not 1 <= count <= len(dataset):
        bounds = f"from 1 to {len(dataset)}, the size of the dataset"
        raise UserError(f"write heads: count is {count}; it must be {bounds}")
    write_files(path, _files(dataset, count))


def _files(dataset: SyntheticHeads, count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the images, then of the two JSON files."""
    labels: list[list[str | list[float]]] = []
    attributes: dict[str, dict[str, object]] = {}
    for first in range(0, count, dataset.batch_hint):
        indices = range(first, min(first + dataset.batch_hint, count))
        batch = dataset.render(indices)
        columns = {name: _rounded(value.tolist()) for name, value in batch.attributes.items()}
        rows = zip(indices, batch.camera.to_label().tolist(), batch.images, strict=True)
        for row, (index, label, image) in enumerate(rows):
            name = member_name(index)
            labels.append([name, label])
            attributes[name] = {key: values[row] for key, values in columns.items()}
            yield name, png(Image.fromarray(image.permute(1, 2, 0).numpy()))
    yield LABEL_FILE, json.dumps({"labels": labels}).encode()
    yield ATTRIBUTE_FILE, json.dumps({"kinds": OPTIONS, "attributes": attributes}).encode()


def _rounded(value: Any) -> Any:
    """A number or nested list of numbers, with floats rounded to six decimals."""
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value
