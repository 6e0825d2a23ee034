"""The viewer's page over HTTP: its title, and answers to HEAD requests.

viser has no setting for them, so both use extension points of `websockets`, on which it stands.
"""

from __future__ import annotations

import functools
import gzip
import html
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

_LOGGER = logging.getLogger("cips3d.viewer")
# a client that speaks no HTTP, or leaves during the handshake, is no fault of ours
_LOGGER.addFilter(lambda record: record.getMessage() != "opening handshake failed")
_STARTING = threading.Lock()


class _Connection(ServerConnection):
    """A connection that takes HEAD requests, which websockets refuses, as GET requests."""

    is_head: bool | None = None

    def data_received(self, data: bytes) -> None:
        if self.is_head is None:
            self.is_head = data.startswith(b"HEAD ")
            data = data.replace(b"HEAD", b"GET", 1) if self.is_head else data
        super().data_received(data)


@contextmanager
def served_with(title: str) -> Iterator[None]:
    """A viser server that starts in this block gives its page the title, and answers HEAD."""

    def serve_page(
        *args: Any,
        process_request: Callable[[ServerConnection, Request], Response | None],
        **options: Any,
    ) -> Any:
        def answer(connection: ServerConnection, request: Request) -> Response | None:
            response = process_request(connection, request)
            if response is None:  # for the websocket
                return None
            headers, body = response.headers, bytes(response.body)
            if headers.get("Content-Type", "").startswith("text/html"):
                body = _titled(body, headers["Content-Encoding"] == "gzip", title)
                del headers["Content-Length"]
                headers["Content-Length"] = str(len(body))
            return replace(response, body=b"" if getattr(connection, "is_head", False) else body)

        options |= {"create_connection": _Connection, "logger": _LOGGER}
        return serve(*args, process_request=answer, **options)

    with _STARTING:
        serve = websockets.asyncio.server.serve
        websockets.asyncio.server.serve = serve_page  # pyright: ignore
        try:
            yield
        finally:
            websockets.asyncio.server.serve = serve  # pyright: ignore


@functools.lru_cache(8)
def _titled(page: bytes, is_zipped: bool, title: str) -> bytes:
    plain = gzip.decompress(page) if is_zipped else page
    plain = plain.replace(b"<title>Viser<", f"<title>{html.escape(title)}<".encode(), 1)
    return gzip.compress(plain) if is_zipped else plain
