"""A user's own pictures, in a folder or a zip, as square training images.

The zip and `dataset.json` have StyleGAN's layout. Nothing is cached or written; every picture is decoded when it is asked for.
All headers are read when the dataset is made, so that a bad picture stops a training run before it starts.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from cips3d.errors import UserError

#: File names that are taken for pictures, in any case; other files are passed over.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_LABEL_FILE = "dataset.json"
_LABEL_SIZE = 25
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}


class ImageDataset(Dataset):
    """Square pictures from a folder (with its subfolders) or a zip, in the order of their names.

    A picture is turned upright (EXIF), laid on white where it is transparent, converted to RGB, cropped to its central square
    and resized; pictures of different sizes may be mixed. Hidden files and `__MACOSX` are passed over, and only the first frame
    of an animation is used.

    Attributes:
        path: the folder or the zip.
        resolution: side of the items, pixels.
        names: the pictures' paths inside the folder or zip, sorted, with forward slashes.
        labels: (N, 25) camera labels of `dataset.json` in the order of the items (see `Camera.from_label`), or None if there is
            no such file, it has no labels, or its labels are class numbers.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int,
        filter: Literal["lanczos", "box"] = "lanczos",
        allow_upscaling: bool = False,
    ) -> None:
        """Finds the pictures, reads the labels and checks every header.

        Args:
            path: a folder or a zip of pictures (see `EXTENSIONS`).
            resolution: side of the items, pixels, ≥ 1.
            filter: resampling; "lanczos" is the sharper one, "box" averages areas.
            allow_upscaling: take pictures whose shorter side is below `resolution` too; else they are refused.

        Raises:
            UserError: if the path, a picture, the zip or `dataset.json` cannot be used.
        """
        if resolution < 1:
            raise UserError(f"resolution: {resolution} has no pixels; give at least 1")
        if filter not in _FILTERS:
            raise UserError(f"filter: {filter!r} is unknown; give one of {', '.join(_FILTERS)}")
        self.path = Path(path)
        self.resolution = resolution
        self._filter = _FILTERS[filter]
        self._allow_upscaling = allow_upscaling
        self._source = _source(self.path)
        self.names = sorted(name for name in self._source.names() if _is_picture(name))
        if not self.names:
            raise UserError(f"{_shown(path)}: holds no pictures; looked for {', '.join(EXTENSIONS)}")
        self.labels = self._read_labels()
        self.validate()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 side side"]:
        """The picture at `index`, (3, resolution, resolution).

        Raises:
            UserError: if the picture is damaged.
        """
        name = self.names[index]
        try:
            with self._source.open(name) as file, _open_picture(file) as image:
                square = _square(_to_rgb(ImageOps.exif_transpose(image)), self.resolution, self._filter)
        except Exception as error:  # decoders of damaged data raise nearly anything, and all of it is the file's fault
            raise self._unreadable(name, error) from error
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    @property
    def has_cameras(self) -> bool:
        """Whether every picture has a camera label."""
        return self.labels is not None

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """Camera labels of the pictures at `indices`; only where `has_cameras`."""
        assert self.labels is not None
        return self.labels[list(indices)]

    def validate(self) -> None:
        """Reads the header of every picture, without decoding it.

        Raises:
            UserError: naming the first picture that is unreadable, too large, or smaller than the resolution.
        """
        for name in self.names:
            try:
                with self._source.open(name) as file, _open_picture(file) as image:
                    width, height = image.size
            except Exception as error:
                raise self._unreadable(name, error) from error
            if min(width, height) < self.resolution and not self._allow_upscaling:
                raise UserError(
                    f"{self._place(name)}: is {width}x{height}, smaller than the resolution {self.resolution}; "
                    "choose a lower resolution, remove the picture or allow upscaling"
                )

    def _place(self, name: str) -> str:
        return _shown(self._source.place(name))

    def _unreadable(self, name: str, error: Exception) -> UserError:
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason = f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe to decode; scale it down or remove it"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "is no picture that can be read; remove it or save it again"
        else:
            reason = f"is damaged or cannot be read ({_first_line(error)}); remove it or save it again"
        return UserError(f"{self._place(name)}: {reason}")

    def _read_labels(self) -> Float[Tensor, "count 25"] | None:
        place = self._place(_LABEL_FILE)
        try:
            with self._source.open(_LABEL_FILE) as file:
                content = json.load(file)
        except (FileNotFoundError, KeyError):  # as a folder and a zip say that there is none
            return None
        except Exception as error:
            raise UserError(f"{place}: is no readable JSON ({_first_line(error)}); mend or remove it") from error
        try:
            pairs = content["labels"]
            by_name = None if pairs is None else dict(pairs)
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f'{place}: must be {{"labels": [[name, label], …]}} or have null labels; mend or remove it'
            ) from error
        if by_name is None or all(type(label) is int for label in by_name.values()):
            return None
        return torch.tensor([_camera_label(by_name, name, place) for name in self.names], dtype=torch.float32)


