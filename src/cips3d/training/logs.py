"""The log of a run: log.jsonl, TensorBoard events, Weights & Biases and sample sheets."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cips3d.configuration import to_dict
from cips3d.errors import UserError, first_line
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.files import atomic_path
from cips3d.models.protocol import ImageGenerator
from cips3d.training import checkpoint
from cips3d.training.recipe import TrainConfig

# protobuf makes these classes at run time
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
Summary = summary_pb2.Summary  # pyright: ignore

#: Subjects in a sample sheet, and the yaws in degrees that each is seen from.
SAMPLE_SUBJECTS, SAMPLE_YAWS = 6, (-30.0, -15.0, 0.0, 15.0, 30.0)
#: Sample sheets are rendered at least this large, whatever the stage trains at.
SAMPLE_RESOLUTION = 64
#: File in a run's folder that the process holds while it logs there.
LOCK_FILE = ".lock"
#: Seconds to wait for a run that is just ending: data processes outlive a killed one by up to 5.
LOCK_SECONDS = 10.0
#: Numbers the sessions of this process.
_SESSIONS = itertools.count()


class RunLog:
    """Log lines and TensorBoard scalars of one run.

    On resume, those after the resumed step are dropped, so that none is there twice.

    Args:
        step, images: optimiser steps already done, real images already shown.

    Raises:
        UserError: if another process logs there, or did after this run was resumed, log.jsonl
            cannot be read or rewritten, or Weights & Biases cannot start.
        OSError: here and in the methods, if something else cannot be written.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, step: int, images: int) -> None:
        self.run_dir = run_dir
        self.lock = _locked(run_dir)
        newest = checkpoint.checkpoints(run_dir / checkpoint.FOLDER)[-1:]
        if newest and int(newest[0].stem) > images:  # a run that ended since this one was resumed
            self.lock.release()
            raise UserError(
                f"{run_dir}: another process trained there a moment ago; start again to continue "
                "from its end"
            )
        self._open(step, images)
        self.wandb = None if config.wandb is None else _wandb_run(config, run_dir)

    def _open(self, step: int, images: int) -> None:
        path = self.run_dir / "log.jsonl"
        kept = _lines_until(path, step)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board = Board(self.run_dir, images)

    def go_back(self, step: int, images: int) -> None:
        """Drops what was logged after that step. Weights & Biases keeps its newest figures."""
        self._close_files()
        self._open(step, images)

    def write(self, step: int, images: int, figures: dict[str, float]) -> None:
        """One line, flushed, and the same numbers for TensorBoard, by real images shown."""
        # JSON has no NaN
        finite = {name: v if math.isfinite(v) else None for name, v in figures.items()}
        self.file.write(json.dumps({"step": step, "images": images} | finite) + "\n")
        self.file.flush()
        self.board.write(images, figures)
        if self.wandb is not None:
            self.wandb.log(figures, step=images)

    def samples(self, generator: ImageGenerator, images: int, resolution: int) -> None:
        """A sample sheet: fixed subjects from fixed cameras, with auxiliary image and depth."""
        latents = generator.sample_latents(SAMPLE_SUBJECTS, seed=0)
        cameras, side = orbit_cameras(generator, SAMPLE_YAWS), max(resolution, SAMPLE_RESOLUTION)
        sheet = view_sheet(generator, latents, cameras, side, psi=1.0)
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

    Not accelerate's tracker: torch's SummaryWriter, which it uses, writes from a thread of its own,
    where a full disk ends in a traceback that nobody can catch.

    Args:
        images: real images already shown; TensorBoard hides what an earlier session logged later.
    """

    def __init__(self, run_dir: Path, images: int) -> None:
        # TensorBoard's form, with a number, as a process may begin two sessions in a second
        host, number = socket.gethostname(), next(_SESSIONS)
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.{number}"
        self.file = (run_dir / name).open("ab")
        self.records = RecordWriter(self.file)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=images + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, images: int, figures: dict[str, float]) -> None:
        """One scalar for each figure."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(Event(step=images, summary=Summary(value=values)))

    def _add(self, event: Any) -> None:
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
    """A run at Weights & Biases that a resumed run continues."""
    import wandb  # pyright: ignore[reportMissingImports] (optional; `check_run_dir` has found it)

    # not a hash of the name: a new run would continue an older one of that name
    path = run_dir / "wandb-id.txt"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        return wandb.init(
            project=config.wandb, name=run_dir.name, id=path.read_text(encoding="utf-8"),
            resume="allow", dir=run_dir, config=to_dict(config),
        )  # fmt: skip
    except wandb.Error as error:
        raise UserError(
            f"wandb: {first_line(error)}; run wandb login, or set WANDB_MODE=offline"
        ) from None


def _lines_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to that step; a killed process may have left half a line."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = (line for line in lines if line.endswith("}\n"))
        return [line for line in whole if json.loads(line)["step"] <= step]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); fix or remove it, then resume") from None
