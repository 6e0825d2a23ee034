"""Compiled functions."""

from __future__ import annotations

from typing import Any

from cips3d.models.ops.kernels import kernel


def test_a_kernel_is_compiled_where_nothing_can_be_kept() -> None:
    """Numba finds no cache folder for a function without a file, as where none can be written."""
    names: dict[str, Any] = {"kernel": kernel}
    exec(
        "@kernel()\ndef total(x):\n    s = 0.0\n    for a in x:\n        s += a\n    return s\n",
        names,
    )
    assert names["total"]((1.5, 2.0)) == 3.5 and names["total"].signatures
