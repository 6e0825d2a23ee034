"""StyleGAN's layout of a dataset: numbered PNG files and a dataset.json that holds their labels."""

from __future__ import annotations

import json
import math
import os
import posixpath
import secrets
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from cips3d.data.sources import (
    HEIF_EXTENSIONS,
    HEIF_REMEDY,
    Archive,
    extensions,
    is_hidden,
    is_image,
)
from cips3d.errors import UserError, first_line, printable
from cips3d.files import atomic_path

#: Names of the files next to the images: of labels, and of what `cips3d data heads` adds.
LABEL_FILE, ATTRIBUTE_FILE = "dataset.json", "attributes.json"
LABEL_SIZE = 25
#: Kinds of files that are named where they are passed over.
MOST_KINDS = 8


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.json by the images' names, with forward slashes."""

    by_name: dict[str, Any]
    place: str  # the file, for error messages

    @cached_property
    def are_classes(self) -> bool:
        """Whether they are class numbers, which no network of this package uses."""
        return all(type(label) is int for label in self.by_name.values())

    def __getitem__(self, name: str) -> Any:
        """The label of an image: a class number, or 25 numbers for its camera.

        Raises UserError if there is none, or only one of another form.
        """
        label = self.by_name.get(_slashes(name))
        if label is None:
            remedy = "add one, or remove the image or the labels"
            raise UserError(f"{self.place}: has no label for {printable(name)}; {remedy}")
        if self.are_classes:
            return label
        is_vector = isinstance(label, list) and len(label) == LABEL_SIZE
        if not is_vector or not all(type(x) in (int, float) and math.isfinite(x) for x in label):
            fault = f"must be {LABEL_SIZE} finite numbers; correct or remove the labels"
            raise UserError(f"{self.place}: the label of {printable(name)} {fault}")
        return label


@dataclass(frozen=True)
class Contents:
    """What a folder or zip holds."""

    names: list[str]  # of the images, sorted
    labels: Labels | None
    recipe: dict[str, Any] | None  # what `cips3d data build` recorded
    passed_over: str  # a line for the files that are not used; empty if there are none


def read_contents(source: Archive) -> Contents:
    """Finds the images and their labels.

    The dataset.json is the one in the outermost folder that contains all images, and names them
    relative to its own folder.

    Raises:
        UserError: if there are no images, or dataset.json cannot be used.
    """
    files = [name for name in source.names() if not is_hidden(name)]
    names = sorted(filter(is_image, files))
    others = {name for name in files if not is_image(name)}
    common = posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else ""
    roots = ["", *(f"{folder}/" for folder in accumulate(common.split("/"), "{}/{}".format))]
    root = next((root for root in roots if root + LABEL_FILE in others), None)
    used = {(root or "") + name for name in (LABEL_FILE, ATTRIBUTE_FILE)}
    passed_over = _passed_over(others - used)
    if not names:
        looked = f"looked for {', '.join(extensions())}"
        fault = f"contains no images; {'; '.join(filter(None, [looked, passed_over]))}"
        raise UserError(f"{printable(source.path)}: {fault}")
    if root is None:
        return Contents(names, None, None, passed_over)
    place = printable(source.place(root + LABEL_FILE))
    try:
        with source.open(root + LABEL_FILE) as file:
            content = json.load(file)
    except UserError:
        raise
    except Exception as error:
        fault = f"is not valid JSON ({first_line(error)}); correct or remove it"
        raise UserError(f"{place}: {fault}") from error
    try:
        pairs = dict([] if content["labels"] is None else content["labels"])
        by_name = {root + _slashes(name): label for name, label in pairs.items()}
        recipe = content.get("cips3d")
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        form = '{"labels": [[name, label], …]} or have null labels'
        raise UserError(f"{place}: must be {form}; correct or remove it") from error
    labels = Labels(by_name, place) if by_name else None
    return Contents(names, labels, recipe if isinstance(recipe, dict) else None, passed_over)


def _passed_over(files: Iterable[str]) -> str:
    """How many files are not used, by their kind; empty if there are none."""
    counts = Counter(posixpath.splitext(name)[1].lower() for name in files)
    if not counts:
        return ""
    ordered = sorted(counts, key=lambda kind: (-counts[kind], not kind, kind))
    kinds = [
        f"{counts[kind]:,} {printable(kind) or 'without suffix'}"
        + f" ({HEIF_REMEDY})" * (kind in HEIF_EXTENSIONS)
        for kind in ordered[:MOST_KINDS]
    ]
    if rest := sum(counts[kind] for kind in ordered[MOST_KINDS:]):
        kinds.append(f"{rest:,} others")
    total = counts.total()
    return f"passed over {total:,} file{'s' * (total > 1)}: {', '.join(kinds)}"


def _slashes(name: str) -> str:
    """A name with forward slashes; some programs on Windows write others."""
    return name.replace("\\", "/")


def member_name(number: int) -> str:
    """The name of an image, a thousand per folder: 00000/img00000000.png."""
    return f"{number // 1000:05d}/img{number:08d}.png"


def check_free(path: str | os.PathLike[str]) -> None:
    """Raises UserError if something exists at `path`."""
    if os.path.lexists(path):
        raise UserError(f"cannot write {path}: it exists; delete it or give another path")


def write_files(path: str | os.PathLike[str], files: Iterator[tuple[str, bytes]]) -> None:
    """Writes (name, content) pairs into a new zip, or into a folder if `path` is not named .zip.

    An error leaves nothing behind. Raises UserError if `path` exists or cannot be written.
    """
    check_free(path)
    if str(path).lower().endswith(".zip"):
        with atomic_path(path) as temporary, new_zip(temporary) as add:
            for name, content in files:
                add(name, content)
        return
    with new_folder(path) as folder:
        for name, content in files:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@contextmanager
def new_zip(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yields a function that adds a file to a zip by its name and content.

    The files have no dates, so that equal files give equal zips.
    """
    with zipfile.ZipFile(path, "w") as archive:
        yield lambda name, content: archive.writestr(zipfile.ZipInfo(name), content)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` when the block ends without an error.

    Raises UserError if that, or writing in the block, fails.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:64]}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        fault = f"{first_line(error)}; give a path that can be written and has room"
        raise UserError(f"cannot write {target}: {fault}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
