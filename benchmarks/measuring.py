"""What benchmarks share: new processes, times of functions in turns, and memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

#: mallopt's option for the size from which a block comes from the operating system.
M_MMAP_THRESHOLD = -3


def started(function: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """A new process that runs `function(*args, connection)`, and our end of the connection."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=function, args=(*args, there))
    process.start()
    there.close()  # so that the death of the process raises EOFError here
    return process, here


def in_process(function: Callable[..., None], *args: Any) -> Any:
    """What `function(*args, connection)` sends from a process of its own."""
    process, connection = started(function, *args)
    result = connection.recv()
    process.join()
    return result


def medians(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, called in turns after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn > 0:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts KiB


def return_freed_memory() -> None:
    """Makes the C library return freed blocks of 64 KiB or more to the operating system at once.

    Peaks are then what tensors need.
    """
    assert ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**16)
