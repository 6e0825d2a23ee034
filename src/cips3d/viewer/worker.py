"""Threads that work for all clients: only each one's newest request, in turns, in small steps."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Generator, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
#: Work in small steps. Each `next` does one and yields the seconds to wait before the next.
Steps = Generator[float, None, T]


def run_all(steps: Steps[T]) -> T:
    """Runs all steps without waiting and returns their result."""
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
    """Runs the steps of each owner's newest request in turns, in a thread of its own.

    A new request replaces the owner's last one, however far that is, so nothing queues up behind a
    moving mouse. A request that fails is reported on stderr and dropped.
    """

    def __init__(self, name: str) -> None:
        self._tasks: dict[Hashable, _Task] = {}  # in the order of their turns
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, owner: Hashable, steps: Iterator[float], delay: float = 0.0) -> None:
        """Replaces the owner's request; the first step waits for `delay` seconds."""
        with self._wake:
            # an owner that is already in the order keeps its place
            self._tasks[owner] = _Task(steps, time.monotonic() + delay)
            self._wake.notify()

    def forget(self, owner: Hashable) -> None:
        """Drops the owner's request; a step that is running still ends."""
        with self._wake:
            self._tasks.pop(owner, None)

    def close(self, timeout: float = 5.0) -> None:
        """Ends the thread after the running step; waits at most `timeout` seconds for it."""
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
            except Exception:  # one failed request must not end the others
                traceback.print_exc()
                delay = None
            with self._wake:
                if self._tasks.get(owner) is not task:
                    continue  # replaced or forgotten
                if delay is None:
                    del self._tasks[owner]
                else:
                    task.due = time.monotonic() + delay

    def _next_turn(self) -> tuple[Hashable, _Task] | None:
        """Waits for a task that is due and moves it to the end of the order; None once closed."""
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                for owner, task in self._tasks.items():
                    if task.due <= now:
                        self._tasks[owner] = self._tasks.pop(owner)
                        return owner, task
                due = min((task.due for task in self._tasks.values()), default=None)
                self._wake.wait(None if due is None else due - now)
            return None
