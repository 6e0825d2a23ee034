"""A viewer client without a browser: moves camera and controls, and receives images."""

from __future__ import annotations

import io
import math
import threading
import time
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from cips3d.camera import Camera
from cips3d.viewer.cameras import viser_pose


class Client:
    """Connects, sends its camera, and collects the server's messages in a thread of its own.

    Args:
        url: the viewer's address.
        camera: first camera.
        size: width and height of the canvas, pixels.

    Attributes:
        controls: handles (uuids) of the controls by their label.
        messages: all received messages.
        images: number of received images; the last came at `shown_at` (time.perf_counter).
        seen: condition, notified after every message.
    """

    def __init__(
        self, url: str, camera: Camera | None = None, size: tuple[int, int] = (128, 128)
    ) -> None:
        protocol = Subprotocol(f"viser-v{viser.__version__}")
        self._socket = connect(
            url.replace("http", "ws"),
            subprotocols=[protocol],
            max_size=None,
            compression=None,
            proxy=None,
        )
        self.size = size
        self.controls: dict[str, str] = {}
        self.messages: list[dict[str, Any]] = []
        self.images, self.shown_at, self._file = 0, 0.0, (b"", "jpeg")
        self.seen = threading.Condition()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        self.look(camera or Camera.orbit(0.0))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._thread.join()

    def vanish(self) -> None:
        """Breaks the connection without closing it."""
        self._socket.socket.shutdown(2)
        self._thread.join()

    # ---------------------------------------------------------------- to the server
    def look(self, camera: Camera) -> None:
        wxyz, position = viser_pose(camera)
        self.look_raw(wxyz.tolist(), position.tolist(), math.radians(float(camera.fov)))

    def look_raw(self, wxyz: Any, position: Any, fov: Any) -> None:
        self.send(
            "ViewerCameraMessage",
            wxyz=wxyz,
            position=position,
            fov=fov,
            near=0.01,
            far=1000.0,
            image_width=self.size[0],
            image_height=self.size[1],
            look_at=[0.0, 0.0, 0.0],
            up_direction=[0.0, 1.0, 0.0],
        )

    def set(self, label: str, value: Any) -> None:
        self.send("GuiUpdateMessage", uuid=self.controls[label], updates={"value": value})

    def send(self, kind: str, **fields: Any) -> None:
        self.send_bytes(msgspec.msgpack.encode({"type": kind, **fields}))

    def send_bytes(self, content: bytes) -> None:
        self._asked_at = time.perf_counter()
        self._socket.send(content)

    # ---------------------------------------------------------------- from the server
    def _listen(self) -> None:
        try:
            for frame in self._socket:
                assert isinstance(frame, bytes)
                length = int.from_bytes(frame[8:16], "little")
                content = msgspec.msgpack.decode(
                    zstandard.ZstdDecompressor().decompress(frame[16 : 16 + length])
                )
                with self.seen:
                    for message in content["messages"]:
                        self._take(message)
                    self.seen.notify_all()
        except (ConnectionClosed, OSError):
            pass

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "BackgroundImageMessage":
            if message["rgb_data"] is not None:
                self.images, self.shown_at = self.images + 1, time.perf_counter()
                self._file = message["rgb_data"], message["format"]
        elif "props" in message and "label" in message["props"] and "uuid" in message:
            self.controls[message["props"]["label"]] = message["uuid"]
        self.messages.append(message)

    @property
    def image(self) -> np.ndarray:
        """The last image."""
        return np.asarray(Image.open(io.BytesIO(self._file[0])))

    @property
    def is_refined(self) -> bool:
        """Whether the last image was rendered at rest."""
        return self._file[1] == "png"

    def wait_for(self, what: Any, seconds: float = 60.0) -> None:
        """Waits until what(self) is true."""
        with self.seen:
            assert self.seen.wait_for(lambda: what(self), seconds), (
                "the server did not send the expected message"
            )

    def rest(self, silence: float = 1.0, seconds: float = 60.0) -> float:
        """Waits for a refined image after the last request, then for silence; returns its time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if (
                self.is_refined
                and self.shown_at > self._asked_at
                and time.perf_counter() - self.shown_at > silence
            ):
                return self.shown_at
            time.sleep(0.01)
        raise AssertionError("the image was not refined")
