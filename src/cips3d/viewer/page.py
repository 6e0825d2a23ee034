"""The viewer's page over HTTP: its title, and answers to HEAD requests.

viser has no setting for either. Both are done with the extension points of `websockets`, whose
server viser starts.
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

#: Answers an HTTP request; None for the websocket.
Answer = Callable[[ServerConnection, Request], Response | None]

_TITLE = b"<title>Viser</title>"
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
    with _STARTING:
        serve = websockets.asyncio.server.serve

        def serve_page(*args: Any, process_request: Answer, **options: Any) -> Any:
            return serve(
                *args,
                process_request=_answer(process_request, title),
                create_connection=_Connection,
                logger=_LOGGER,
                **options,
            )

        websockets.asyncio.server.serve = serve_page  # pyright: ignore
        try:
            yield
        finally:
            websockets.asyncio.server.serve = serve  # pyright: ignore


def _answer(inner: Answer, title: str) -> Answer:
    def answer(connection: ServerConnection, request: Request) -> Response | None:
        response = inner(connection, request)
        if response is None:
            return None
        zipped = response.headers.get("Content-Encoding") == "gzip"
        body = bytes(response.body)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            body = _titled(body, zipped, title)
            del response.headers["Content-Length"]
            response.headers["Content-Length"] = str(len(body))
        is_head = isinstance(connection, _Connection) and connection.is_head
        return replace(response, body=b"" if is_head else body)

    return answer


@functools.lru_cache(8)
def _titled(page: bytes, zipped: bool, title: str) -> bytes:
    """The page with this title."""
    plain = gzip.decompress(page) if zipped else page
    plain = plain.replace(_TITLE, f"<title>{html.escape(title)}</title>".encode(), 1)
    return gzip.compress(plain) if zipped else plain
