"""A client's browser: the image or mesh that it shows, and errors."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import viser

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.models.types import RenderOutput
from cips3d.viewer.cameras import Pose, viser_pose
from cips3d.viewer.rendering import Pixels, on_canvas, pixels_of
from cips3d.viewer.requests import View
from cips3d.viewer.worker import Steps

#: JPEG quality of coarse images.
_QUALITY = 80
#: Where a frustum shows its image: share of the camera's distance from the origin.
_FRUSTUM_DEPTH = 0.5
#: Seconds that an error stays on screen.
_ERROR_SECONDS = 15


class Canvas:
    """Shows images, or a mesh and cameras. Ignores results that come too late.

    Attributes:
        closed: whether the client has gone.
        has_mesh: whether it shows a mesh, not images.
    """

    def __init__(self, client: viser.ClientHandle) -> None:
        self._client = client
        self._changing = threading.Lock()
        self.closed = self.has_mesh = False

    @property
    def pose(self) -> Pose:
        """The client's camera."""
        camera = self._client.camera
        wxyz, position = (
            tuple(float(x) for x in np.ravel(values)) for values in (camera.wxyz, camera.position)
        )
        size = int(camera.image_width), int(camera.image_height)
        return Pose(wxyz, position, float(camera.fov), *size)

    def place(self, camera: Camera) -> None:
        """Moves the client's camera. It then orbits the point ahead at the origin's distance."""
        pose = camera.cam_to_world[0].cpu().double().numpy()
        position = pose[:3, 3]
        is_rolled = abs(pose[1, 0]) > 1e-3
        with self._client.atomic():
            self._client.camera.position = position
            self._client.camera.look_at = position - pose[:3, 2] * np.linalg.norm(position)
            self._client.camera.up_direction = pose[:3, 1] if is_rolled else (0.0, 1.0, 0.0)

    def clear(self, for_mesh: bool) -> None:
        """Removes everything, to show a mesh or images next."""
        with self._changing:
            self.has_mesh = for_mesh
            self._client.scene.reset()

    def show_image(self, out: RenderOutput, view: View, format: Literal["jpeg", "png"]) -> None:
        """Fills the window with the view's image, or a coarser one."""
        pixels = on_canvas(pixels_of(out, view.mode), view)
        with self._changing:
            if not self.closed and not self.has_mesh:
                self._client.scene.set_background_image(pixels, format, jpeg_quality=_QUALITY)
                self._client.flush()  # instead of waiting for more messages to send along

    def show_mesh(self, glb: bytes) -> None:
        """Replaces the mesh."""
        with self._changing:
            if not self.closed and self.has_mesh:
                self._client.scene.add_glb("/subject", glb)

    def show_camera(self, name: str, camera: Camera, image: Pixels) -> None:
        """Draws a camera's frustum, with its position, direction, field of view and image."""
        fov = math.radians(float(camera.fov))
        depth = _FRUSTUM_DEPTH * float(camera.position.norm())
        # viser divides by this, to give frusta of all fields of view one volume
        scale = depth * (math.tan(fov / 2) ** 2 / 3) ** (1 / 3)
        wxyz, position = viser_pose(camera)
        with self._changing:
            if not self.closed and self.has_mesh:
                self._client.scene.add_camera_frustum(
                    f"/cameras/{name}", fov, 1.0, scale=scale, thickness=1.5,
                    thickness_units="screen", image=image, wxyz=wxyz, position=position,
                )  # fmt: skip

    @contextmanager
    def errors_shown(self) -> Iterator[None]:
        """Shows an error in the block as a notification; raises it too unless it is a UserError."""
        try:
            yield
        except Exception as error:
            text = str(error) or type(error).__name__
            self._client.add_notification(
                "Something went wrong", text, color="red", auto_close_seconds=_ERROR_SECONDS
            )
            if not isinstance(error, UserError):
                raise

    def guarded(self, steps: Steps[None]) -> Steps[None]:
        """The steps with `errors_shown`, until the client goes."""
        with self.errors_shown():
            while not self.closed and (delay := next(steps, None)) is not None:
                yield delay
