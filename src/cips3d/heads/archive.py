"""Export of synthetic heads as PNG files with camera labels, in the layout that StyleGAN and the tri-plane GANs read."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cips3d.errors import UserError
from cips3d.files import atomic_path, png
from cips3d.heads import traits as head_traits
from cips3d.heads.dataset import SyntheticHeads

_BATCH = 64
#: What the numbers of these attributes stand for.
_KINDS = {
    "hair_style": head_traits.HAIR_STYLES,
    "hat": head_traits.HATS,
    "beard": head_traits.BEARDS,
    "mouth": head_traits.MOUTHS,
    "collar": head_traits.COLLARS,
}


def write_heads(
    path: str | os.PathLike[str], dataset: SyntheticHeads, count: int | None = None
) -> None:
    """Write the first `count` pictures (None: all) into a zip, or into a folder if `path` does not end in .zip.

    Pictures are `00000/img00000000.png` and so on, a thousand to a folder. `dataset.json` holds `{"labels": [[name, 25
    numbers], …]}`, see `Camera.to_label`; `attributes.json` holds `{"kinds": {attribute: [names]}, "attributes": {name: {…}}}`.

    Raises:
        UserError: if `path` exists or cannot be written, or the dataset has fewer than `count` pictures. Nothing stays
            half-written.
    """
    count = len(dataset) if count is None else count
    if not 1 <= count <= len(dataset):
        raise UserError(
            f"write heads: {count} pictures of a dataset that has {len(dataset)}; give a number from 1 to that"
        )
    if os.path.lexists(path):
        raise UserError(f"cannot write {path}: it exists; delete it or give another path")
    if str(path).lower().endswith(".zip"):
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in _files(dataset, count):
                archive.writestr(
                    zipfile.ZipInfo(name), content
                )  # no date, so that equal datasets are equal files
    else:
        _write_folder(Path(path), _files(dataset, count))


def member_name(i: int) -> str:
    """The name of the picture of that number: a thousand to a folder."""
    return f"{i // 1000:05d}/img{i:08d}.png"


def _write_folder(target: Path, files: Iterator[tuple[str, bytes]]) -> None:
    temporary = target.with_name(f".{target.name[:64]}-{secrets.token_hex(4)}")
    try:
        for name, content in files:
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"cannot write {target}: {reason}; give a path that can be written and has room"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(dataset: SyntheticHeads, count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents: the pictures, then the two JSON files."""
    labels: list[list[str | list[float]]] = []
    attributes: dict[str, dict[str, object]] = {}
    for first in range(0, count, _BATCH):
        indices = range(first, min(first + _BATCH, count))
        batch = dataset.render(indices)
        columns = {name: _rounded(value.tolist()) for name, value in batch.attributes.items()}
        for row, (index, label) in enumerate(
            zip(indices, batch.camera.to_label().tolist(), strict=True)
        ):
            name = member_name(index)
            labels.append([name, label])
            attributes[name] = {key: values[row] for key, values in columns.items()}
            yield name, png(Image.fromarray(batch.images[row].permute(1, 2, 0).numpy()))
    yield "dataset.json", json.dumps({"labels": labels}).encode()
    yield "attributes.json", json.dumps({"kinds": _KINDS, "attributes": attributes}).encode()


def _rounded(value: Any) -> Any:
    """The same number or nested list of numbers, floats rounded to six digits after the point."""
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value