class _Folder:
    """The files of a folder and of its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        def fail(error: OSError) -> None:
            raise UserError(f"{_shown(error.filename)}: cannot be listed ({_first_line(error)}); make the folder readable")

        walk = os.walk(self.path, onerror=fail)
        return [(Path(folder) / name).relative_to(self.path).as_posix() for folder, _, files in walk for name in files]

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return open(self.path / name, "rb")

    def place(self, name: str) -> str:
        return str(self.path / name)


class _Zip:
    """The members of a zip; every process opens the file for itself, since a shared file position would mix their reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def names(self) -> list[str]:
        names = [info.filename for info in self._opened().infolist() if not info.is_dir()]
        for name in names:
            inside = PureWindowsPath(name)  # which knows both kinds of slash, and drives
            if inside.anchor or ".." in inside.parts:
                raise UserError(f"{_shown(self.path)}: its member {_shown(name)} points outside the zip; make the zip again")
        return names

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return self._opened().open(name)

    def place(self, name: str) -> str:
        return f"{name} in {self.path}"

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def _source(path: Path) -> _Folder | _Zip:
    if not path.exists():
        raise UserError(f"{_shown(path)}: no such folder or zip; check the path")
    if path.is_dir():
        return _Folder(path)
    source = _Zip(path)
    try:
        source.names()
    except (zipfile.BadZipFile, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{_shown(path)}: cannot be read ({error.strerror}); give a readable folder or zip") from error
        if path.suffix.lower() == ".zip":
            raise UserError(
                f"{_shown(path)}: is damaged or cut off ({_first_line(error)}); make or copy the zip again"
            ) from error
        raise UserError(f"{_shown(path)}: is neither a folder nor a zip of pictures; give one of these") from error
    return source


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(EXTENSIONS) and not hidden


def _open_picture(file: Any) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip to 255 where we want the high byte
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, not 8 or 16 bits")
    return image.convert("RGB")


def _square(image: Image.Image, resolution: int, filter: Image.Resampling) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((resolution, resolution), filter)


def _camera_label(by_name: dict[str, Any], name: str, place: str) -> list[float]:
    label = by_name.get(name)
    if label is None:
        raise UserError(f"{place}: has no label for {_shown(name)}; add one, or remove the picture or the labels")
    numbers = isinstance(label, list) and all(type(x) in (int, float) and math.isfinite(x) for x in label)
    if not numbers or len(label) != _LABEL_SIZE:
        raise UserError(f"{place}: the label of {_shown(name)} must be {_LABEL_SIZE} finite numbers; mend or remove the labels")
    return label


def _first_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _shown((text or type(error).__name__).splitlines()[0])


def _shown(text: object) -> str:
    """`text` as it can be printed on one line, whatever bytes a file name holds."""
    return "".join(c if c.isprintable() else "?" for c in str(text))
