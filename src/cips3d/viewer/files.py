"""Files that clients send and get."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cips3d.data.images import central_square
from cips3d.data.sources import Folder, opened_picture, upright_rgb
from cips3d.errors import UserError
from cips3d.export.mesh import save_mesh

#: Longest file that is taken for a picture, bytes.
LONGEST_FILE = 50_000_000


class _Upload(Folder):
    """A folder in memory with one picture."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(Path(name))
        self._content = content

    def open(self, name: str) -> Any:
        return io.BytesIO(self._content)

    def place(self, name: str) -> str:
        return name


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
        raise UserError(f"{name}: has {len(content)} bytes; give a picture of at most {LONGEST_FILE}")
    with opened_picture(_Upload(name, content), name) as image:
        square = central_square(upright_rgb(image), side, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1


def png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def glb(mesh: trimesh.Trimesh) -> bytes:
    """A mesh as a GLB file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.glb"
        save_mesh(path, mesh)
        return path.read_bytes()
