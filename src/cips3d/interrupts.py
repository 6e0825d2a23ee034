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

    Does nothing outside the main thread, or where interrupts are ignored or handled in another way.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield received
        return
    usual = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
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
