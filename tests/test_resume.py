"""A run that is killed and restarted ends with the same bits as one that never was."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tiny
from cips3d import storage
from cips3d.configuration import read_json
from cips3d.errors import UserError
from cips3d.training import logs
from cips3d.training import run as runs
from cips3d.training.logs import LOCK_FILE, RunLog
from cips3d.training.loop import train
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run, located

#: Runs that are killed at a random moment.
KILLS = int(os.environ.get("CIPS3D_KILLS", "3"))
SEED = int(os.environ.get("CIPS3D_KILL_SEED", "0"))
STEPS = 12 + 24

# a new process each, but torch is imported once
processes = multiprocessing.get_context("forkserver")
# optimisers import torch._dynamo
processes.set_forkserver_preload(["cips3d.training.loop", "tiny", "torch._dynamo"])


def killed(run_dir: Path, data: str, shares: Connection, die_in_file: int) -> None:
    """The run that gets killed: two stages, a checkpoint every 4th step; sends its progress.

    Given `die_in_file`, it dies halfway through that file; models and checkpoints alternate.
    """
    torch.set_num_threads(1)
    stages = (
        Stage(4, kimg=0.048, batch=4),
        Stage(8, kimg=0.096, batch=4, generator_lr=1e-3, fade_kimg=0.05),
    )
    config = tiny.config(data, stages=stages, mirror=True, log_steps=3, sample_kimg=0.088)
    if die_in_file:
        storage.save_file = dying_writer(storage.save_file, die_in_file)
    shares.send(0.0)
    train(Run(config, run_dir), lambda share, _: shares.send(share))


def dying_writer(write: Callable[..., None], file: int) -> Callable[..., None]:
    """The writer, killed when that file (1 is the first) is half on the disk."""
    written = 0

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal written
        written += 1
        write(tensors, path, metadata)
        if written == file:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return half


# ---------------------------------------------------------------- the tests
def start(
    run_dir: Path, data: str, die_in_file: int = 0
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    shares, far_end = processes.Pipe(duplex=False)
    process = processes.Process(target=killed, args=(run_dir, data, far_end, die_in_file))
    process.start()
    far_end.close()
    return process, shares


def finish(run_dir: Path, data: str) -> None:
    process, _ = start(run_dir, data)
    process.join(100)
    assert process.exitcode == 0


def kill_and_finish(run_dir: Path, data: str, share: float, delay: float) -> None:
    """Kills the run `delay` seconds after it has reported that share, then restarts it."""
    process, shares = start(run_dir, data)
    while shares.recv() < share:
        pass
    time.sleep(delay)
    process.kill()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    finish(run_dir, data)


def die_and_finish(run_dir: Path, data: str, die_in_file: int) -> None:
    """Dies with the third checkpoint half on the disk, or the model that is written before it."""
    process, _ = start(run_dir, data, die_in_file)
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    folder = run_dir / "checkpoints"
    whole = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert whole == [f"{images:012d}.safetensors" for images in (16, 32)]
    half = {
        path.name for path in (*folder.iterdir(), *run_dir.iterdir()) if path.name.startswith(".")
    }
    assert len(half - {LOCK_FILE}) == 1
    finish(run_dir, data)


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, "np") as file:
        return {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = tiny.images(tmp_path / "data")
    moments = random.Random(SEED)
    with ThreadPoolExecutor(2) as pool:
        jobs = {"whole": pool.submit(finish, tmp_path / "whole", data)}
        for kill in range(KILLS):
            share, delay = moments.uniform(0, 0.95), moments.uniform(0, 0.05)
            jobs[f"killed-{kill}"] = pool.submit(
                kill_and_finish, tmp_path / f"killed-{kill}", data, share, delay
            )
        jobs["died-in-checkpoint"] = pool.submit(
            die_and_finish, tmp_path / "died-in-checkpoint", data, 6
        )
        jobs["died-in-model"] = pool.submit(die_and_finish, tmp_path / "died-in-model", data, 5)
        for job in jobs.values():
            job.result()
    whole = tmp_path / "whole"
    last = f"checkpoints/{STEPS * 4:012d}.safetensors"
    log = read_log(whole)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1, 3))
    assert len({line["d_loss"] for line in log}) == len(log)  # it does train
    for name in jobs.keys() - {"whole"}:
        run = tmp_path / name
        assert (run / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes(), name
        assert tensors(run / last) == tensors(whole / last), name
        assert read_log(run) == log, name
        assert files(run / "samples") == files(whole / "samples"), name
        kept = [sorted(files(folder / "checkpoints")) for folder in (run, whole)]
        assert kept[0] == kept[1], name  # no half-written ones
        assert [path.name for path in run.glob(".*")] == [LOCK_FILE], name


def test_a_folder_where_another_process_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOCK_SECONDS", 0.0)
    config, run = tiny.config(tiny.images(tmp_path / "data")), tmp_path / "run"
    second = Run(config, run)
    other = RunLog(run, config, step=0, images=0)
    before = files(run)
    with pytest.raises(
        UserError,
        match=r"run: another process is training there; let it end, or give another folder",
    ):
        train(second)
    assert files(run) == before
    other.close()
    train(second)


def test_a_run_that_another_process_has_just_ended_is_not_repeated(tmp_path: Path) -> None:
    config, run = tiny.config(tiny.images(tmp_path / "data")), tmp_path / "run"
    second = Run(config, run)  # while the first one is still training
    train(Run(config, run))
    before = everything(run)
    with pytest.raises(UserError, match="another process trained there a moment ago; start again"):
        train(second)
    assert everything(run) == before
    assert Run(config, run).progress() == 1


def everything(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_continues_with_another_stage_and_with_moved_images(tmp_path: Path) -> None:
    """The two edits of config.json that docs/training.md allows."""
    run = tmp_path / "run"
    train(Run(tiny.config(tiny.images(tmp_path / "data")), run))
    (tmp_path / "data").rename(tmp_path / "moved")
    config = json.loads((run / "config.json").read_text())
    config["data"], before = str(tmp_path / "moved"), read_log(run)
    config["stages"].append(config["stages"][-1] | {"fade_kimg": 0.0, "generator_lr": 1e-4})
    (run / "config.json").write_text(json.dumps(config))
    train(Run(read_json(TrainConfig, run / "config.json"), run))
    log = read_log(run)
    assert log[: len(before)] == before
    assert [line["images"] for line in log[len(before) :]] == [
        before[-1]["images"] + 4 * i for i in range(1, 9)
    ]


def test_a_run_is_resumed_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.images(tmp_path / "data")
    for name in ("elsewhere", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    config = tiny.config("data", start="heads", stages=(Stage(8, kimg=0.004, batch=4),))
    run = Run(replace(config, start=None), "runs/one")
    assert Path(run.config.data).is_absolute()
    assert Run(replace(config, start=None), "runs/one").config == run.config  # the same words
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = read_json(TrainConfig, tmp_path / "runs/one/config.json")
    assert train(Run(stored, tmp_path / "runs/one")).exists()
    assert located(config).start == "heads"

    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"one/config.json: data is .*/data, which is not there"):
        Run(stored, tmp_path / "runs/one")


def test_a_resumed_state_does_not_keep_its_file_open(tmp_path: Path) -> None:
    """Windows deletes no file that is in use, and old checkpoints are deleted."""
    run = tmp_path / "run"
    train(Run(tiny.config(tiny.images(tmp_path / "data")), run))
    resumed = Run(tiny.config(str(tmp_path / "data")), run)
    moments = [
        value
        for state in resumed.networks.generator_optimizer.state.values()
        for value in state.values()
    ]
    assert moments
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(run) not in maps.read_text()


def test_weights_and_biases_continues_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package, which is not installed here."""
    config = tiny.config(tiny.images(tmp_path / "data"), wandb="heads")
    monkeypatch.setattr(runs, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="wandb: the package is not installed; pip install wandb"):
        Run(config, tmp_path / "run")
    monkeypatch.setattr(runs, "find_spec", lambda _: "found")
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, float]] = []
    ended: list[str] = []

    class Session:
        def log(self, figures: dict[str, float], step: int) -> None:
            logged.append((step, figures["d_loss"]))

        def finish(self) -> None:
            ended.append(begun[-1]["id"])

    def init(**options: Any) -> Session:
        begun.append(options)
        return Session()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=RuntimeError))
    trainer = Run(config, tmp_path / "run")

    def stop(_: float, figures: dict[str, float]) -> None:
        if figures["images"] >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer, stop)
    train(Run(config, tmp_path / "run"))
    first, second = begun
    assert first["id"] == second["id"] and ended == [first["id"]] * 2
    assert (first["project"], first["name"], first["resume"]) == ("heads", "run", "allow")
    log = [(int(line["images"]), line["d_loss"]) for line in read_log(tmp_path / "run")]
    assert logged == log


def test_two_sessions_in_a_second_have_two_event_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.time, "time", lambda: 1_700_000_000.5)
    for step in range(2):
        RunLog(tmp_path, tiny.config(), step, images=0).close()
    assert len(list(tmp_path.glob("events.*"))) == 2


def read_log(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"], line["data_share"]
    return lines


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
