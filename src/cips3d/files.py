"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cips3d.errors import UserError, first_line


class _NotWritten(Exception):
    """Ends `atomic_path` without a file."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises the error that `atomic_path` would raise, before the work; leaves no trace."""
    made = [folder for folder in Path(os.path.realpath(path)).parents if not os.path.exists(folder)]
    try:
        with contextlib.suppress(_NotWritten), atomic_path(path):
            raise _NotWritten
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the block ends without an error.

    It is empty and has the same suffix. A reader sees the old file or the whole new one; a block
    that fails leaves the old file unchanged. Missing folders are made, symbolic links followed.

    Raises:
        UserError: if the file cannot be written (read-only folder, full disk, `path` is a folder).
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.stem[:64]}-{secrets.token_hex(4)}{target.suffix}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # replacing /dev/null would destroy it
            raise OSError("it exists and is no ordinary file")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make a new file that only its owner can read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave an empty file
        os.replace(temporary, target)
    except UserError as error:  # from a writer that itself uses `atomic_path` on the temporary file
        if str(temporary) not in str(error):
            raise
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {first_line(error)}; "
            "give a path that can be written and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def suffix_of(path: str | os.PathLike[str], *allowed: str) -> str:
    """The suffix of `path` in lower case.

    Raises:
        UserError: if it is none of the allowed ones.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in allowed:
        *others, last = allowed
        choice = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{path}: the name must end in {choice}")
    return suffix


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
