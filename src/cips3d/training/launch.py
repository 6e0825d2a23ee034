"""One training process per core on a machine without an accelerator.

A training step is many small operations, and on a CPU the threads of one process wait for each other at the end of each.
Processes that share a batch meet once per network and step, when gradients are averaged (benchmarks/training.py measures both).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
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

#: With fewer pictures than this in each process, what a step costs whatever the batch outweighs the gain.
LEAST_LOCAL_BATCH = 4
#: Seconds for which a process waits to hear why another one has ended.
_PATIENCE = 5.0

Result = TypeVar("Result")


def default_processes(stages: Iterable[Stage]) -> int:
    """How many processes of this machine should train those stages together.

    One where there is an accelerator, or where a launcher such as `accelerate launch` has already started several; otherwise at
    most one per thread that torch would use, such that every batch divides and no process gets under `LEAST_LOCAL_BATCH`.
    """
    if (
        torch.accelerator.is_available()
        or "WORLD_SIZE" in os.environ
        or not torch.distributed.is_available()
    ):
        return 1
    stages = list(stages)
    fitting = [
        count
        for count in range(1, torch.get_num_threads() + 1)
        if all(stage.batch % (count * stage.accumulate) == 0 for stage in stages)
        and all(stage.batch // count >= LEAST_LOCAL_BATCH for stage in stages)
    ]
    return max(fitting, default=1)


def run_in_processes(count: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs `work(*arguments)` in this process and in `count` − 1 new ones, which `accelerate` takes for one job on CPUs.

    This process is the main one; its result is returned. The threads that torch uses here are shared out among them all.

    Args:
        work: a function of a module, with arguments that can be pickled.

    Raises:
        UserError: that of any of the processes.
    """
    if count == 1:
        result = work(*arguments)
        if torch.distributed.is_initialized():  # a launcher's; NCCL complains where nobody does
            torch.distributed.destroy_process_group()
        return result
    if "ACCELERATE_USE_CPU" not in os.environ and torch.accelerator.is_available():
        found = torch.accelerator.device_count()
        raise UserError(
            f"--processes {count}: they would share the CPU, and this machine has {found} GPU{'s' * (found > 1)}; leave it out "
            f"or start accelerate launch --num_processes {found} -m cips3d train (for the CPU set ACCELERATE_USE_CPU=true)"
        )
    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    job = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "LOCAL_WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(
            threads
        ),  # accelerate would set torch's threads to all cores, for each process
    }
    helpers, pipes = [], []
    try:
        for rank in range(1, count):
            pipe, far_end = context.Pipe(duplex=False)
            environment = job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # no daemon, since that could not start processes that load data; it ends with this one all the same (`_end_with`)
            helper = context.Process(
                target=_help, args=(environment, threads, far_end, work, arguments)
            )
            with _interrupts_ignored():  # the helper starts so, and hears none while it imports
                helper.start()
            helpers.append(helper)
            far_end.close()  # so that reading from a helper that has ended ends too
            pipes.append(pipe)
        for pipe, helper in zip(pipes, helpers, strict=True):
            # for its word that it is there; unlike the wait for it in a collective, a Ctrl-C ends this one
            if pipe not in wait([pipe, helper.sentinel]) or not _begun(pipe):
                raise UserError(
                    _killed(helpers) or "a training process ended before it had begun; see above"
                )
        try:
            with _job(job | {"RANK": "0", "LOCAL_RANK": "0"}, threads):
                result = work(*arguments)
        except RuntimeError as error:  # what a collective says whose partner has ended
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


def joined(precision: str = "no") -> Accelerator:
    """The Accelerator of this process in its job, of this precision, whatever an earlier run of this process had.

    Raises:
        UserError: if the device does not have it, or the launcher's processes find no device and so do not find each other.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        if "precision" not in str(error):
            raise UserError(
                f"the launcher: {error}; start with accelerate launch or torchrun"
            ) from None
        raise UserError(f"precision {precision}: {error}; set precision=no") from None
    # accelerate takes emulation for it, which is slower than full precision
    if (
        precision == "bf16"
        and accelerator.device.type == "cuda"
        and not torch.cuda.is_bf16_supported(False)
    ):
        raise UserError(
            "precision bf16: this GPU has no arithmetic for it (Ampere and later have); set precision=no"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > accelerator.num_processes:
        raise UserError(
            f"the launcher has started {started} processes, but none finds a GPU; set ACCELERATE_USE_CPU=true, or start one"
        )
    return accelerator


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """In the main thread, which alone can say so, and a process started here: a Ctrl-C does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _job(environment: dict[str, str], threads: int) -> Iterator[None]:
    """This process as one of a job: variables, threads and cores of its own, and afterwards nothing of it left."""
    variables, whole = dict(os.environ), torch.get_num_threads()
    os.environ |= environment
    torch.set_num_threads(threads)
    cores = _stay_on_cores(int(environment["LOCAL_RANK"]), int(environment["WORLD_SIZE"]))
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # else an earlier Accelerator of this process would answer
    try:
        yield
    finally:
        os.environ.clear()  # accelerate adds some of its own
        os.environ |= variables
        torch.set_num_threads(whole)
        if cores:
            os.sched_setaffinity(0, cores)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def _stay_on_cores(rank: int, count: int) -> set[int]:
    """Binds this process to its share of the cores that it may use, where the system lets it; returns all of them.

    All of them are shared out, be there fewer threads or not: else several jobs would crowd on the first ones.

    A process that moves from core to core leaves its caches behind: two bound ones train 5% faster (benchmarks/scaling.py).
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        return set()
    cores = os.sched_getaffinity(0)
    own = sorted(cores)[rank * len(cores) // count : (rank + 1) * len(cores) // count]
    if own:
        os.sched_setaffinity(0, own)
    return cores


def _help(
    environment: dict[str, str],
    threads: int,
    pipe: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A process that is not the main one: does the work and reports that it is there, and a user's error.

    It hears no Ctrl-C or SIGTERM, which the main process does and tells the others.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # where it is not inherited
    pipe.send(None)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()
    try:
        with _job(environment, threads):
            work(*arguments)
    except UserError as error:
        pipe.send(str(error))
    except KeyboardInterrupt:
        pass  # all processes have agreed to stop
    except (RuntimeError, MemoryError) as error:
        fault = machine_fault(error)
        if fault is not None:
            pipe.send(fault)
        elif not wait(
            [main.sentinel], timeout=2 * _PATIENCE
        ):  # with the main process gone nobody is left to tell
            raise


def _begun(pipe: Connection) -> bool:
    """Whether a helper's first word has come, and not its end."""
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def _end_with(sentinel: int) -> None:
    """Ends this process as soon as the main one has ended, however that happened."""
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
    """What to say of a helper that a signal has ended."""
    ended = wait([helper.sentinel for helper in helpers], timeout=_PATIENCE)
    for helper in helpers:
        if helper.sentinel in ended:
            helper.join(_PATIENCE)  # its files close a moment before its exit status can be had
    signals = [
        -helper.exitcode
        for helper in helpers
        if helper.exitcode is not None and helper.exitcode < 0
    ]
    if not signals:
        return None
    return f"a training process was ended by signal {signals[0]}; resume, with fewer --processes if memory was short"
