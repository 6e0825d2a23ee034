"""Several training processes of one machine: as many as suit it, errors and interrupts of any of them, none left behind."""

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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import tiny
from cips3d import cli, pretrained
from cips3d.configuration import with_settings
from cips3d.errors import UserError
from cips3d.models.baselines import build_generator
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.training.checkpoint import checkpoints
from cips3d.training.config import Stage, TrainConfig
from cips3d.training.launch import default_processes, run_in_processes
from cips3d.training.logs import write_config
from cips3d.training.presets import preset
from cips3d.training.trainer import MODEL_FILE, Trainer


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
    total = Accelerator().reduce(torch.tensor([float(min(cores)), float(len(cores))]), reduction="sum")
    assert isinstance(total, torch.Tensor)
    return total.tolist()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to cores")
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


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_any_process_is_the_error_of_all(rank: int) -> None:
    with pytest.raises(UserError, match=f"^nothing left on {rank}$"):
        run_in_processes(2, fail_on, rank)
    assert not multiprocessing.active_children()


def train(config: TrainConfig, run: Path) -> None:
    Trainer(config, run).run()


def test_processes_that_train_together_load_data_in_processes_of_their_own(tmp_path: Path) -> None:
    config = tiny.config(tiny.pictures(tmp_path / "data"), stages=(Stage(8, kimg=0.008, batch=4),), workers=1)
    run_in_processes(2, train, config, tmp_path / "run")
    assert (tmp_path / "run" / MODEL_FILE).exists()
    assert not multiprocessing.active_children()


def measure(model: str, out: str) -> None:
    cli.main(["eval", model, "--metrics", "fd6_heads", "kd6_heads", "--count", "2", "--json-file", out])


def test_processes_share_the_pictures_of_a_distance(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tmp_path / "model.safetensors")
    pretrained.save(build_generator(tiny.GENERATOR), model)
    values = []
    for processes in (1, 2):
        monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / f"cache-{processes}"))
        run_in_processes(processes, measure, model, str(tmp_path / "found.json"))
        found = json.loads((tmp_path / "found.json").read_text())["values"]
        values.append([found["fd6_heads"], found["kd6_heads"]])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert capfd.readouterr().out.count("fd6_heads") == 2  # one table from each call


def end_on(rank: int, how: str) -> None:
    total_of_ranks()
    if int(os.environ["RANK"]) == rank:
        if how == "memory":
            raise MemoryError
        os.kill(os.getpid(), signal.SIGKILL)
    total_of_ranks()


def test_a_process_that_the_system_ends_or_that_lacks_memory_is_told_of() -> None:
    with pytest.raises(UserError, match=f"a training process was ended by signal {signal.SIGKILL:d}; resume"):
        run_in_processes(2, end_on, 1, "kill")
    with pytest.raises(UserError, match="there is not enough memory"):
        run_in_processes(2, end_on, 1, "memory")
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------- the command
def start(run: Path, processes: int = 2) -> subprocess.Popen[str]:
    """The command, in a process group of its own as in a terminal."""
    words = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{MAIN}"]
    command = [*words, "train", str(run), "--processes", str(processes)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    RUNNING.append(started)
    return started


RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends what a test that has failed has started."""
    yield
    for process in RUNNING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    RUNNING.clear()


MAIN = "if __name__ == '__main__':\n from cips3d.cli import main; main()"


def wait_for(run: Path, count: int) -> None:
    end = time.monotonic() + 100
    while len(checkpoints(run / "checkpoints")) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


#: Moments at which the run of heads-64 is killed.
KILLS = int(os.environ.get("CIPS3D_KILLS", "2"))


@pytest.fixture(scope="module")
def heads_64(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The preset's curriculum with few pictures a stage and narrow networks."""
    config = with_settings(
        preset("heads-64"),
        ["stages.*.kimg=0.04", "stages.*.batch=8", "generator.nerf_width=8", "generator.inr_width=8", "sampling.coarse=3",
         "sampling.fine=0", "checkpoint_kimg=0.024", "sample_kimg=0.2", "log_steps=3"],
        "test",
    )  # fmt: skip
    assert [stage.resolution for stage in config.stages] == [16, 32, 32, 64, 64]
    channels = {side: 4 for side in (4, 8, 16, 32, 64)}
    small = DiscriminatorConfig(channels, pose_head=True)
    return replace(config, discriminator=small, aux_discriminator=small)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_curriculum_of_heads_64_survives_being_killed(tmp_path: Path, heads_64: TrainConfig, processes: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        write_config(run, heads_64)
    undisturbed = start(whole, processes)
    assert undisturbed.wait(300) == 0
    everything = len(read_log(whole))
    moments = random.Random(processes)
    for kill in range(KILLS):
        at = round(everything * (kill + moments.random()) / KILLS)
        attempt = start(broken, processes)
        end = time.monotonic() + 100
        while attempt.poll() is None and len(read_log(broken)) < at:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.05 * moments.random())
        attempt.kill()
        ended = attempt.wait(60)
        assert ended == -signal.SIGKILL or (ended == 0 and len(read_log(broken)) == everything)  # not by a fault of its own
    assert start(broken, processes).wait(300) == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def read_log(run: Path) -> list[str]:
    log = run / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def prepared(run: Path, data: str, kimg: float) -> Path:
    write_config(run, tiny.config(data, stages=(Stage(8, kimg=kimg, batch=4),)))
    return run


def test_interrupted_and_killed_runs_go_on_and_leave_no_process(tmp_path: Path) -> None:
    data = tiny.pictures(tmp_path / "data")
    whole, broken = (prepared(tmp_path / name, data, kimg=0.2) for name in ("whole", "broken"))
    undisturbed, first = start(whole), start(broken)
    wait_for(broken, 1)
    os.killpg(first.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches every process of the group
    words = first.communicate(timeout=60)[1]
    assert first.returncode == 130 and "Traceback" not in words

    second = start(broken)
    at = len(checkpoints(broken / "checkpoints"))
    wait_for(broken, min(2, at + 1))
    helpers = psutil.Process(second.pid).children(recursive=True)
    second.kill()
    assert "Traceback" not in second.communicate(timeout=60)[1]
    assert not psutil.wait_procs(helpers, timeout=20)[1]  # none lives on

    third = start(broken)
    assert third.wait(100) == 0 and undisturbed.wait(100) == 0
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
