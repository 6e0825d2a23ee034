"""How precisely matrix products are computed, by what the machine is good at.

- `float32`: the parameters' own precision, by the default route of torch.
- `bfloat16`: the implicit network in bfloat16. Everything else keeps its precision.
- `auto`: on CPUs float32 by oneDNN's route, which is up to twice as fast as the default one, where
  a check at first use finds it as accurate. On GPUs float32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Computes in a precision; what has to stay in float32 leaves autocast by itself.

    "float32" leaves a surrounding autocast as it is.
    """
    dtype = inr_dtype(precision, device, torch.float32)
    narrow = dtype != torch.float32
    with (
        fast_products(precision),
        torch.autocast(device.type, dtype) if narrow else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def fast_products(precision: Precision) -> Iterator[None]:
    """Lets float32 products on CPUs take oneDNN's route, if that is accurate; not for "float32"."""
    if precision == "float32" or not _onednn_is_accurate():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _onednn_is_accurate() -> bool:
    """Whether oneDNN's products are float32 ones: "medium" also permits bfloat16 and TF32."""
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    draws = torch.Generator().manual_seed(0)
    like: dict[str, Any] = {"generator": draws, "dtype": torch.float64, "device": "cpu"}
    a, b = torch.randn(256, 512, **like), torch.randn(512, 256, **like)
    exact = a.float().double() @ b.float().double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        error = (a.float() @ b.float()).double() - exact
    finally:
        torch.set_float32_matmul_precision(before)
    return bool(error.norm() < 1e-5 * exact.norm())


def inr_dtype(precision: Precision, device: torch.device, parameters: torch.dtype) -> torch.dtype:
    """The type in which the implicit network computes.

    bfloat16 only where the processor has instructions for it: elsewhere it is slower than float32.
    """
    if precision != "bfloat16" or parameters != torch.float32:
        return parameters
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return parameters
    return torch.bfloat16
