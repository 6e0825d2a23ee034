"""A user's own pictures, in a folder or a zip, as square training images.

The zip and `dataset.json` have StyleGAN's layout. Nothing is cached or written; every picture is decoded when it is asked for.
All headers are read when the dataset is made, so that a bad picture stops a training run before it starts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cips3d.camera import is_centred, is_rigid
from cips3d.data.sources import (
    Folder,
    Memory,
    Source,
    open_source,
    opened_picture,
    picture_names,
    upright_rgb,
)
from cips3d.errors import UserError, first_line, printable

#: StyleGAN's file of labels beside the pictures.
LABEL_FILE = "dataset.json"
LABEL_SIZE = 25
#: Resampling filters by name: the sharper one, and the one that averages areas.
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}


class ImageDataset(Dataset):
    """Square pictures from a folder (with its subfolders) or a zip, in the order of their names.

    A picture is turned upright (EXIF), laid on white where it is transparent, converted to RGB, cropped to its central square
    and resized; pictures of different sizes may be mixed. Hidden files and `__MACOSX` are passed over, and only the first frame
    of an animation is used.

    Attributes:
        path: the folder or the zip.
        resolution: side of the items, pixels.
        filter: name of the resampling filter: the one asked for, or that of `cips3d data build`, or "lanczos".
        names: the pictures' paths inside the folder or zip, sorted, with forward slashes.
        labels: (N, 25) camera labels of `dataset.json` in the order of the items (see `Camera.from_label`), or None if there is
            no such file, it has no labels, or its labels are class numbers.
    """

    #: Each image is decoded on its own.
    batch_hint = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int,
        filter: Literal["lanczos", "box"] | None = None,
        allow_upscaling: bool = False,
    ) -> None:
        """Finds the pictures, reads the labels and checks every header.

        Args:
            path: a folder or a zip of pictures (see `EXTENSIONS`).
            resolution: side of the items, pixels, ≥ 1.
            filter: resampling; "lanczos" is the sharper one, "box" averages areas. None takes the one that `cips3d data build`
                has recorded in the archive, and "lanczos" where there is none.
            allow_upscaling: take pictures whose shorter side is below `resolution` too; else they are refused.

        Raises:
            UserError: if the path, a picture, the zip or `dataset.json` cannot be used.
        """
        if resolution < 1:
            raise UserError(f"resolution: {resolution} has no pixels; give at least 1")
        if filter is not None and filter not in FILTERS:
            raise UserError(f"filter: {filter!r} is unknown; give one of {', '.join(FILTERS)}")
        self.path = Path(path)
        self.resolution = resolution
        self._allow_upscaling = allow_upscaling
        self._source = open_source(self.path)
        built_with = (read_recipe(self._source) or {}).get("filter")
        self.filter = filter or (
            built_with if isinstance(built_with, str) and built_with in FILTERS else "lanczos"
        )
        self.names = picture_names(self._source)
        self.labels = self._read_labels()
        self.validate()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        """The picture at `index`, (3, resolution, resolution).

        Raises:
            UserError: if the picture is damaged.
        """
        return _square(self._source, self.names[index], self.resolution, FILTERS[self.filter])

    @property
    def has_cameras(self) -> bool:
        """Whether every picture has a camera label."""
        return self.labels is not None

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """Camera labels of the pictures at `indices`; only where `has_cameras`."""
        assert self.labels is not None
        return self.labels[list(indices)]

    def check_cameras(self) -> None:
        """Raises UserError if a label is not of a centered pinhole camera in a rigid pose."""
        if self.labels is None:
            return
        unusable = (~(is_centred(self.labels) & is_rigid(self.labels))).nonzero()
        if len(unusable):
            raise UserError(
                f"{printable(self.path)}: the label of {printable(self.names[int(unusable[0])])} "
                "is not a rotation, a position and a centered pinhole camera with equal focal "
                "lengths; correct or remove the labels"
            )

    def truth(self) -> None:
        """None: nothing is known of the subjects."""

    def description(self) -> dict[str, Any]:
        """What the pictures depend on, JSON-ready; `built` tells how `cips3d data build` made them, where it did."""
        return {
            "name": str(self.path), "pictures": len(self), "resolution": self.resolution, "filter": self.filter,
            "built": read_recipe(self._source),
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """The same for two datasets only if their pictures are: a hash of the description and of the files' versions."""
        told = [self.description(), [self._source.version(name) for name in self.names]]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def validate(self) -> None:
        """Reads the header of every picture, without decoding it.

        Raises:
            UserError: naming the first picture that is unreadable, too large, or smaller than the resolution.
        """
        for name in self.names:
            with opened_picture(self._source, name) as image:
                width, height = image.size
            if min(width, height) < self.resolution and not self._allow_upscaling:
                raise UserError(
                    f"{self._place(name)}: is {width}x{height}, smaller than the resolution {self.resolution}; "
                    "choose a lower resolution, remove the picture, or enlarge it (cips3d data build --allow-upscaling)"
                )

    def _place(self, name: str) -> str:
        return printable(self._source.place(name))

    def _read_labels(self) -> Float[Tensor, "count 25"] | None:
        by_name = read_labels(self._source)
        if by_name is None or are_classes(by_name):
            return None
        place = printable(self._source.place(LABEL_FILE))
        return torch.tensor(
            [camera_label(by_name, name, place) for name in self.names], dtype=torch.float32
        )


