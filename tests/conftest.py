"""Checks every annotated shape, dtype and type of the package at run time, in all tests."""

import os

# Before torch is imported. Processes that tests start have one thread each too, or they would wait
# for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests are of a CPU's numbers and processes, on a machine with a GPU too. `make gpu` sets
# CIPS3D_GPU=1: then GPUs are visible, and only the tests with a `device` run.
os.environ |= {} if os.environ.get("CIPS3D_GPU") == "1" else {"CUDA_VISIBLE_DEVICES": ""}

import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# A shell starts background jobs with interrupts ignored; the tests of Ctrl-C need a terminal's.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The networks of the tests are tiny: more threads only wait for each other.
torch.set_num_threads(1)

# A machine that other programs keep busy is no reason to fail.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Must come before the first import of the package. An int passes where a float is annotated, as
# in PEP 484. Functions that numba compiles carry @typing.no_type_check above @kernel, since numba
# cannot compile the checking wrapper.
install_import_hook("cips3d", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


DEVICES = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.fixture(params=[name for name, present in DEVICES.items() if present])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU and the accelerators of this machine, with convolutions in full float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of CPUs out where GPUs are visible."""
    if os.environ.get("CIPS3D_GPU") == "1":
        on_devices = [item for item in items if "device" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in on_devices])
        items[:] = on_devices
