"""Compiled functions."""

from __future__ import annotations

import errno
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cips3d.models import volume
from cips3d.models.ops.kernels import kernel


def test_a_kernel_compiles_without_a_cache_folder() -> None:
    """Numba finds no cache folder for a function without a file, as on a read-only disk."""
    names: dict[str, Any] = {"kernel": kernel}
    exec(
        "@kernel()\ndef total(x):\n    s = 0.0\n    for a in x:\n        s += a\n    return s\n",
        names,
    )
    assert names["total"]((1.5, 2.0)) == 3.5 and names["total"].signatures


def imported(folder: Path, name: str) -> Any:
    """A new copy of a module with a kernel, as in a new process."""
    spec = importlib.util.spec_from_file_location(name, folder / "loop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cache_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The index and the code of a kernel that has been compiled in this folder."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    (folder / "loop.py").write_text(
        "from cips3d.models.ops.kernels import kernel\n\n\n"
        "@kernel()\ndef twice(x):\n    return 2 * x\n"
    )
    assert imported(folder, "first").twice(1.5) == 3.0
    return sorted((folder / "__pycache__").glob("*.nb?"))


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("length", [0, 40])
def test_a_truncated_cache_is_compiled_and_written_anew(
    suffix: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cache_files(tmp_path, monkeypatch)
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    (damaged,) = (path for path in files if path.suffix == suffix)
    damaged.write_bytes(damaged.read_bytes()[:length])
    module = imported(tmp_path, "second")
    assert module.twice(1.5) == 3.0 and not module.twice.stats.cache_hits
    module = imported(tmp_path, "third")
    assert module.twice(1.5) == 3.0 and module.twice.stats.cache_hits


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_is_full_or_cannot_be_read_is_done_without(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in cache_files(tmp_path, monkeypatch):
        path.unlink()
        if damaged:
            path.mkdir()  # cannot be opened, even by root

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", no_space)
    assert imported(tmp_path, "second").twice(1.5) == 3.0


def test_a_loop_is_compiled_anew_when_a_function_that_it_calls_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.syspath_prepend(tmp_path)
    head = "from cips3d.models.ops.kernels import kernel\n\n\n"
    (tmp_path / "loop.py").write_text(
        f"import called_by_loop\n{head}part = called_by_loop.part\n\n\n"
        "@kernel()\ndef whole(x):\n    return part(x)\n"
    )
    results = []
    for factor in (2, 30):
        source = f"{head}@kernel()\ndef part(x):\n    return {factor} * x\n"
        (tmp_path / "called_by_loop.py").write_text(source)
        monkeypatch.delitem(sys.modules, "called_by_loop", raising=False)
        results.append(imported(tmp_path, f"loop{factor}").whole(1.5))
    assert results == [3.0, 45.0]


def test_loops_that_choose_samples_equal_their_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    marked = torch.rand(3, 50, generator=draw) < torch.tensor([[0.0], [0.3], [1.0]])
    edges = torch.rand(40, 6, generator=draw).cumsum(dim=-1)
    weights = torch.relu(torch.rand(40, 5, generator=draw) - 0.5)
    u = torch.rand(40, 7, generator=draw)
    u[:, 0], u[:, 1] = 0, 1
    index, depths = volume.marked_first(marked, 20), volume.invert_cdf(edges, weights, u)
    monkeypatch.setattr(volume, "fast", lambda *_: False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(index, volume.marked_first(marked, 20))
    torch.testing.assert_close(depths, volume.invert_cdf(edges, weights, u), atol=1e-4, rtol=0)
