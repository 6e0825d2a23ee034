"""The viewer's server: gives every client a session of its own."""

from __future__ import annotations

import errno
import io
import math
import os
import socket
import warnings
from contextlib import redirect_stdout
from typing import Annotated

import viser
from annotated_types import Ge, Le

from cips3d.configuration import validated
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import RayGenerator
from cips3d.viewer.cameras import front_camera, viser_pose
from cips3d.viewer.page import served_with
from cips3d.viewer.rendering import measured_speed
from cips3d.viewer.session import Session
from cips3d.viewer.subject_cache import Shared, Subjects
from cips3d.viewer.worker import Worker


class Viewer:
    """Shows a model to any number of browsers until it is closed; a context manager.

    Args:
        generator: the model; it renders where it is.
        other: a second model to blend it with.
        discriminator: the model's, which helps with photos (see `cips3d.editing.inversion`).
        host: address to listen on. Others than 127.0.0.1 can be reached from other machines.
        port: port to listen on; 0 for any free one.
        name: the model's, shown in the panel and the browser's tab.
        subject: first subject of every client, or its seed (below 2^31).

    Attributes:
        url: address to open in a browser.

    Raises:
        UserError: if the viewer cannot listen on the address, or the models cannot be blended.
    """

    def __init__(
        self,
        generator: RayGenerator,
        other: RayGenerator | None = None,
        discriminator: ProgressiveDiscriminator | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        name: str = "model",
        subject: Subject | int = 0,
    ) -> None:
        _check_address(host, port)
        subjects, speed = Subjects(generator, other, discriminator), measured_speed(generator)
        self._sessions: dict[int, Session] = {}
        # a client may vanish between our check and a message to it
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
        # hides viser's banner with the address, which the command prints itself
        with redirect_stdout(io.StringIO()), served_with(f"{name} · cips3d"):
            self._server = _Server(host=host, port=port, label=name, verbose=False)
        if port not in (0, self._server.get_port()):  # viser took the next one
            self._stop_server()
            raise _taken(host, port)
        workers = {kind: Worker(f"viewer {name} {kind}") for kind in ("images", "meshes", "photos")}
        self._shared = Shared(subjects, speed, workers, subject)
        self._set_scene(generator)
        self._server.on_client_connect(self._open)
        self._server.on_client_disconnect(self._close)
        shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        self.url = f"http://{shown}:{self._server.get_port()}"

    @property
    def sessions(self) -> list[Session]:
        """Sessions of the connected clients."""
        return list(self._sessions.values())

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and ends all threads. A running mesh or inversion may take a while."""
        for session in self.sessions:
            session.close()
        for worker in self._shared.workers.values():
            worker.close()
        self._stop_server()

    def _stop_server(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._server.stop()

    def _set_scene(self, generator: RayGenerator) -> None:
        """Starts clients with the camera prior's view, and hides what is viser's own."""
        poses, server = generator.config.poses, self._server
        server.scene.set_up_direction("+y")
        server.scene.world_axes.visible = False
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()  # next to the image, not in front of it
        camera = server.initial_camera
        camera.position = viser_pose(front_camera(poses))[1]
        camera.look_at, camera.up = (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)
        camera.fov = math.radians(poses.fov)

    def _open(self, client: viser.ClientHandle) -> None:
        self._sessions[client.client_id] = Session(client, self._shared)
        if client.client_id not in self._server.get_clients():  # it has gone meanwhile
            self._close(client)

    def _close(self, client: viser.ClientHandle) -> None:
        session = self._sessions.pop(client.client_id, None)
        if session is not None:
            session.close()


class _Server(viser.ViserServer):
    """viser's server without its public tunnel, which any client could request."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


def _check_address(host: str, port: int) -> None:
    """Raises UserError if the address is not free; viser would wait forever or change the port."""
    validated(Annotated[int, Ge(0), Le(2**16 - 1)], port, "port")
    advice = "use 127.0.0.1 or 0.0.0.0"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except PermissionError:
        raise UserError(f"port is {port}, which needs privileges; use one above 1023") from None
    except (socket.gaierror, UnicodeError):
        raise UserError(f"host is {host!r}, which is no address; {advice}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(host, port) from None
        reason = os.strerror(error.errno or 0).lower()
        raise UserError(f"host is {host}, which cannot be used: {reason}; {advice}") from None


def _taken(host: str, port: int) -> UserError:
    return UserError(
        f"port {port} on {host} is used by another program; choose another, or 0 for any free one"
    )
