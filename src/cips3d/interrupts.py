"""Ctrl-C and SIGTERM: the current step is finished first, so a run resumes bit-exactly."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

#: Signals that ask a run to end: a user's, and a scheduler's that needs the machine.
ENDING = (signal.SIGINT, signal.SIGTERM)
#: Seconds for which a data loading process still serves the current step after a SIGTERM.
_SERVES = 20.0


@contextlib.contextmanager
def first_interrupt_noted() -> Iterator[list[int]]:
    """Delays the first Ctrl-C or SIGTERM to the end of the block; a second one acts at once.

    Yields a list that receives the signal's number. At the end it raises KeyboardInterrupt. Does
    nothing outside the main thread, nor for signals that are ignored or have a handler of their
    own. (Background jobs of a script ignore Ctrl-C; a scheduler's SIGTERM reaches them.)
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    unhandled = (signal.default_int_handler, signal.SIG_DFL)
    usual = {
        number: handler for number in ENDING if (handler := signal.getsignal(number)) in unhandled
    }
    for number in usual:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
    if received:
        raise KeyboardInterrupt


def serve_to_the_end(_: int) -> None:
    """Keeps a data loading process at work until the step has ended.

    Ctrl-C and a scheduler's SIGTERM reach it too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Ends by itself if nobody ends it, with status 0: torch raises for any other.
    leaving = threading.Timer(_SERVES, os._exit, [0])
    leaving.daemon = True
    signal.signal(signal.SIGTERM, lambda *_: None if leaving.is_alive() else leaving.start())
