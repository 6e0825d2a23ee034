"""Opens the files of a folder or zip, and the images among them, safely.

Decompression bombs (of pixels and of bytes) and zips whose members point outside the zip are
refused. Only the decoders of known formats are tried: Pillow passes PostScript to Ghostscript,
whatever the file is called.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin

from cips3d.data.pixels import UnclearPixelsError, check_kind, check_pages
from cips3d.errors import UserError, first_line, printable

#: Pillow's decoders. Pillow chooses by content.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
#: Extensions of images, in any case. Other files are passed over.
_EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".avif"),
)
#: HEIC is read where its plug-in is installed, which Pillow does not load by itself.
HEIF_EXTENSIONS, HEIF_REMEDY = (".heic", ".heif", ".hif"), "install pillow-heif"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
with contextlib.suppress(ImportError):
    import_module("pillow_heif").register_heif_opener()
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
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._owner = 0

    def names(self) -> list[str]:
        """Names with forward slashes; some programs on Windows write others."""
        archive = self._opened()
        for info in archive.infolist():
            inside = PureWindowsPath(info.filename)  # understands both kinds of slash, and drives
            if inside.anchor or ".." in inside.parts:
                fault = f"its member {printable(info.filename)} points outside the zip"
                raise UserError(f"{printable(self.path)}: {fault}; create the zip again")
        return [name for name in self._members if not name.endswith("/")]

    def open(self, name: str) -> Any:  # a readable, seekable binary file
        archive, info = self._opened(), self._members[name]
        most = MOST_BYTES if is_image(name) else MOST_OTHER_BYTES
        if info.file_size > most:
            fault = f"unpacks to {info.file_size} bytes, more than {most}"
            remedy = "remove it, or give the unpacked folder"
            raise UserError(f"{printable(self.place(name))}: {fault}; {remedy}")
        return archive.open(info)

    def place(self, name: str) -> str:
        return f"{name} in {self.path}"

    def version(self, name: str) -> list[int]:
        self._opened()
        return [self._members[name].file_size, self._members[name].CRC]

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
            members = self._archive.infolist()
            self._members = {info.filename.replace("\\", "/"): info for info in members}
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None, "_members": {}}


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


def open_source(path: Path, resolution: int | None = None) -> Archive:
    """The files of a folder or zip.

    Of a folder with a zip per resolution, which `cips3d data build` writes, it opens the zip of
    `resolution`, else the next larger one, else the largest.

    Raises:
        UserError: if there is none or it cannot be read.
    """
    if not path.exists():
        raise UserError(f"{printable(path)}: no such folder or zip; check the path")
    if sides := _zip_sides(path):
        enough = [side for side in sides if resolution is not None and side >= resolution]
        path = path / f"{min(enough, default=max(sides))}.zip"
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


def _zip_sides(path: Path) -> list[int]:
    """The resolutions of a folder that holds a zip per resolution (64.zip) and nothing else."""
    sides = []
    with contextlib.suppress(OSError):  # it is a file, or reading it fails later
        for entry in path.iterdir():
            name = re.fullmatch(r"([1-9][0-9]*)\.zip", entry.name)
            if name is None and not entry.name.startswith("."):
                return []
            sides += [int(name[1])] if name else []
    return sides


def extensions() -> tuple[str, ...]:
    """Extensions of the images that can be read, in lower case."""
    return _EXTENSIONS + (HEIF_EXTENSIONS if "HEIF" in Image.OPEN else ())


def is_image(name: str) -> bool:
    """Whether a path has the extension of an image that can be read."""
    return name.lower().endswith(extensions())


def is_hidden(name: str) -> bool:
    """Whether a path or one of its folders is hidden."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


@contextmanager
def open_image(source: Source, name: str) -> Iterator[Image.Image]:
    """An image whose header has been read. Pixels are decoded at their first use.

    Raises UserError for an image that is damaged, unsafe to decode or of an unknown kind of
    pixels, also from inside the block.
    """
    formats = (*_FORMATS, "HEIF") if "HEIF" in Image.OPEN else _FORMATS
    start = b""
    try:
        with warnings.catch_warnings(), source.open(name) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            start = file.read(12)
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                check_kind(image)
                check_pages(image)
                yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything for damaged data
        raise UserError(f"{printable(source.place(name))}: {_fault(error, start)}") from error


@contextmanager
def pixel_limit(most: int | None) -> Iterator[None]:
    """Inside, images of up to `most` pixels are opened; None keeps Pillow's limit."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = before if most is None else most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_pixels(width: int, height: int, place: str) -> None:
    """Raises UserError if an image has too many pixels to decode safely."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{place}: {_too_many_pixels()}")


def _too_many_pixels() -> str:
    fault = f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe to decode"
    return f"{fault}; scale it down, remove it, or raise --max-pixels of cips3d data build"


def _fault(error: Exception, start: bytes) -> str:
    """What is wrong with an image that starts with these bytes, and what to do about it."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _too_many_pixels()
    if isinstance(error, FileNotFoundError):
        return "there is no such file; check the name"
    if isinstance(error, UnclearPixelsError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        if start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
            return f"is HEIC; {HEIF_REMEDY}, or save it as JPEG"
        if start[:4] in TiffImagePlugin.PREFIXES:
            return "is a TIFF of an unknown kind of pixels, or damaged; save it again as 8-bit RGB"
        return "is not a readable image; remove it or save it again"
    return f"is damaged or cannot be read ({first_line(error)}); remove it or save it again"
