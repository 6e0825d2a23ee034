"""Files of a client: photos that it opens, and image, mesh, subject and camera path to save."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import viser
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cips3d import pretrained
from cips3d.data.images import image_from
from cips3d.data.sources import Memory
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.meshes import extract_mesh, glb
from cips3d.files import png
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Styles
from cips3d.viewer.cameras import Pose
from cips3d.viewer.rendering import RenderSpeed, pixels_of, strips
from cips3d.viewer.requests import CANVAS_SIDES, View, within
from cips3d.viewer.worker import Steps

#: Contents of files by their names.
Files = dict[str, bytes]

#: Longest image file that is accepted, bytes.
LONGEST_FILE = 50_000_000
#: Cells along each side of a saved mesh.
_MESH_CELLS = 256
#: Shortest side of a saved image, and most pixels of one.
_SHORTEST_SIDE, _MOST_PIXELS = 256, 2**22
#: Seconds that a browser may take to draw a mesh.
_DRAWING_SECONDS = 20


def read_upload(name: str, content: bytes, side: int) -> Float[Tensor, "1 3 side side"]:
    """The central square of an image file in [-1, 1], upright, resized.

    Raises:
        UserError: if it is too long, damaged, unsafe to decode or not an image.
    """
    if len(content) > LONGEST_FILE:
        raise UserError(
            f"{name}: {len(content)} bytes are too many; use an image of at most {LONGEST_FILE}"
        )
    return image_from(Memory(content), name, side)


def saved_size(view: View) -> tuple[int, int]:
    """Height and width of a saved image: as large as it is in the browser, within limits."""
    longer = max(view.aspect, 1 / view.aspect)
    side = max(_SHORTEST_SIDE, min(view.canvas_side, math.isqrt(int(_MOST_PIXELS / longer))))
    return view.size(side)


def image_file(
    view: View, generator: RayGenerator, styles: Styles, speed: RenderSpeed
) -> Steps[Files]:
    """The view's image as PNG, at the size of the browser's canvas."""
    size, sampling = saved_size(view), view.sampling
    with torch.no_grad():
        samples = math.prod(size) * (sampling.coarse + sampling.fine)
        subject = generator.prepare_for(styles, samples)
    out = yield from strips(generator, subject, view.rendered_camera, size, sampling, speed)
    return {"view.png": png(Image.fromarray(pixels_of(out, view.mode)))}


def mesh_file(_: View, generator: RayGenerator, styles: Styles) -> Steps[Files]:
    """The subject's mesh as GLB."""
    yield 0.0
    return {"subject.glb": glb(extract_mesh(generator, styles, _MESH_CELLS))}


def subject_files(
    view: View, generator: RayGenerator, styles: Styles, own: RayGenerator
) -> Steps[Files]:
    """The subject as safetensors, with its model if that is not the viewer's own."""
    yield 0.0
    save = partial(Subject(styles, view.camera).save, generator=generator)
    files = _written("subject.safetensors", save)
    if generator is not own:  # tuned to a photo, or blended
        files |= _written("model.safetensors", partial(pretrained.save, generator))
    return files


def path_file(keyframes: list[dict[str, Any]]) -> Files:
    """The camera path as JSON."""
    if not keyframes:
        raise UserError("the camera path is empty; add views to it first")
    return {"camera-path.json": json.dumps({"keyframes": keyframes}, indent=1).encode()}


def drawing_file(client: viser.ClientHandle, pose: Pose) -> Files:
    """What the browser draws of a mesh, as PNG; waits for it."""
    height, width = (within(side, CANVAS_SIDES, 1) for side in (pose.height, pose.width))
    scale = max(1.0, _SHORTEST_SIDE / min(height, width))
    size = round(scale * height), round(scale * width)
    try:
        drawn = client.get_render(*size, transport_format="png", timeout=_DRAWING_SECONDS)
    except (RuntimeError, TimeoutError):
        raise UserError(
            "the browser did not draw the image; keep the viewer's tab in front"
        ) from None
    return {"view.png": png(Image.fromarray(drawn))}


def _written(name: str, write: Callable[[Path], None]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return {name: path.read_bytes()}
