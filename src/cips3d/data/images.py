"""A user's own images, in a folder or zip of StyleGAN's layout, as square training images.

Nothing is cached or written: each image is decoded when it is requested. Opening the dataset reads
all headers, so that a bad image is found before a training run starts.
"""

from __future__ import annotations

import hashlib
import json
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
from cips3d.configuration import Count, validated
from cips3d.data.layout import read_labels, read_recipe
from cips3d.data.sources import (
    Folder,
    Memory,
    Source,
    image_names,
    open_image,
    open_source,
    upright_rgb,
)
from cips3d.errors import UserError, printable

Filter = Literal["lanczos", "box"]
#: Resampling by name: "lanczos" is sharper, "box" averages areas.
FILTERS: dict[Any, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


class ImageDataset(Dataset[Tensor]):
    """Square images from a folder (with its subfolders) or a zip, in the order of their names.

    Each image is turned upright (EXIF), composited onto white where it is transparent, converted
    to RGB, cropped to its central square and resized. Sizes may differ. Hidden files and
    `__MACOSX` are skipped. Of an animation, only the first frame is used.

    Attributes:
        path: the folder or zip.
        resolution: side of the items, pixels.
        filter: name of the resampling filter.
        names: paths of the images inside the folder or zip, sorted, with forward slashes.
        labels: (N, 25) camera labels of `dataset.json` in the order of the items (see
            `Camera.from_label`), or None if there are none or they are class numbers.
    """

    #: Each image is decoded on its own.
    batch_hint = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int,
        filter: Filter | None = None,
        allow_upscaling: bool = False,
    ) -> None:
        """Finds the images, reads the labels and checks every header.

        Args:
            path: a folder or zip of images (see `EXTENSIONS`).
            resolution: side of the items, pixels, ≥ 1.
            filter: resampling. Default: the one that `cips3d data build` recorded in the zip, or
                "lanczos".
            allow_upscaling: accept images whose shorter side is below `resolution`.

        Raises:
            UserError: if the path, an image, the zip or `dataset.json` cannot be used.
        """
        self.path = Path(path)
        self.resolution: int = validated(Count, resolution, "resolution")
        self._allow_upscaling = allow_upscaling
        self._source = open_source(self.path)
        recorded = (read_recipe(self._source) or {}).get("filter")
        default = recorded if isinstance(recorded, str) and recorded in FILTERS else "lanczos"
        self.filter: str = validated(Filter, filter or default, "filter")
        self.names = image_names(self._source)
        self.labels = self._read_camera_labels()
        self.validate()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        """The image at `index`, (3, resolution, resolution).

        Raises:
            UserError: if the image is damaged.
        """
        return _square(self._source, self.names[index], self.resolution, FILTERS[self.filter])

    @property
    def has_cameras(self) -> bool:
        """Whether every image has a camera label."""
        return self.labels is not None

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """Camera labels of the images at `indices`; requires `has_cameras`."""
        assert self.labels is not None
        return self.labels[list(indices)]

    def check_cameras(self) -> None:
        """Raises UserError if a label is not of a centred pinhole camera in a rigid pose."""
        if self.labels is None:
            return
        unusable = (~(is_centred(self.labels) & is_rigid(self.labels))).nonzero()
        if len(unusable):
            raise UserError(
                f"{printable(self.path)}: the label of {printable(self.names[int(unusable[0])])} "
                "is not a rotation, a position and a centred pinhole camera with equal focal "
                "lengths; correct or remove the labels"
            )

    def truth(self) -> None:
        """None: nothing is known of the subjects."""

    def description(self) -> dict[str, Any]:
        """The settings that the images depend on, JSON-ready.

        "built" is the record of `cips3d data build`, or None.
        """
        return {
            "name": str(self.path),
            "images": len(self),
            "resolution": self.resolution,
            "filter": self.filter,
            "built": read_recipe(self._source),
        }

    @property
    def fingerprint(self) -> str:
        """A hash of the description and of the versions of all files."""
        content = [self.description(), [self._source.version(name) for name in self.names]]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def validate(self) -> None:
        """Reads the header of every image without decoding it.

        Raises:
            UserError: naming the first image that is unreadable, too large, or smaller than the
                resolution.
        """
        for name in self.names:
            with open_image(self._source, name) as image:
                size = image.size
            if not self._allow_upscaling:
                check_size(size, self.resolution, printable(self._source.place(name)))

    def _read_camera_labels(self) -> Float[Tensor, "count 25"] | None:
        labels = read_labels(self._source)
        if labels is None or labels.are_classes:
            return None
        return torch.tensor([labels.camera(name) for name in self.names], dtype=torch.float32)


def read_image(path: str | os.PathLike[str], resolution: int) -> Float[Tensor, "1 3 side side"]:
    """Reads one image in [-1, 1], cropped and resized as by `ImageDataset`; enlarges small ones.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(path)
    return image_from(Folder(path.parent), path.name, resolution)


def image_from(
    source: Source | Memory, name: str, resolution: int
) -> Float[Tensor, "1 3 side side"]:
    """Reads an image as `read_image` does, from any source.

    Raises:
        UserError: if it cannot be read.
    """
    return _square(source, name, resolution, FILTERS["lanczos"])[None].float() / 127.5 - 1


def _square(
    source: Source | Memory, name: str, resolution: int, filter: Image.Resampling
) -> UInt8[Tensor, "3 side side"]:
    """The central square of an image, upright and resized."""
    with open_image(source, name) as image:
        square = central_square(upright_rgb(image), resolution, filter)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def central_square(image: Image.Image, resolution: int, filter: Image.Resampling) -> Image.Image:
    """The central square of an image, resized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)


def check_size(size: tuple[int, int], resolution: int, place: str) -> None:
    """Raises UserError if an image of `size` (width, height) would have to be enlarged."""
    if min(size) < resolution:
        raise UserError(
            f"{place}: is {size[0]}x{size[1]}, smaller than the resolution {resolution}; choose a "
            "lower resolution, remove the image or enlarge it "
            "(cips3d data build --allow-upscaling)"
        )
