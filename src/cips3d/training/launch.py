"""One training process per core on a machine without an accelerator.

A training step is many small operations. On a CPU the threads of one process wait for each other
after each of them, while processes that share a batch only meet to average gradients, once per
network and step (benchmarks/training_speed.py measures both).

`torch.multiprocessing` and `torch.distributed.elastic` are not used: neither binds processes to
cores, which is worth 5 %, nor lets an interrupted main process end the step and save first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.other import get_free_port

from cips3d.errors import UserError, machine_fault
from cips3d.interrupts import ENDING
from cips3d.training.recipe import Stage

#: With fewer images per process, a step's fixed cost outweighs the gain.
LEAST_LOCAL_BATCH = 4
#: Seconds that a process waits to learn why another one ended.
_PATIENCE = 5.0
#: Where the flavours of MPI tell each task how many there are.
_MPI_COUNTS = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]

Result = TypeVar("Result")


def default_processes(stages: Iterable[Stage]) -> int:
    """How many processes of this machine should train these stages together.

    At most one per thread of torch, so that every batch divides and each process gets at least
    `LEAST_LOCAL_BATCH` images. One where there is an accelerator, or where a launcher such as
    `accelerate launch` has already started several.
    """
    started = torch.accelerator.is_available() or "WORLD_SIZE" in os.environ
    if started or not torch.distributed.is_available():
        return 1
    counts = [*range(1, torch.get_num_threads() + 1)]
    for stage in stages:
        most = stage.batch // LEAST_LOCAL_BATCH
        counts = [n for n in counts if n <= most and stage.batch % (n * stage.accumulate) == 0]
    return max(counts, default=1)


def run_in_processes(count: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs `work(*arguments)` in this process and in `count` − 1 new ones, as one job on CPUs.

    This process is the main one; its result is returned. All share the threads of torch. `work` is
    a module-level function, and its arguments can be pickled.

    Raises:
        UserError: that of any of the processes, or see `check_launcher`.
    """
    check_launcher()
    if count == 1:
        result = work(*arguments)
        if torch.distributed.is_initialized():  # a launcher's; NCCL complains if nobody does
            torch.distributed.destroy_process_group()
        return result
    if "ACCELERATE_USE_CPU" not in os.environ and torch.accelerator.is_available():
        gpus = torch.accelerator.device_count()
        raise UserError(
            f"--processes {count}: they would share the CPU, and this machine has {gpus} "
            f"GPU{'s' * (gpus > 1)}; leave the option out, or start accelerate launch "
            f"--num_processes {gpus} -m cips3d train (ACCELERATE_USE_CPU=true selects the CPU)"
        )
    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    port, helpers, pipes = get_free_port(), [], []
    try:
        for rank in range(1, count):
            pipe, far_end = context.Pipe(duplex=False)
            # not a daemon, which could not start data loading processes; `_end_with` ends it
            place = (rank, count, port, threads)
            helper = context.Process(target=_help, args=(place, far_end, work, arguments))
            with _interrupts_ignored():  # which the helper inherits while it imports
                helper.start()
            helpers.append(helper)
            far_end.close()  # so that reading from a helper that has ended ends too
            pipes.append(pipe)
        for pipe, helper in zip(pipes, helpers, strict=True):
            try:  # until it has started: a Ctrl-C ends this wait, but not one in a collective
                wait([pipe, helper.sentinel])
                pipe.recv()
            except EOFError:
                message = "a training process ended before it started; see above"
                raise UserError(_killed(helpers) or message) from None
        try:
            with _job(0, count, port, threads):
                result = work(*arguments)
        except RuntimeError as error:  # what a collective raises if its partner has ended
            message = None if machine_fault(error) else _reported(pipes) or _killed(helpers)
            if message is None:
                raise
            raise UserError(message) from error
        for helper in helpers:
            helper.join()
        return result
    finally:
        for helper in helpers:
            helper.kill()
            helper.join()


