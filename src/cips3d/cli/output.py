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


@contextlib.contextmanager
def progress(name: str, start: float = 0.0, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows progress on standard error: a bar in a terminal, elsewhere a line every 30 seconds.

    Yields a function to call with the share of the work that is done, from 0 to 1 (None if the
    total is unknown), and a detail, such as a speed.

    Args:
        start: share that was done before, of a run that is resumed.
        shown: False shows nothing, as in all but the main process.
    """
    if not shown:
        yield lambda *_: None
        return
    began = printed = time.monotonic()
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        layout = "{desc} {percentage:3.0f}% |{bar}|{postfix}"
        bar = tqdm(
            total=1.0, initial=start, desc=name, bar_format=layout, delay=DELAY, mininterval=0.2,
            leave=False, dynamic_ncols=True,
        )  # fmt: skip

    def report(share: float | None, detail: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        words = [detail, clock(now - began), _remaining(now - began, share, start)]
        text = ", ".join(filter(None, words))
        if bar is not None:
            if share is None:
                bar.bar_format = "{desc}{postfix}"
            bar.set_postfix_str(text, refresh=False)
            bar.update(0 if share is None else share - bar.n)
        elif now - printed >= PLAIN_SECONDS:
            printed = now
            percent = "" if share is None else f" {share:.0%}"
            print(f"{name}:{percent} ({text})", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


def _remaining(elapsed: float, share: float | None, start: float) -> str:
    """The estimated remaining time; nothing while there is too little to estimate it from."""
    if share is None or share >= 1 or elapsed < ESTIMATE_SECONDS or share - start < ESTIMATE_SHARE:
        return ""
    return f"{clock(elapsed / (share - start) * (1 - share))} left"


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
