"""Functions compiled by numba: one loop for what takes many passes over memory in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that compiles a function at its first call, without the GIL.

    Later processes reuse the compiled code. Where neither the module's folder nor the user's cache
    folder can be written, every process compiles again.

    Args:
        options: of `numba.njit`.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # numba looks for a cache folder on decoration
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorated
