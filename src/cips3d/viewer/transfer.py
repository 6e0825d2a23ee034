"""Files that clients send and get."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cips3d.data.images import image_from
from cips3d.data.sources import Memory
from cips3d.errors import UserError

#: Longest file that is taken for a picture, bytes.
LONGEST_FILE = 50_000_000


def read_upload(name: str, content: bytes, side: int) -> Float[Tensor, "1 3 side side"]:
    """The central square of a picture in [-1, 1], upright, resized.

    Args:
        name: what to call it in an error line.
        content: of the file.
        side: pixels.

    Raises:
        UserError: if it is too long, damaged, unsafe to decode or no picture.
    """
    if len(content) > LONGEST_FILE:
        raise UserError(
            f"{name}: has {len(content)} bytes; give a picture of at most {LONGEST_FILE}"
        )
    return image_from(Memory(content), name, side)


def written(name: str, write: Callable[[Path], None]) -> bytes:
    """What a function writes to a file of that name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()
