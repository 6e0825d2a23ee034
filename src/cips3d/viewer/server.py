"""The viewer's server: listens, and gives every client that comes a session of its own."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import socket
import threading
import warnings
from collections.abc import Iterator

import viser

from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import RayGenerator
from cips3d.viewer.rendering import warmed_up
from cips3d.viewer.requests import front_camera, viser_pose
from cips3d.viewer.session import Session, Workers
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.worker import Worker


class Viewer:
    """Shows a model to any number of browsers until it is closed; a context manager.

    Args:
        generator: the model; rendered where it is.
        other: one to blend it with.
        discriminator: that the model was trained against, for pictures that are inverted (see `cips3d.editing.inversion`).
        host: the address to listen on; others than 127.0.0.1 can be reached by other machines.
        port: 0 takes any that is free.
        name: of the model, shown above the controls.
        subject: of the model, that every client sees at first; a random one by default.

    Attributes:
        url: what to open in a browser.

    Raises:
        UserError: if the address cannot be listened on, or the models cannot be blended.
    """

    def __init__(
        self,
        generator: RayGenerator,
        other: RayGenerator | None = None,
        discriminator: ProgressiveDiscriminator | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        name: str = "model",
        subject: Subject | None = None,
    ) -> None:
        _check_address(host, port)
        self._subjects, self._subject = Subjects(generator, other, discriminator), subject
        self._pace = warmed_up(generator)
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        # a client may vanish between our check and a message to it
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
        with _quiet():
            self._server = _Server(host=host, port=port, label=f"cips3d {name}", verbose=False)
        if port not in (
            0,
            self._server.get_port(),
        ):  # viser has found it taken and gone on to the next
            self._stop_server()
            raise _taken(host, port)
        self._workers = Workers(
            *(Worker(f"viewer {name}") for name in ("pictures", "meshes", "inversions"))
        )
        self._set_scene(generator)
        self._server.on_client_connect(self._open)
        self._server.on_client_disconnect(self._close)
        shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        self.url = f"http://{shown}:{self._server.get_port()}"

    @property
    def sessions(self) -> list[Session]:
        """Those of the clients that are connected."""
        with self._lock:
            return list(self._sessions.values())

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and ends all threads; a mesh or an inversion that is being made may go on for a while."""
        for session in self.sessions:
            session.close()
        self._workers.close()
        self._stop_server()

    def _stop_server(self) -> None:
        with _quiet():
            self._server.stop()

    def _set_scene(self, generator: RayGenerator) -> None:
        """Up is up, the first view is that of the camera prior, and nothing but our own controls is shown."""
        poses, server = generator.config.poses, self._server
        server.scene.set_up_direction("+y")
        server.scene.world_axes.visible = False
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()  # beside the picture, not before it
        server.initial_camera.position = viser_pose(front_camera(poses))[1]
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.up = (0.0, 1.0, 0.0)
        server.initial_camera.fov = math.radians(poses.fov)

    def _open(self, client: viser.ClientHandle) -> None:
        session = Session(client, self._subjects, self._workers, self._pace, self._subject)
        with self._lock:
            # it may have gone before its controls were made
            if client.client_id in self._server.get_clients():
                self._sessions[client.client_id] = session
                return
        session.close()

    def _close(self, client: viser.ClientHandle) -> None:
        with self._lock:
            session = self._sessions.pop(client.client_id, None)
        if session is not None:
            session.close()


class _Server(viser.ViserServer):
    """viser's server without its tunnel to the public, which any client could ask for."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


def _check_address(host: str, port: int) -> None:
    """Raises UserError if the address cannot be listened on; viser would wait for ever, or take another port."""
    if not 0 <= port < 2**16:
        raise UserError(f"port: {port}; give a number from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, int(os.name == "posix")
            )  # as asyncio does
            trial.bind(address)
            trial.listen()
    except PermissionError:
        raise UserError(f"port: {port} may not be used by you; give one above 1023") from None
    except (socket.gaierror, UnicodeError):
        raise UserError(
            f"host: {host!r} is no address of this machine; give 127.0.0.1 or 0.0.0.0"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(host, port) from None
        raise UserError(
            f"host: cannot listen on {host} ({error.strerror}); give 127.0.0.1 or 0.0.0.0"
        ) from None


def _taken(host: str, port: int) -> UserError:
    return UserError(
        f"port: {port} on {host} is taken by another program; give another one, or 0 for any that is free"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps viser's own words about the address, which ours would repeat, from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
