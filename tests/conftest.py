"""Checks every annotated shape, dtype and type of the package at run time, in all tests."""

import os

# Before torch is imported. Processes that tests start have one thread each too, or they would wait
# for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests are of a CPU's numbers and processes, on a machine with a GPU too.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import signal

import hypothesis
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
