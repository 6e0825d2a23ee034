"""What verbs print while they work and when they are done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
#: Seconds between plain lines where standard error is not a terminal, and before a bar appears.
PLAIN_SECONDS, DELAY = 30.0, 1.0
#: Seconds and share of the work after which an estimate of the remaining time means something.
ESTIMATE_SECONDS, ESTIMATE_SHARE = 5.0, 0.02


class Progress:
    """Progress on standard error: a bar in a terminal, elsewhere a plain line every 30 seconds.

    Args:
        name: what is being done.
        start: the share that was done before, of a run that is resumed.
    """

    def __init__(self, name: str, start: float = 0.0) -> None:
        self.name, self.start = name, start
        self._began = self._printed = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}% |{bar}|{postfix}"
            self._bar = tqdm(
                total=1.0, initial=start, desc=name, bar_format=layout, delay=DELAY,
                mininterval=0.2, leave=False, dynamic_ncols=True,
            )  # fmt: skip

    def __call__(self, share: float | None, detail: str = "") -> None:
        """Reports progress.

        Args:
            share: of the work that is done, from 0 to 1; None if the total is unknown.
            detail: such as a step's name or a speed.
        """
        now = time.monotonic()
        words = [detail, clock(now - self._began), self._remaining(share, now)]
        text = ", ".join(word for word in words if word)
        if self._bar is not None:
            if share is None:
                self._bar.bar_format = "{desc}{postfix}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0 if share is None else share - self._bar.n)
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            percent = "" if share is None else f" {share:.0%}"
            print(f"{self.name}:{percent} ({text})", file=sys.stderr, flush=True)

    def _remaining(self, share: float | None, now: float) -> str:
        """The estimated remaining time, once there is enough to tell it from."""
        if share is None:
            return ""
        elapsed, done = now - self._began, share - self.start
        if elapsed < ESTIMATE_SECONDS or done < ESTIMATE_SHARE or share >= 1:
            return ""
        return f"{clock(elapsed / done * (1 - share))} left"

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def progress(name: str, start: float = 0.0, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A `Progress` to report to; `shown=False` reports nothing, as in all but the main process."""
    if not shown:
        yield lambda *_: None
        return
    reporter = Progress(name, start)
    try:
        yield reporter
    finally:
        reporter.close()


def tracked(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """The items, with progress."""
    with progress(name) as report:
        for done, item in enumerate(items, 1):
            yield item
            report(done / total, f"{done} of {total}")


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def finished(wrote: object, then: str) -> None:
    """Says what a verb wrote, and what to try next."""
    print(f"wrote {wrote}\ntry next: {then}")
