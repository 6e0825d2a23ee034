"""Photos that clients open: reads them and finds their subjects."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Camera
from cips3d.data.images import image_from
from cips3d.data.sources import Memory
from cips3d.editing.inversion import invert
from cips3d.errors import UserError
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Styles
from cips3d.viewer.canvas import Canvas
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.worker import Steps

#: Longest image file that is accepted, bytes.
LONGEST_FILE = 50_000_000
#: Shows a found subject from the photo's camera.
Show = Callable[[RayGenerator, Styles, Camera], None]


def read_upload(name: str, content: bytes, side: int) -> Float[Tensor, "1 3 side side"]:
    """The central square of an image in [-1, 1], upright, resized.

    Args:
        name: what an error line calls it.
        content: the file.
        side: pixels.

    Raises:
        UserError: if it is too long, damaged, unsafe to decode or not an image.
    """
    if len(content) > LONGEST_FILE:
        raise UserError(
            f"{name}: {len(content)} bytes are too many; use an image of at most {LONGEST_FILE}"
        )
    return image_from(Memory(content), name, side)


class _Abandoned(Exception):
    """The client has gone or has opened another photo."""


class PhotoInversion:
    """Finds the subject and camera of a client's newest photo.

    Args:
        canvas: where progress is shown.
        subjects: the model, and the discriminator that helps.
        show: called with the result.
    """

    def __init__(self, canvas: Canvas, subjects: Subjects, show: Show) -> None:
        self._canvas, self._subjects, self._show = canvas, subjects, show
        self._newest: Tensor | None = None

    def steps(self, name: str, content: bytes) -> Steps[None]:
        """The work for a photo, which abandons the work for the last one.

        Raises:
            UserError: if it cannot be read.
        """
        image = read_upload(name, content, self._subjects.generator.config.resolution)
        self._newest = image
        return self._invert(image)

    def _invert(self, image: Tensor) -> Steps[None]:
        notification = self._canvas.notify("Finding the subject …")

        def report(share: float, _: str) -> None:
            if self._canvas.closed or self._newest is not image:
                raise _Abandoned
            notification.body = f"{share:.0%}"

        try:
            yield 0.0
            generator, discriminator = self._subjects.generator, self._subjects.discriminator
            found = invert(generator, image, discriminator=discriminator, progress=report)
            self._show(found.generator, found.styles, found.camera)
        except _Abandoned:
            return
        finally:
            if not self._canvas.closed:
                notification.remove()
