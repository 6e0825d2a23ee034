"""Functions compiled by numba: one loop for what takes many passes over memory in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import njit
from numba.core.caching import FunctionCache
from torch import Tensor
from torch.autograd import forward_ad


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator with the options of `numba.njit`: compiles at the first call, releases the GIL.

    Later processes reuse the compiled code, if there is a folder to write it to.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        compiled: Any = njit(nogil=True, error_model="numpy", **options)(function)
        with contextlib.suppress(RuntimeError, OSError):  # no folder can be written to
            compiled._cache = _Cache(function)
        return compiled

    return decorated


def apply_to(*tensors: Tensor) -> bool:
    """Whether kernels of float32 numbers can read the tensors."""
    return readable(*tensors) and all(x.dtype == torch.float32 for x in tensors)


def readable(*tensors: Tensor) -> bool:
    """Whether kernels can read the tensors' memory: plain ones on CPUs.

    torch.compile, torch.func and forward-mode derivatives need operations that torch knows.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:
        return False
    return all(type(x) is Tensor and x.is_cpu for x in tensors)


class _Cache(FunctionCache):
    """A cache whose damaged files are compiled anew, and which may be full.

    numba itself ends in an error of pickle or of the disk. It also looks at a function's own file
    only, and a loop has the functions that it calls inlined: here a change in any file of the
    folder counts.
    """

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        folder = Path(self._py_func.__code__.co_filename).parent
        states = [(path.name, path.stat()) for path in sorted(folder.glob("*.py"))]
        stamps = tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)
        return (*super()._index_key(sig, codegen), stamps)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # what unpickling a damaged file raises is anything
            with contextlib.suppress(OSError):
                self.flush()  # an index that cannot be read could not be added to either
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)
