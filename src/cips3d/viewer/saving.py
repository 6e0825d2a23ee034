"""Files that a client saves: image, mesh, subject, camera path."""

from __future__ import annotations

import json
import math
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import viser
from PIL import Image

from cips3d import pretrained
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.meshes import extract_mesh, glb
from cips3d.files import png
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Styles
from cips3d.viewer.canvas import Canvas
from cips3d.viewer.rendering import RenderSpeed, pixels_of, strips
from cips3d.viewer.requests import LARGEST_CANVAS, Pose, View, whole
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.worker import Steps, Worker, Workers

#: Cells along each side of a saved mesh.
_MESH_CELLS = 256
#: Shortest side of a saved image, and most pixels of one.
_SHORTEST_SIDE, _MOST_PIXELS = 256, 2**22
#: Seconds that a browser may take to draw a mesh.
_DRAWING_SECONDS = 20


def saved_size(view: View) -> tuple[int, int]:
    """Height and width of a saved image: as large as it is in the browser, within limits."""
    longer = max(view.aspect, 1 / view.aspect)
    side = max(_SHORTEST_SIDE, min(view.canvas_side, math.isqrt(int(_MOST_PIXELS / longer))))
    return view.size(side)


def file_content(name: str, write: Callable[[Path], None]) -> bytes:
    """What a function writes to a file of that name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


class Saver:
    """Makes files for a client and sends them to its browser.

    Args:
        client: handle of the client.
        canvas: its canvas.
        subjects: the model's subjects.
        workers: threads that make the files.
        speed: rendering speed.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        canvas: Canvas,
        subjects: Subjects,
        workers: Workers,
        speed: RenderSpeed,
    ) -> None:
        self._client, self._canvas = client, canvas
        self._subjects, self._workers, self._speed = subjects, workers, speed
        self._drawing = threading.Lock()

    def image(self, view: View) -> None:
        """The view's image as PNG, at the size of the browser's canvas."""
        self._submit(self._workers.images, "image file", view, self._image_steps)

    def mesh(self, view: View) -> None:
        """The subject's mesh as GLB."""
        self._submit(self._workers.meshes, "mesh file", view, self._mesh_steps)

    def subject(self, view: View) -> None:
        """The subject as safetensors, with its model if that is not the viewer's own."""
        self._submit(self._workers.meshes, "subject file", view, self._subject_steps)

    def path(self, keyframes: list[dict[str, Any]]) -> None:
        """The camera path as JSON."""
        if not keyframes:
            raise UserError("the camera path is empty; add views to it first")
        text = json.dumps({"keyframes": keyframes}, indent=1)
        self._canvas.download("camera-path.json", text.encode())

    def drawing(self, pose: Pose) -> None:
        """What the browser draws of a mesh, as PNG; waits for it. Ignores calls meanwhile."""
        with self._canvas.errors_shown():
            if not self._drawing.acquire(blocking=False):
                return
            height, width = (whole(x, 1, LARGEST_CANVAS, 1) for x in (pose.height, pose.width))
            scale = max(1.0, _SHORTEST_SIDE / min(height, width))
            try:
                drawn = self._client.get_render(
                    round(scale * height),
                    round(scale * width),
                    transport_format="png",
                    timeout=_DRAWING_SECONDS,
                )
                self._canvas.download("view.png", png(Image.fromarray(drawn)))
            except (RuntimeError, TimeoutError):
                raise UserError(
                    "the browser did not draw the image; keep the viewer's tab in front"
                ) from None
            finally:
                self._drawing.release()

    def _submit(
        self,
        worker: Worker,
        kind: str,
        view: View,
        steps: Callable[[View, RayGenerator, Styles], Steps[None]],
    ) -> None:
        # found now: another photo's subject may replace it before the worker gets to it
        found = self._subjects.find(view.choice)
        owner = (self._client.client_id, kind)
        worker.submit(owner, self._canvas.guarded(steps(view, *found)))

    def _image_steps(self, view: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        size = saved_size(view)
        out = yield from strips(
            generator, styles, view.rendered_camera, size, view.sampling, self._speed
        )
        self._canvas.download("view.png", png(Image.fromarray(pixels_of(out, view.mode))))

    def _mesh_steps(self, _: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        yield 0.0
        self._canvas.download("subject.glb", glb(extract_mesh(generator, styles, _MESH_CELLS)))

    def _subject_steps(self, view: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        yield 0.0
        name = "subject.safetensors"
        save = partial(Subject(styles, view.camera).save, generator=generator)
        self._canvas.download(name, file_content(name, save))
        if generator is not self._subjects.generator:  # tuned to a photo, or blended
            name, save = "model.safetensors", partial(pretrained.save, generator)
            self._canvas.download(name, file_content(name, save))
