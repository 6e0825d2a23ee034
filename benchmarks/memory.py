"""How much memory a process takes, and a C library that gives it back at once, so that peaks are what tensors need."""

from __future__ import annotations

import ctypes
import resource

#: mallopt's number for the size from which a block is the operating system's own.
M_MMAP_THRESHOLD = -3


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts KiB


def give_back_at_once() -> None:
    """Blocks of 64 KiB and more go back to the operating system when they are freed."""
    assert ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**16)
