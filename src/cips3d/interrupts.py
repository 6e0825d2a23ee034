"""Ctrl-C or SIGTERM in a run: the step that it falls into is finished first, so that the run can be resumed to the bit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

#: Signals that ask a run to end: a user's, and that of schedulers which want the machine for another job.
ENDING = (signal.SIGINT, signal.SIGTERM)
#: Seconds for which a process that loads data still serves the step that a SIGTERM falls into.
_SERVES = 20.0


@contextlib.contextmanager
def first_interrupt_noted() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM in the block goes to, raised at its end as KeyboardInterrupt; a second one does
    what it usually does.

    Does nothing outside the main thread, and nothing with a signal that is ignored or handled in another way. (The
    background jobs of a script ignore Ctrl-C; a scheduler's SIGTERM reaches them.)
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
    """Keeps a data loading process, which a Ctrl-C and a scheduler's SIGTERM reach too, at work until the step has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # it ends by itself even where nobody else ends it, and as if it had nothing left to do: torch raises for any other end
    leaving = threading.Timer(_SERVES, os._exit, [0])
    leaving.daemon = True
    signal.signal(signal.SIGTERM, lambda *_: None if leaving.is_alive() else leaving.start())
