"""What a run leaves to be read: config.json, log.jsonl, TensorBoard events, Weights & Biases and sample grids."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore (protobuf makes these at run time)
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

from cips3d.configuration import read_json, to_dict
from cips3d.errors import UserError, first_line
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.files import atomic_path, check_writable
from cips3d.models.protocol import ImageGenerator
from cips3d.training import checkpoint
from cips3d.training.recipe import TrainConfig

#: Heads in a sample grid, and the yaws in degrees that each is seen from.
SAMPLE_HEADS, SAMPLE_YAWS = 6, (-30.0, -15.0, 0.0, 15.0, 30.0)
#: Sample grids are rendered at least this large, whatever the stage trains at, so that they can be looked at.
SAMPLE_RESOLUTION = 64
#: In the folder of a run, held by the process that logs there.
LOCK_FILE = ".lock"
#: Seconds to wait for a run that is just ending in the same folder: data processes outlive a killed one by up to 5.
LOCK_SECONDS = 10.0
#: Sessions of this process so far.
_SESSIONS = itertools.count()


def check_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Raises UserError if the configuration cannot run there: the directory holds another run, or what is none, or cannot be
    written; or Weights & Biases is asked for and not installed.
    """
    path = run_dir / "config.json"
    if path.exists():
        if read_json(TrainConfig, path) != config:
            alone = f"cips3d train {run_dir}"
            raise UserError(
                f"{run_dir} holds a run with another configuration; resume it with {alone}, or give another folder"
            )
    else:
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"{run_dir} is a file; give a folder for the run")
        if run_dir.is_dir() and any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
            raise UserError(f"{run_dir} is not empty and holds no run; give another folder")
        check_writable(path)
    if config.wandb is not None and find_spec("wandb") is None:
        raise UserError(
            "wandb: the package is not installed; pip install wandb, or leave the setting out"
        )


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.json, if the run directory has none yet.

    Raises:
        UserError: if it cannot be written.
    """
    path = run_dir / "config.json"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")


class RunLog:
    """Log lines and TensorBoard scalars of one run; on resume, those after the resumed step are dropped, so none stands twice.

    Args:
        run_dir: the run directory.
        config: of the run.
        step: optimiser steps already done.
        images: real pictures already shown.

    Raises:
        UserError: if another process logs there, or did after this run was resumed, log.jsonl cannot be read or rewritten, or
            Weights & Biases is asked for and cannot start.
        OSError: here and in the methods, if something else cannot be written.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, step: int, images: int) -> None:
        self.run_dir = run_dir
        self.lock = _locked(run_dir)
        newest = checkpoint.checkpoints(run_dir / checkpoint.FOLDER)[-1:]
        if newest and int(newest[0].stem) > images:  # of one that ended since this run was resumed
            self.lock.release()
            raise UserError(
                f"{run_dir}: another process trained there a moment ago; start again, to go on from where it ended"
            )
        self._open(step, images)
        self.wandb = None if config.wandb is None else _wandb_run(config, run_dir)

    def _open(self, step: int, images: int) -> None:
        path = self.run_dir / "log.jsonl"
        kept = _lines_until(path, step)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept))
        self.file = path.open("a")
        self.board = Board(self.run_dir, images)

    def go_back(self, step: int, images: int) -> None:
        """Drops what was logged after that step, as a resumed run does. (Weights & Biases keeps its newest figures.)"""
        self._close_files()
        self._open(step, images)

    def write(self, step: int, images: int, figures: dict[str, float]) -> None:
        """One line, flushed, and the same numbers for TensorBoard, whose step is the number of real pictures shown.

        Numbers that are not finite are null in the line.
        """
        written = {
            name: value if math.isfinite(value) else None for name, value in figures.items()
        }  # JSON has no NaN
        self.file.write(json.dumps({"step": step, "images": images} | written) + "\n")
        self.file.flush()
        self.board.write(images, figures)
        if self.wandb is not None:
            self.wandb.log(figures, step=images)

    def samples(self, generator: ImageGenerator, images: int, resolution: int) -> None:
        """A sample grid: fixed heads from fixed cameras, rows of INR picture, NeRF picture and depth."""
        latents = generator.sample_latents(SAMPLE_HEADS, seed=0)
        cameras = orbit_cameras(generator, SAMPLE_YAWS)
        sheet = view_sheet(generator, latents, cameras, max(resolution, SAMPLE_RESOLUTION))
        save_image(self.run_dir / "samples" / f"{images:012d}.png", sheet)

    def close(self) -> None:
        """Closes the files; what a full disk has not taken by now is lost."""
        self._close_files()
        self.lock.release()
        if self.wandb is not None:
            self.wandb.finish()

    def _close_files(self) -> None:
        for file in (self.file, self.board.file):
            with contextlib.suppress(OSError):
                file.close()


class Board:
    """TensorBoard events of one session, written at once.

    torch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback that nobody can catch.

    Args:
        run_dir: where the event file goes.
        images: real pictures already shown; TensorBoard hides what an earlier session logged after them.
    """

    def __init__(self, run_dir: Path, images: int) -> None:
        # as TensorBoard names them: a process may begin two sessions in a second
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_SESSIONS)}"
        self.file = (run_dir / name).open("ab")
        self.records = RecordWriter(self.file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=images + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, images: int, figures: dict[str, float]) -> None:
        """One scalar for each figure."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(Event(step=images, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())
        self.records.flush()


def _locked(run_dir: Path) -> FileLock:
    """A lock that the process holds until it is released, or until the process ends."""
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise UserError(
            f"{run_dir}: another process is training there; let it end, or give another folder"
        ) from None
    except (OSError, NotImplementedError):  # a disk that has no locks
        pass
    return lock


def _wandb_run(config: TrainConfig, run_dir: Path) -> Any:
    """A run at Weights & Biases that a resumed run goes on with."""
    import wandb  # pyright: ignore[reportMissingImports] (optional; `check_run_dir` has found it)

    path = (
        run_dir / "wandb-id.txt"
    )  # a name's hash would take a new run in a folder of an old one's name for that one
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(secrets.token_hex(8))
    key = path.read_text()
    try:
        return wandb.init(
            project=config.wandb,
            name=run_dir.name,
            id=key,
            resume="allow",
            dir=run_dir,
            config=to_dict(config),
        )
    except wandb.Error as error:
        raise UserError(
            f"wandb: {first_line(error)}; run wandb login, or set WANDB_MODE=offline"
        ) from None


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to that step; a killed process may have left half a line at the end."""
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); mend or remove it, then resume") from None
