"""Functions that numba compiles: loops over numbers that would take many passes over memory as tensor operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function to be compiled at its first call, without locks; what is compiled is kept for later processes.

    Where nothing can be kept (neither beside the module nor in the user's cache folder), every process compiles anew.

    Args:
        options: of `numba.njit`.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # numba looks for a place when it decorates
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorated
