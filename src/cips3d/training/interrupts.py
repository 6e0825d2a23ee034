"""Ctrl-C in a run: the step that it falls into is finished first, so that the run can be resumed to the bit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def first_interrupt_noted() -> Iterator[list[int]]:
    """A list that the first Ctrl-C in the block goes to, raised at the block's end; the second is raised where it comes.

    Does nothing outside the main thread, or where interrupts are ignored or handled in another way.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield received
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt


def ignore_interrupts(_: int) -> None:
    """Keeps a data loading process, which a Ctrl-C reaches too, at work until the step has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