def read_picture(path: str | os.PathLike[str], resolution: int) -> Float[Tensor, "1 3 side side"]:
    """One picture in [-1, 1], treated as those of an `ImageDataset`; a smaller one is enlarged.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(path)
    return picture_of(Folder(path.parent), path.name, resolution)


def picture_of(
    source: Source | Memory, name: str, resolution: int
) -> Float[Tensor, "1 3 side side"]:
    """As `read_picture`, from wherever the picture lies.

    Raises:
        UserError: if it cannot be read.
    """
    return _square(source, name, resolution, FILTERS["lanczos"])[None].float() / 127.5 - 1


def _square(
    source: Source | Memory, name: str, resolution: int, filter: Image.Resampling
) -> UInt8[Tensor, "3 side side"]:
    """A picture's central square, upright and resized."""
    with opened_picture(source, name) as image:
        square = central_square(upright_rgb(image), resolution, filter)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def read_labels(source: Source) -> dict[str, Any] | None:
    """The labels of a dataset.json by picture, or None where there are none.

    Raises:
        UserError: if the file cannot be read or has another form.
    """
    content = _label_file(source)
    if content is None:
        return None
    try:
        pairs = content["labels"]
        return None if pairs is None else dict(pairs)
    except (TypeError, KeyError, ValueError) as error:
        place = printable(source.place(LABEL_FILE))
        raise UserError(
            f'{place}: must be {{"labels": [[name, label], …]}} or have null labels; mend or remove it'
        ) from error


def are_classes(labels: dict[str, Any]) -> bool:
    """Whether labels are class numbers, which no network here looks at."""
    return all(type(label) is int for label in labels.values())


def read_recipe(source: Source) -> dict[str, Any] | None:
    """What `cips3d data build` recorded in a dataset.json; None where it made none.

    Raises:
        UserError: if the file cannot be read.
    """
    content = _label_file(source)
    recipe = content.get("cips3d") if isinstance(content, dict) else None
    return recipe if isinstance(recipe, dict) else None


def _label_file(source: Source) -> Any:
    """What a dataset.json holds, or None where there is none."""
    try:
        with source.open(LABEL_FILE) as file:
            return json.load(file)
    except (FileNotFoundError, KeyError):  # as a folder and a zip say that there is none
        return None
    except UserError:
        raise
    except Exception as error:
        place = printable(source.place(LABEL_FILE))
        raise UserError(
            f"{place}: is no readable JSON ({first_line(error)}); mend or remove it"
        ) from error


def central_square(image: Image.Image, resolution: int, filter: Image.Resampling) -> Image.Image:
    """The central square of a picture, resized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)


def camera_label(by_name: dict[str, Any], name: str, place: str) -> list[float]:
    """A picture's label of 25 numbers.

    Raises:
        UserError: if it has none, or another one.
    """
    label = by_name.get(name)
    if label is None:
        raise UserError(
            f"{place}: has no label for {printable(name)}; add one, or remove the picture or the labels"
        )
    numbers = isinstance(label, list) and all(
        type(x) in (int, float) and math.isfinite(x) for x in label
    )
    if not numbers or len(label) != LABEL_SIZE:
        raise UserError(
            f"{place}: the label of {printable(name)} must be {LABEL_SIZE} finite numbers; mend or remove the labels"
        )
    return label
