"""A thread that works for many clients: for each on its newest wish only, in turns, a small step at a time."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Generator, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
#: Work in small steps: every `next` does one and tells after how many seconds to go on.
Steps = Generator[float, None, T]


def at_once(steps: Steps[T]) -> T:
    """Does all steps without a pause; what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


@dataclass
class _Task:
    steps: Iterator[float]
    due: float


class Worker:
    """Does the steps of every owner's newest wish in turns, in a thread of its own.

    A new wish takes the place of the owner's last one, whatever of that is done: nothing piles up behind a moving mouse, and an
    owner who wishes all the time has no more turns than the others. A wish that fails is reported on stderr and given up.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._tasks: dict[Hashable, _Task] = {}  # in the order of their turns
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, owner: Hashable, steps: Iterator[float], delay: float = 0.0) -> None:
        """Does these steps from now on for the owner, instead of what it wished before.

        Args:
            delay: seconds to wait before the first.
        """
        with self._wake:
            self._tasks[owner] = _Task(
                steps, time.monotonic() + delay
            )  # an owner who has a place in the order keeps it
            self._wake.notify()

    def forget(self, owner: Hashable) -> None:
        """Does no more for the owner, but for the step that is being done."""
        with self._wake:
            self._tasks.pop(owner, None)

    def close(self, timeout: float = 5.0) -> None:
        """Ends the thread after the step that is being done, for which it waits `timeout` seconds at most."""
        with self._wake:
            self._closed = True
            self._tasks.clear()
            self._wake.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        while (turn := self._next_turn()) is not None:
            owner, task = turn
            try:
                delay = next(task.steps, None)
            except Exception:  # a fault of one wish must not end the others'
                traceback.print_exc()
                delay = None
            with self._wake:
                if self._tasks.get(owner) is not task:
                    continue  # there is a newer one, or the owner has gone
                if delay is None:
                    del self._tasks[owner]
                else:
                    task.due = time.monotonic() + delay

    def _next_turn(self) -> tuple[Hashable, _Task] | None:
        """Waits for a task that is due and moves it to the end of the order; None when the worker is closed."""
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                for owner, task in self._tasks.items():
                    if task.due <= now:
                        self._tasks[owner] = self._tasks.pop(owner)
                        return owner, task
                self._wake.wait(
                    min((task.due - now for task in self._tasks.values()), default=None)
                )
            return None