def check_launcher() -> None:
    """Raises UserError if this process is one of several that will not find each other.

    These are tasks of plain `srun` or `mpirun`, each of which would train on its own, and processes
    on the GPUs of a Windows machine, which has no NCCL.
    """
    variables = os.environ
    several = int(variables.get("WORLD_SIZE", "1")) > 1
    if several and platform.system() == "Windows" and "ACCELERATE_USE_CPU" not in variables:
        raise UserError(
            "training on several GPUs is not supported on Windows; start one process, or use "
            "Linux or WSL"
        )
    if "WORLD_SIZE" in variables:
        return
    # a batch script is one process, however many tasks its job may start
    in_step = "SLURM_STEP_ID" in variables or "SLURM_JOB_ID" not in variables
    counts = ["SLURM_NTASKS"] if "SLURM_PROCID" in variables and in_step else []
    counts += [] if "MASTER_ADDR" in variables else _MPI_COUNTS
    for name in counts:
        if int(variables.get(name, "1")) > 1:
            raise UserError(
                f"{name} is {variables[name]}: these tasks do not find each other, and each would "
                "do all of the work; start one task per machine (srun --ntasks-per-node 1) that "
                "runs torchrun --nnodes MACHINES --nproc_per_node GPUS --rdzv_backend c10d "
                "--rdzv_endpoint HOST:29500 -m cips3d ... (docs/cluster.md)"
            )


def joined(precision: str = "no") -> Accelerator:
    """The Accelerator of this process in its job, whatever an earlier run of this process had.

    Raises:
        UserError: if the device does not have the precision, or the launcher's processes find no
            GPU, without which they do not find each other, or see `check_launcher`.
    """
    check_launcher()
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        line = f"the launcher: {error}; start with accelerate launch or torchrun"
        if "precision" in str(error):
            line = f"precision {precision}: {error}; set precision=no"
        raise UserError(line) from None
    # accelerate accepts emulation, which is slower than full precision
    on_gpu = accelerator.device.type == "cuda"
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise UserError(
            "precision bf16: this GPU does not support it (Ampere and later do); set precision=no"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > accelerator.num_processes:
        raise UserError(
            f"the launcher has started {started} processes, but none finds a GPU; set "
            "ACCELERATE_USE_CPU=true, or start one"
        )
    return accelerator


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C does nothing in the block, nor in processes that it starts (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _job(rank: int, count: int, port: int, threads: int) -> Iterator[None]:
    """This process as one of a job: its variables, threads and cores, restored afterwards."""
    variables, all_threads = dict(os.environ), torch.get_num_threads()
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    # accelerate would give each process the threads of all cores
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    cores = _stay_on_cores(rank, count)
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier Accelerator
    try:
        yield
    finally:
        os.environ.clear()  # accelerate adds some of its own
        os.environ |= variables
        torch.set_num_threads(all_threads)
        if cores:
            os.sched_setaffinity(0, cores)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def _stay_on_cores(rank: int, count: int) -> set[int]:
    """Binds this process to its share of the cores that it may use; returns all of them.

    A process that moves from core to core loses its caches: two bound ones train 5 % faster
    (benchmarks/scaling.py). All cores are shared out, even if there are fewer threads, since
    several jobs would otherwise crowd on the first ones.
    """
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        return set()
    cores = os.sched_getaffinity(0)
    own = sorted(cores)[rank * len(cores) // count : (rank + 1) * len(cores) // count]
    if own:
        os.sched_setaffinity(0, own)
    return cores


def _help(
    place: tuple[int, int, int, int],
    pipe: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A process other than the main one: does the work and reports its start and user errors.

    It ignores Ctrl-C and SIGTERM, on which all processes agree after each step.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # where it is not inherited
    pipe.send(None)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()
    try:
        with _job(*place):
            work(*arguments)
    except UserError as error:
        pipe.send(str(error))
    except KeyboardInterrupt:
        pass  # all processes have agreed to stop
    except (RuntimeError, MemoryError) as error:
        fault = machine_fault(error)
        if fault is not None:
            pipe.send(fault)
        elif not wait([main.sentinel], timeout=2 * _PATIENCE):  # else nobody is left to tell
            raise


def _end_with(sentinel: int) -> None:
    """Ends this process as soon as the main one has ended, for whatever reason."""
    wait([sentinel])
    os._exit(1)


def _reported(pipes: list[Connection]) -> str | None:
    """The first error that a helper has reported, or is about to."""
    for pipe in wait(pipes, timeout=_PATIENCE):
        assert isinstance(pipe, Connection)
        with contextlib.suppress(EOFError):
            return pipe.recv()
    return None


def _killed(helpers: list[SpawnProcess]) -> str | None:
    """The error line for a helper that a signal has ended, if there is one."""
    ended = wait([helper.sentinel for helper in helpers], timeout=_PATIENCE)
    for helper in helpers:
        if helper.sentinel in ended:
            helper.join(_PATIENCE)  # its files close a moment before its exit status is known
        if (helper.exitcode or 0) < 0:
            return (
                f"a training process was ended by signal {-(helper.exitcode or 0)}; resume, with "
                "fewer --processes if memory was short"
            )
    return None
