"""Functions compiled by numba: one loop for what takes many passes over memory in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator with the options of `numba.njit`: compiles at the first call, releases the GIL.

    Later processes reuse the compiled code, if there is a folder to write it to.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # numba looks for a cache folder on decoration
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorated
