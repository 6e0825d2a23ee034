"""What a client's window shows: a picture that fills it, or a mesh among cameras."""

from __future__ import annotations

import math
import threading
from typing import Literal

import viser

from cips3d.camera import Camera
from cips3d.viewer.rendering import Pixels
from cips3d.viewer.requests import viser_pose

#: JPEG's quality for coarse pictures.
_QUALITY = 80
#: How far in front of a camera its picture is drawn, of its distance from the origin.
_FRUSTUM_DEPTH = 0.5


class Stage:
    """Shows pictures, or meshes and cameras; what comes after a change to the other kind, or after the client, is passed over.

    Args:
        client: the client's handle.

    Attributes:
        closed: whether the client has gone.
        has_mesh: whether it is a mesh's turn.
    """

    def __init__(self, client: viser.ClientHandle) -> None:
        self._client = client
        self._changing = threading.Lock()
        self.closed = self.has_mesh = False

    def close(self) -> None:
        """Shows no more."""
        with self._changing:
            self.closed = True

    def clear(self, for_mesh: bool) -> None:
        """Takes everything away, for a mesh or for pictures."""
        with self._changing:
            self.has_mesh = for_mesh
            self._client.scene.reset()

    def show_picture(self, pixels: Pixels, format: Literal["jpeg", "png"]) -> None:
        """Fills the window with a picture."""
        with self._changing:
            if not self.closed and not self.has_mesh:
                self._client.scene.set_background_image(pixels, format, jpeg_quality=_QUALITY)

    def show_mesh(self, glb: bytes) -> None:
        """Shows a mesh in place of the last one."""
        with self._changing:
            if not self.closed and self.has_mesh:
                self._client.scene.add_glb("/subject", glb)

    def show_camera(self, name: str, camera: Camera, picture: Pixels) -> None:
        """Draws a camera as its frustum, true in position, direction and field of view, with its picture at the far end."""
        fov = math.radians(float(camera.fov))
        depth = _FRUSTUM_DEPTH * float(camera.position.norm())
        # viser divides by this, so that frusta of all fields of view have one volume
        scale = depth * (math.tan(fov / 2) ** 2 / 3) ** (1 / 3)
        wxyz, position = viser_pose(camera)
        with self._changing:
            if not self.closed and self.has_mesh:
                self._client.scene.add_camera_frustum(
                    f"/cameras/{name}", fov, 1.0, scale=scale, thickness=1.5, thickness_units="screen", image=picture,
                    wxyz=wxyz, position=position,
                )  # fmt: skip
