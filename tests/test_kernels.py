"""Compiled functions."""

from __future__ import annotations

from typing import Any

from cips3d.models.ops.kernels import kernel


def test_a_kernel_compiles_without_a_cache_folder() -> None:
    """Numba finds no cache folder for a function without a file, as on a read-only disk."""
    names: dict[str, Any] = {"kernel": kernel}
    exec(
        "@kernel()\ndef total(x):\n    s = 0.0\n    for a in x:\n        s += a\n    return s\n",
        names,
    )
    assert names["total"]((1.5, 2.0)) == 3.5 and names["total"].signatures
