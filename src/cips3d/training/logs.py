"""What a run leaves to be read: config.json, log.jsonl, TensorBoard events and sample grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cips3d.configuration import read_json, to_dict
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.export.sheets import turntable_sheet
from cips3d.files import atomic_path
from cips3d.models.generator import Generator
from cips3d.training.config import TrainConfig

#: Heads in a sample grid, and the yaws in degrees that each is seen from.
SAMPLE_HEADS, SAMPLE_YAWS = 6, (-30.0, -15.0, 0.0, 15.0, 30.0)
#: Sample grids are rendered at least this large, whatever the stage trains at, so that they can be looked at.
SAMPLE_RESOLUTION = 64


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.json into a new run directory, or checks that a used one holds the same configuration.

    Raises:
        UserError: if the directory cannot be written or holds another run.
    """
    path = run_dir / "config.json"
    if path.exists():
        if read_json(TrainConfig, path) != config:
            raise UserError(f"{run_dir} holds a run with another configuration; give another --run-dir, or resume with its own")
        return
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; give a folder as --run-dir")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise UserError(f"{run_dir} is not empty and holds no run; give another --run-dir")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")


class RunLog:
    """Log lines and TensorBoard scalars of one run; on resume, lines after the resumed step are dropped, so none stands twice.

    Args:
        run_dir: the run directory.
        step: optimiser steps already done.

    Raises:
        UserError: if the directory cannot be written.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self.run_dir = run_dir
        path = run_dir / "log.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept))
        self.file = path.open("a")
        self.board = SummaryWriter(str(run_dir), purge_step=step)

    def write(self, step: int, images: int, figures: dict[str, Any]) -> None:
        """One line, flushed, and the same numbers for TensorBoard (whose step is the number of real pictures shown)."""
        try:
            self.file.write(json.dumps({"step": step, "images": images} | figures) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.run_dir / 'log.jsonl'}: {error.strerror}; make room and resume") from None
        for name, value in figures.items():
            self.board.add_scalar(name, value, images)

    def samples(self, generator: Generator, images: int, resolution: int) -> None:
        """A sample grid: fixed heads from fixed cameras, rows of INR picture, NeRF picture and depth."""
        latents = generator.sample_latents(SAMPLE_HEADS, seed=0)
        sheet = turntable_sheet(generator, latents, SAMPLE_YAWS, max(resolution, SAMPLE_RESOLUTION))
        save_image(self.run_dir / "samples" / f"{images:012d}.png", sheet)

    def close(self) -> None:
        """Flushes and closes the files."""
        self.file.close()
        self.board.close()


def _whole_lines(path: Path) -> list[str]:
    """The complete JSON lines of a log; a killed process may have left half a line at the end."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("}\n")]
