"""Training processes of one machine: their number, errors, interrupts, and none left behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import tiny
from cips3d import cli, pretrained
from cips3d.configuration import with_settings
from cips3d.errors import UserError
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.protocol import MODEL_FILE
from cips3d.models.registry import build_generator
from cips3d.training.launch import (
    check_launcher,
    default_processes,
    joined,
    run_in_processes,
)
from cips3d.training.loop import train
from cips3d.training.presets import preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run, write_config


def stages(*batches: int) -> tuple[Stage, ...]:
    return tuple(Stage(8, kimg=1, batch=batch) for batch in batches)


@pytest.mark.parametrize(
    ("threads", "batches", "processes"),
    [(1, (16,), 1), (2, (16,), 2), (8, (16,), 4), (4, (16, 12), 2), (4, (4,), 1), (2, (2,), 1)],
)
def test_as_many_processes_as_the_batches_and_the_cores_allow(
    threads: int, batches: tuple[int, ...], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert default_processes(stages(*batches)) == processes
    monkeypatch.setenv("WORLD_SIZE", "1")  # a launcher has decided
    assert default_processes(stages(*batches)) == 1


def total_of_ranks() -> float:
    from accelerate import Accelerator  # in the helper, torch comes with the function's module

    accelerator = Accelerator()
    total = accelerator.reduce(torch.tensor([float(accelerator.process_index + 1)]))
    assert isinstance(total, torch.Tensor)
    return total.item() + accelerator.num_processes / 10


def fail_on(rank: int) -> None:
    total_of_ranks()
    if int(os.environ["RANK"]) == rank:
        raise UserError(f"nothing left on {rank}")
    total_of_ranks()


def test_all_processes_do_the_work_together() -> None:
    before = dict(os.environ), torch.get_num_threads()
    assert run_in_processes(2, total_of_ranks) == pytest.approx(3.2)
    assert (dict(os.environ), torch.get_num_threads()) == before
    assert total_of_ranks() == pytest.approx(1.1)  # one process again


def cores_of_all_ranks() -> list[float]:
    """The sum of the first core of each process, and of how many it has."""
    from accelerate import Accelerator

    cores = os.sched_getaffinity(0)
    total = Accelerator().reduce(
        torch.tensor([float(min(cores)), float(len(cores))]), reduction="sum"
    )
    assert isinstance(total, torch.Tensor)
    return total.tolist()


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to cores"
)
def test_each_process_has_cores_of_its_own() -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = sorted(before)[0], sorted(before)[len(before) // 2]
        assert run_in_processes(2, cores_of_all_ranks) == [first + second, len(before)]
    finally:
        torch.set_num_threads(threads)
    assert os.sched_getaffinity(0) == before


def test_processes_on_a_machine_with_gpus_are_started_by_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    with pytest.raises(
        UserError, match=r"--processes 2: .*8 GPUs; .*accelerate launch --num_processes 8"
    ):
        run_in_processes(2, fail_on, 0)


LONELY = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (LONELY, "SLURM_NTASKS is 2: .*torchrun --nnodes"),
        (LONELY | {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "SLURM_NTASKS is 2"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE is 4: .*torchrun --nnodes"),
        (LONELY | {"WORLD_SIZE": "2"}, None),  # of torchrun
        (LONELY | {"SLURM_JOB_ID": "7"}, None),  # the job's script
        (LONELY | {"SLURM_NTASKS": "1"}, None),
    ],
)
def test_tasks_that_do_not_find_each_other_are_refused(
    variables: dict[str, str], fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if fault is None:
        check_launcher()
        return
    for start in (joined, lambda: run_in_processes(2, total_of_ranks)):
        with pytest.raises(UserError, match=fault):
            start()


def test_srun_without_torchrun_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LONELY.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(tmp_path / "run")])
    assert stopped.value.code == 2 and not (tmp_path / "run").exists()
    assert "-m cips3d" in capsys.readouterr().err.splitlines()[-1]


def test_several_gpus_of_a_windows_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="not supported on Windows"):
        joined()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_launcher()


def test_a_gpu_that_only_emulates_16_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cips3d.training.launch.Accelerator",
        lambda **_: SimpleNamespace(device=torch.device("cuda")),
    )
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    with pytest.raises(UserError, match="precision bf16: this GPU"):
        joined("bf16")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_process_is_the_error_of_all(rank: int) -> None:
    with pytest.raises(UserError, match=f"^nothing left on {rank}$"):
        run_in_processes(2, fail_on, rank)
    assert not multiprocessing.active_children()


def train_and_disturb(config: TrainConfig, run: Path) -> None:
    def disturb(*_: object) -> None:
        if os.environ["RANK"] == "1":  # the main process has rank 1 itself as a child
            loading = multiprocessing.active_children()
            assert len(loading) == config.workers
            for process in loading:
                # a scheduler's signal reaches these as well, and the step needs them
                os.kill(process.pid or 0, signal.SIGTERM)

    train(Run(config, run), disturb)


def test_processes_that_train_together_load_data_in_processes_of_their_own(tmp_path: Path) -> None:
    config = tiny.config(
        tiny.images(tmp_path / "data"), stages=(Stage(8, kimg=0.008, batch=4),), workers=1
    )
    run_in_processes(2, train_and_disturb, config, tmp_path / "run")
    assert (tmp_path / "run" / MODEL_FILE).exists()
    assert not multiprocessing.active_children()


def measure(model: str, out: str) -> None:
    cli.main(
        ["eval", model, "--metrics", "fd33_heads", "kd33_heads", "--count", "2", "--json-file", out]
    )


def test_processes_share_the_images_of_a_distance(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tmp_path / "model.safetensors")
    pretrained.save(build_generator(tiny.GENERATOR), model)
    values = []
    for processes in (1, 2):
        cache = tmp_path / f"cache-{processes}"
        monkeypatch.setenv("CIPS3D_CACHE", str(cache))
        run_in_processes(processes, measure, model, str(tmp_path / "found.json"))
        found = json.loads((tmp_path / "found.json").read_text())["values"]
        values.append([found["fd33_heads"], found["kd33_heads"]])
        # each keeps the features of its share of the real images
        assert len(list(cache.iterdir())) == processes
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert capfd.readouterr().out.count("fd33_heads") == 2  # one table from each call


def end_on(rank: int, how: str) -> None:
    total_of_ranks()
    if int(os.environ["RANK"]) == rank:
        if how == "memory":
            raise MemoryError
        os.kill(os.getpid(), signal.SIGKILL)
    total_of_ranks()


def test_a_killed_process_and_one_without_memory_are_reported() -> None:
    with pytest.raises(
        UserError, match=f"a training process was ended by signal {signal.SIGKILL:d}; resume"
    ):
        run_in_processes(2, end_on, 1, "kill")
    with pytest.raises(UserError, match="not enough memory"):
        run_in_processes(2, end_on, 1, "memory")
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------- the command
def start(run: Path, processes: int = 2) -> subprocess.Popen[str]:
    """The command, in a process group of its own as in a terminal."""
    words = [
        sys.executable,
        "-c",
        f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{MAIN}",
    ]
    command = [*words, "train", str(run), "--processes", str(processes)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    RUNNING.append(started)
    return started


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends the processes of a failed test."""
    yield
    for process in RUNNING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    RUNNING.clear()


