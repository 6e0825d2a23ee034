"""Keeps the C library from returning large blocks to the system between steps (glibc only)."""

from __future__ import annotations

import ctypes
import platform

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes malloc reuse freed blocks of any size instead of unmapping them; returns success.

    A training step on a CPU allocates the same large activations every time. By default glibc maps
    each one again, and page faults took about half of a step of the small preset
    (benchmarks/training_speed.py measures it).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)
