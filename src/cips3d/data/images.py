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
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cips3d.camera import is_centred, is_rigid
from cips3d.configuration import Count, validated
from cips3d.data.layout import read_contents
from cips3d.data.pixels import upright_rgb
from cips3d.data.sources import Folder, Source, open_image, open_source
from cips3d.errors import UserError, printable

#: Pillow's resampling: "lanczos" is sharper, "box" averages areas.
Filter = Literal["lanczos", "box"]


class ImageDataset(Dataset[Tensor]):
    """Square images from a folder (with its subfolders) or a zip, in the order of their names.

    Each image is turned upright (EXIF), composited onto white where it is transparent, converted
    to sRGB, cropped to its central square and resized. Sizes may differ. Hidden files and
    `__MACOSX` are skipped. Of an animation, only the first frame is used. Of a folder that holds a
    zip per resolution (`cips3d data build --resolution 32 64 …`), one zip is read.

    Attributes:
        names: sorted paths of the images inside the folder or zip, with forward slashes.
        labels: (N, 25) camera labels in the order of the items (see `Camera.from_label`), or None
            if there are none or they are class numbers.
        passed_over: a line that counts and names the files that are no images; empty if all are.
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
            filter: resampling. Default: the one that `cips3d data build` recorded in the zip, or
                "lanczos".
            allow_upscaling: accept images whose shorter side is below `resolution`.

        Raises:
            UserError: if the path, an image, the zip or `dataset.json` cannot be used.
        """
        self.path = Path(path)
        self.resolution: int = validated(Count, resolution, "resolution")
        self._source = open_source(self.path, self.resolution)
        contents = read_contents(self._source)
        self.names, self.passed_over = contents.names, contents.passed_over
        self._recipe = contents.recipe
        recorded = (self._recipe or {}).get("filter")
        default = recorded if recorded in get_args(Filter) else "lanczos"
        self.filter: Filter = validated(Filter, filter or default, "filter")
        self.labels: Float[Tensor, "count 25"] | None = None
        if contents.labels is not None:
            labels = [contents.labels[name] for name in self.names]
            if not contents.labels.are_classes:
                self.labels = torch.tensor(labels, dtype=torch.float32)
        for name in self.names:
            with open_image(self._source, name) as image:
                size = image.size
            if not allow_upscaling:
                check_size(size, self.resolution, printable(self._source.place(name)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        """The image at `index`; raises UserError if it is damaged."""
        return _square(self._source, self.names[index], self.resolution, self.filter)

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
            name = printable(self.names[int(unusable[0])])
            raise UserError(
                f"{printable(self.path)}: the label of {name} is not a rotation, a position and a "
                "centred pinhole camera with equal focal lengths; correct or remove the labels"
            )

    def truth(self) -> None:
        """None: nothing is known of the subjects."""

    def description(self) -> dict[str, Any]:
        """The settings that the images depend on; "built" is the record of `cips3d data build`."""
        sizes = {"images": len(self), "resolution": self.resolution, "filter": self.filter}
        return {"name": str(self.path), **sizes, "built": self._recipe}

    @property
    def fingerprint(self) -> str:
        """A hash of the description and of the versions of all files."""
        content = [self.description(), [self._source.version(name) for name in self.names]]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def read_image(path: str | os.PathLike[str], resolution: int) -> Float[Tensor, "1 3 side side"]:
    """Reads one image in [-1, 1], cropped and resized as by `ImageDataset`; enlarges small ones."""
    path = Path(path)
    return image_from(Folder(path.parent), path.name, resolution)


def image_from(source: Source, name: str, resolution: int) -> Float[Tensor, "1 3 side side"]:
    """As `read_image`, from any source."""
    return _square(source, name, resolution, "lanczos")[None].float() / 127.5 - 1


def _square(source: Source, name: str, side: int, filter: Filter) -> UInt8[Tensor, "3 side side"]:
    with open_image(source, name) as image:
        square = central_square(upright_rgb(image), side, filter)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def central_square(image: Image.Image, resolution: int, filter: Filter = "lanczos") -> Image.Image:
    """The central square of an image, resized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling[filter.upper()])


def check_size(size: tuple[int, int], resolution: int, place: str) -> None:
    """Raises UserError if an image of `size` (width, height) would have to be enlarged."""
    if min(size) < resolution:
        remedy = "choose a lower resolution, remove the image or enlarge it"
        raise UserError(
            f"{place}: is {size[0]}x{size[1]}, smaller than the resolution {resolution}; "
            f"{remedy} (cips3d data build --allow-upscaling)"
        )
