"""Opens a user's images in a folder or zip: safely, upright and as RGB.

Decompression bombs (of pixels and of bytes) and zips whose members point outside the zip are
refused. Only the decoders of known formats are tried: Pillow passes PostScript to Ghostscript,
whatever the file is called.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from cips3d.errors import UserError, first_line, printable

#: Pillow's decoders. Pillow chooses by content.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
#: Extensions of images, in any case. Other files are skipped.
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif"),
)
#: Largest unpacked size of an image in a zip, and of any other member, bytes.
MOST_BYTES, MOST_OTHER_BYTES = 2**28, 2**30
# Pillow takes 16 MiB of unpacked text or colour profile for an attack; scanners write more
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_BYTES


class Folder:
    """The files in a folder and its subfolders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        def fail(error: OSError) -> None:
            fault = f"cannot be listed ({first_line(error)}); make the folder readable"
            raise UserError(f"{printable(error.filename)}: {fault}")

        # links to folders come last, so each folder is read once, by its own name if it has one
        names, seen, roots = [], set(), [str(self.path)]
        while roots:
            root = roots.pop(0)
            for folder, inner, files in os.walk(root, onerror=fail):
                if os.path.realpath(folder) in seen:
                    inner.clear()
                    continue
                seen.add(os.path.realpath(folder))
                names += [(Path(folder) / name).relative_to(self.path).as_posix() for name in files]
                inside = (os.path.join(folder, name) for name in inner)
                roots += sorted(path for path in inside if os.path.islink(path))
        return names

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return open(self.path / name, "rb")

    def place(self, name: str) -> str:
        return str(self.path / name)

    def version(self, name: str) -> list[int]:
        status = (self.path / name).stat()
        return [status.st_size, status.st_mtime_ns]


class Zip:
    """The members of a zip. Each process opens it: forked processes share a file position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def names(self) -> list[str]:
        names = [info.filename for info in self._opened().infolist() if not info.is_dir()]
        for name in names:
            inside = PureWindowsPath(name)  # understands both kinds of slash, and drives
            if inside.anchor or ".." in inside.parts:
                fault = f"its member {printable(name)} points outside the zip"
                raise UserError(f"{printable(self.path)}: {fault}; create the zip again")
        return names

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        size = self._opened().getinfo(name).file_size
        most = MOST_BYTES if is_image(name) else MOST_OTHER_BYTES
        if size > most:
            fault = f"unpacks to {size} bytes, more than {most}; remove it"
            raise UserError(f"{printable(self.place(name))}: {fault}")
        return self._opened().open(name)

    def place(self, name: str) -> str:
        return f"{name} in {self.path}"

    def version(self, name: str) -> list[int]:
        info = self._opened().getinfo(name)
        return [info.file_size, info.CRC]

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


class Memory:
    """A single file in memory, such as an upload."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        return io.BytesIO(self._content)

    def place(self, name: str) -> str:
        return name


Archive = Folder | Zip
Source = Archive | Memory


def open_source(path: Path) -> Archive:
    """The files of a folder or zip; raises UserError if there is none or it cannot be read."""
    if not path.exists():
        raise UserError(f"{printable(path)}: no such folder or zip; check the path")
    if path.is_dir():
        return Folder(path)
    source = Zip(path)
    try:
        source.names()
    # damaged headers raise the last two
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            fault = f"cannot be read ({error.strerror}); give a readable folder or zip"
        elif path.suffix.lower() == ".zip":
            fault = f"is damaged or cut off ({first_line(error)}); create or copy the zip again"
        else:
            fault = "is neither a folder nor a zip of images; give one of these"
        raise UserError(f"{printable(path)}: {fault}") from error
    return source


def image_names(source: Archive) -> list[str]:
    """Sorted paths of the images in a folder or zip; raises UserError if there are none."""
    names = sorted(name for name in source.names() if is_image(name))
    if not names:
        fault = f"contains no images; looked for {', '.join(EXTENSIONS)}"
        raise UserError(f"{printable(source.path)}: {fault}")
    return names


def is_image(name: str) -> bool:
    """Whether a path has an image's extension and is not hidden."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return name.lower().endswith(EXTENSIONS) and not hidden


@contextmanager
def open_image(source: Source, name: str) -> Iterator[Image.Image]:
    """An image whose header has been read. Pixels are decoded at their first use.

    Raises UserError for an image that is damaged or unsafe to decode, also from inside the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with source.open(name) as file, Image.open(file, formats=FORMATS) as image:
                yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything for damaged data
        raise UserError(f"{printable(source.place(name))}: {_fault(error)}") from error


def check_pixels(width: int, height: int, place: str) -> None:
    """Raises UserError if an image has too many pixels to decode safely."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{place}: {_too_many_pixels()}")


def _too_many_pixels() -> str:
    limit = Image.MAX_IMAGE_PIXELS
    return f"has more than the {limit} pixels that are safe to decode; scale it down or remove it"


def _fault(error: Exception) -> str:
    """What is wrong with an image, and what to do about it."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _too_many_pixels()
    if isinstance(error, FileNotFoundError):
        return "there is no such file; check the name"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not a readable image; remove it or save it again"
    return f"is damaged or cannot be read ({first_line(error)}); remove it or save it again"


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image with its colours converted from an embedded profile of RGB or CMYK to sRGB."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        converted = ImageCms.applyTransform(image, _to_srgb(profile, image.mode, mode))
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another kind of pixels
        return image
    assert converted is not None
    return converted


@functools.lru_cache(16)
def _to_srgb(profile: bytes, mode: str, out: str) -> ImageCms.ImageCmsTransform:
    """A dataset has few profiles, and a transform takes longer to make than to apply."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, target, mode, out)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image turned upright (EXIF), on white and as sRGB; the upper eight of 16 bits are kept."""
    image = _in_srgb(ImageOps.exif_transpose(image))
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        transparent = np.asarray(image) == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, not 8 or 16 bits")
    return image.convert("RGB")
