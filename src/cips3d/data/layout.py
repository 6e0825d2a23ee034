"""StyleGAN's layout of a dataset: numbered PNG files and a dataset.json that holds their labels."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cips3d.data.sources import Source
from cips3d.errors import UserError, first_line, printable
from cips3d.files import atomic_path

#: Name of the file of labels next to the images.
LABEL_FILE = "dataset.json"
LABEL_SIZE = 25


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.json by the images' names."""

    by_name: dict[str, Any]
    place: str  # the file, for error messages

    @property
    def are_classes(self) -> bool:
        """Whether they are class numbers, which no network of this package uses."""
        return all(type(label) is int for label in self.by_name.values())

    def __getitem__(self, name: str) -> Any:
        """The label of an image, of any kind; raises UserError if there is none."""
        if name not in self.by_name:
            remedy = "add one, or remove the image or the labels"
            raise UserError(f"{self.place}: has no label for {printable(name)}; {remedy}")
        return self.by_name[name]

    def camera(self, name: str) -> list[float]:
        """The camera label of an image; raises UserError if it is missing or malformed."""
        label = self[name]
        is_vector = isinstance(label, list) and len(label) == LABEL_SIZE
        if not is_vector or not all(type(x) in (int, float) and math.isfinite(x) for x in label):
            fault = f"must be {LABEL_SIZE} finite numbers; correct or remove the labels"
            raise UserError(f"{self.place}: the label of {printable(name)} {fault}")
        return label


def read_labels(source: Source) -> Labels | None:
    """The labels of a dataset, or None; raises UserError if dataset.json cannot be used."""
    content = _read_label_file(source)
    if content is None:
        return None
    place = printable(source.place(LABEL_FILE))
    try:
        pairs = content["labels"]
        return None if pairs is None else Labels(dict(pairs), place)
    except (TypeError, KeyError, ValueError) as error:
        form = '{"labels": [[name, label], …]} or have null labels'
        raise UserError(f"{place}: must be {form}; correct or remove it") from error


def read_recipe(source: Source) -> dict[str, Any] | None:
    """The settings that `cips3d data build` recorded in a dataset.json, or None."""
    content = _read_label_file(source)
    recipe = content.get("cips3d") if isinstance(content, dict) else None
    return recipe if isinstance(recipe, dict) else None


def _read_label_file(source: Source) -> Any:
    """The content of dataset.json, or None if there is no such file."""
    try:
        with source.open(LABEL_FILE) as file:
            return json.load(file)
    except (FileNotFoundError, KeyError):  # of a folder, and of a zip
        return None
    except UserError:
        raise
    except Exception as error:
        fault = f"is not valid JSON ({first_line(error)}); correct or remove it"
        raise UserError(f"{printable(source.place(LABEL_FILE))}: {fault}") from error


def member_name(number: int) -> str:
    """The name of an image, a thousand per folder: 00000/img00000000.png."""
    return f"{number // 1000:05d}/img{number:08d}.png"


def check_free(path: str | os.PathLike[str]) -> None:
    """Raises UserError if something exists at `path`."""
    if os.path.lexists(path):
        raise UserError(f"cannot write {path}: it exists; delete it or give another path")


def write_files(path: str | os.PathLike[str], files: Iterator[tuple[str, bytes]]) -> None:
    """Writes (name, content) pairs into a new zip, or into a folder if `path` is not named .zip.

    Members of a zip have no dates, so that equal files give equal zips. An error leaves nothing
    behind. Raises UserError if `path` exists or cannot be written.
    """
    check_free(path)
    if not str(path).lower().endswith(".zip"):
        _write_folder(Path(path), files)
        return
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)


def _write_folder(target: Path, files: Iterator[tuple[str, bytes]]) -> None:
    temporary = target.with_name(f".{target.name[:64]}-{secrets.token_hex(4)}")
    try:
        for name, content in files:
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        fault = f"{first_line(error)}; give a path that can be written and has room"
        raise UserError(f"cannot write {target}: {fault}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
