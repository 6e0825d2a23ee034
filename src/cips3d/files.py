"""Writing files whole or not at all, and pictures as files."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cips3d.errors import UserError, first_line


class _Undone(Exception):
    """Nothing shall be written after all."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises the error of `atomic_path` now, not when the work is done whose result the file shall hold; leaves nothing."""
    made = [folder for folder in Path(os.path.realpath(path)).parents if not os.path.exists(folder)]
    try:
        with contextlib.suppress(_Undone), atomic_path(path):
            raise _Undone
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary file beside `path`, with the same suffix, that takes its place when the block ends without an error.

    A reader sees the old file or the whole new one; a block that fails leaves the old file as it was and no other trace.
    The folder is made if it is missing, and a symbolic link is followed.

    Raises:
        UserError: if the file cannot be written (the folder is read-only, the disk is full, `path` is a folder, …).
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.stem[:64]}-{secrets.token_hex(4)}{target.suffix}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (
            target.exists() and not target.is_file()
        ):  # a replacement would destroy a device such as /dev/null
            raise OSError("it exists and is no ordinary file")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make a file of their own that only its owner can read
        with open(temporary, "rb+") as file:
            os.fsync(
                file.fileno()
            )  # else a power cut after the replacement could leave an empty file
        os.replace(temporary, target)
    except UserError as error:  # of what writes the temporary file in this way itself
        if str(temporary) not in str(error):
            raise
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {first_line(error)}; give a path that can be written and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