MAIN = "if __name__ == '__main__':\n from cips3d.cli import main; main()"


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def status_after(number: signal.Signals, started: subprocess.Popen[str]) -> int:
    """The exit status of a command after a signal; it must leave no process and no traceback."""
    children = psutil.Process(started.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(started.pid, number)  # a terminal's Ctrl-C reaches every process of the group
    else:
        started.send_signal(number)
    assert "Traceback" not in started.communicate(timeout=60)[1]
    assert not psutil.wait_procs(children, timeout=20)[1]
    return started.returncode


def test_an_interrupt_ends_a_run_whose_processes_are_still_starting(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run, tiny.config(tiny.images(tmp_path / "data")))
    started = start(run)

    def helpers() -> list[psutil.Process]:
        found = [
            process
            for process in psutil.process_iter(["ppid", "cmdline"])
            if process.info["ppid"] == started.pid
        ]
        return [process for process in found if "spawn_main" in str(process.info["cmdline"])]

    wait_until(helpers)
    # it must ignore this: the main process has to end in its own way
    helpers()[0].send_signal(signal.SIGINT)
    time.sleep(0.5)  # the main process ignores interrupts too while it starts a helper
    assert status_after(signal.SIGINT, started) == 130
    assert not read_log(run)


#: Moments at which the run of heads-64 is killed, after one at which it is interrupted.
KILLS = int(os.environ.get("CIPS3D_KILLS", "2"))


@pytest.fixture(scope="module")
def heads_64(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The preset's curriculum with few images a stage and narrow networks."""
    config = with_settings(
        preset("heads-64"),
        ["stages.*.kimg=0.04", "stages.*.batch=8", "generator.networks.nerf_width=8",
         "generator.networks.inr_width=8", "sampling.coarse=3", "sampling.fine=0",
         "checkpoint_kimg=0.024", "sample_kimg=0.2", "log_steps=3"],
        "test",
    )  # fmt: skip
    assert [stage.resolution for stage in config.stages] == [16, 32, 32, 64, 64]
    channels = {side: 4 for side in (4, 8, 16, 32, 64)}
    small = DiscriminatorConfig(channels, pose_head=True)
    return replace(config, discriminator=small, aux_discriminator=small)


# test_resume.py kills single processes
@pytest.mark.parametrize("processes", [1, 2] if "CIPS3D_KILLS" in os.environ else [2])
def test_the_curriculum_of_heads_64_survives_an_interrupt_and_kills(
    tmp_path: Path, heads_64: TrainConfig, processes: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        write_config(run, heads_64)
    assert start(whole, processes).wait(300) == 0
    everything = len(read_log(whole))
    moments = random.Random(processes)
    stops = [(signal.SIGINT, 130)] + [(signal.SIGKILL, -signal.SIGKILL)] * KILLS
    for i, (number, status) in enumerate(stops):
        at = max(1, round(everything * (i + moments.random()) / len(stops)))
        before = log_time(broken)
        attempt = start(broken, processes)
        wait_until(
            lambda at=at, before=before: log_time(broken) > before and len(read_log(broken)) >= at
        )
        time.sleep(0.05 * moments.random())
        ended = status_after(number, attempt)
        # not by a fault of its own
        assert ended == status or (ended == 0 and len(read_log(broken)) == everything)
    assert start(broken, processes).wait(300) == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def read_log(run: Path) -> list[str]:
    log = run / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def log_time(run: Path) -> int:
    """When the log was last written; a resumed run rewrites it before its first step."""
    log = run / "log.jsonl"
    return log.stat().st_mtime_ns if log.exists() else 0
