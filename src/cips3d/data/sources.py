"""Where a user's pictures lie, a folder or a zip, and how they are opened: safely, upright, as RGB.

Decompression bombs, of pixels and of bytes, and a zip with members that point outside it are refused; every fault names its
picture. Nothing but the decoders of known formats is tried: Pillow would hand PostScript, whatever its name, to Ghostscript.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cips3d.errors import UserError, first_line, printable

#: File names that are taken for pictures, in any case; other files are passed over.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Pillow's decoders for them, by content.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
#: Bytes of a zip's member when unpacked, at most: of a picture, and of any other file.
MOST_BYTES, MOST_OTHER_BYTES = 2**28, 2**30


class Folder:
    """The files of a folder and of its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        def fail(error: OSError) -> None:
            raise UserError(
                f"{printable(error.filename)}: cannot be listed ({first_line(error)}); make the folder readable"
            )

        walk = os.walk(self.path, onerror=fail)
        return [
            (Path(folder) / name).relative_to(self.path).as_posix()
            for folder, _, files in walk
            for name in files
        ]

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return open(self.path / name, "rb")

    def place(self, name: str) -> str:
        return str(self.path / name)

    def version(self, name: str) -> list[int]:
        """Numbers that change when the file does: its size, and when it was last written."""
        status = (self.path / name).stat()
        return [status.st_size, status.st_mtime_ns]


class Zip:
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
                raise UserError(
                    f"{printable(self.path)}: its member {printable(name)} points outside the zip; make the zip again"
                )
        return names

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        size, most = (
            self._opened().getinfo(name).file_size,
            MOST_BYTES if is_picture(name) else MOST_OTHER_BYTES,
        )
        if size > most:
            raise UserError(
                f"{printable(self.place(name))}: unpacks to {size} bytes, more than {most}; remove it"
            )
        return self._opened().open(name)

    def place(self, name: str) -> str:
        return f"{name} in {self.path}"

    def version(self, name: str) -> list[int]:
        """Numbers that change when the member does: its size and its checksum."""
        info = self._opened().getinfo(name)
        return [info.file_size, info.CRC]

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


class Memory:
    """One file that is in memory only, such as one that came over a network."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return io.BytesIO(self._content)

    def place(self, name: str) -> str:
        return name


Source = Folder | Zip


def open_source(path: Path) -> Source:
    """The files of a folder or a zip.

    Raises:
        UserError: if there is none that can be read.
    """
    if not path.exists():
        raise UserError(f"{printable(path)}: no such folder or zip; check the path")
    if path.is_dir():
        return Folder(path)
    source = Zip(path)
    try:
        source.names()
    except (
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        ValueError,
    ) as error:  # the last two of damaged headers
        if isinstance(error, OSError) and error.strerror:
            raise UserError(
                f"{printable(path)}: cannot be read ({error.strerror}); give a readable folder or zip"
            ) from error
        if path.suffix.lower() == ".zip":
            raise UserError(
                f"{printable(path)}: is damaged or cut off ({first_line(error)}); make or copy the zip again"
            ) from error
        raise UserError(
            f"{printable(path)}: is neither a folder nor a zip of pictures; give one of these"
        ) from error
    return source


def picture_names(source: Source) -> list[str]:
    """The pictures' paths inside a folder or zip, sorted, with forward slashes; hidden files and __MACOSX are passed over.

    Raises:
        UserError: if there are none.
    """
    names = sorted(name for name in source.names() if is_picture(name))
    if not names:
        raise UserError(
            f"{printable(source.path)}: holds no pictures; looked for {', '.join(EXTENSIONS)}"
        )
    return names


def is_picture(name: str) -> bool:
    """Whether a path has a picture's extension and is not hidden."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(EXTENSIONS) and not hidden


@contextmanager
def opened_picture(source: Source | Memory, name: str) -> Iterator[Image.Image]:
    """A picture with its header read; its pixels are decoded when they are used.

    Raises:
        UserError: if it is damaged, unsafe to decode, or fails while it is used in the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with source.open(name) as file, Image.open(file, formats=FORMATS) as image:
                yield image
    except (UserError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # decoders of damaged data raise nearly anything, and all of it is the file's fault
        raise _unreadable(printable(source.place(name)), error) from error


def _unreadable(place: str, error: Exception) -> UserError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        reason = f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe to decode; scale it down or remove it"
    elif isinstance(error, FileNotFoundError):
        reason = "there is no such file; check the name"
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = "is no picture that can be read; remove it or save it again"
    else:
        reason = f"is damaged or cannot be read ({first_line(error)}); remove it or save it again"
    return UserError(f"{place}: {reason}")


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture turned upright (EXIF), laid on white where it is transparent, as RGB; of 16 bits the upper eight."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(
        "I"
    ):  # 16-bit grey: Pillow would clip to 255 where we want the high byte
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        transparent = np.asarray(image) == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, not 8 or 16 bits")
    return image.convert("RGB")
