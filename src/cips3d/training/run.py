"""A run and its directory: what it consists of, how it is saved, resumed and rolled back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from cips3d import pretrained
from cips3d.camera import PoseDistribution
from cips3d.configuration import read_json, to_dict
from cips3d.data import EMBEDDED, Dataset, open_dataset
from cips3d.errors import UserError
from cips3d.files import atomic_path, check_writable
from cips3d.metrics.fidelity import Fidelity
from cips3d.model_paths import BUNDLED
from cips3d.models.config import Sampling
from cips3d.models.cost import device_memory
from cips3d.models.protocol import MODEL_FILE, ImageGenerator
from cips3d.provenance import TrainingRecord, machine, software
from cips3d.training import checkpoint
from cips3d.training.cameras import WITHOUT_LABELS, CameraSource, DatasetCameras
from cips3d.training.command import command, shown_name
from cips3d.training.launch import joined
from cips3d.training.networks import Networks
from cips3d.training.recipe import TrainConfig, check_batches

CONFIG_FILE = "config.json"
#: A run ends when its learning rates have been halved to below this share of the configuration's.
LEAST_RATE_SCALE = 2.0**-8

#: Figures of the averaged generator for the log, measured by all processes together.
Measure = Callable[[ImageGenerator, Dataset], dict[str, float]]

logger = logging.getLogger(__name__)


class Run:
    """One training run in one directory, new or resumed from its newest checkpoint.

    Args:
        config: the run. A directory that already holds a run must hold the same configuration.
            Relative paths in it start at the working directory.
        run_dir: for config.json, log.jsonl, samples/, checkpoints/, TensorBoard events and model.
        accelerator: devices and processes; by default from the environment.
        measures: called every `metrics_kimg` and at the end, besides the configuration's metrics;
            their figures are logged.

    Attributes:
        counters: how far it is.
        cameras: where the cameras of generated images come from.
        dataset: of the current stage.

    Raises:
        UserError: if the data, its labels, a metric, the directory, a checkpoint or the device does
            not fit the configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: str | Path,
        accelerator: Accelerator | None = None,
        measures: Sequence[Measure] = (),
    ) -> None:
        config = located(config)
        self.config, self.run_dir, self.measures = config, Path(run_dir), [*measures]
        self.accelerator = accelerator or joined(config.precision)
        #: Where this process trains, and whether it writes the files.
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        #: Samples per ray in training.
        self.sampling: Sampling = config.sampling or config.generator.sampling
        self.model_path = self.run_dir / MODEL_FILE
        torch.backends.cudnn.benchmark = True  # all images of a stage have one size
        check_batches(config.stages, self.accelerator.num_processes, "stages")
        # at the largest size, so that an image too small for a later stage is refused at once
        largest = max(stage.resolution for stage in config.stages)
        path = self.run_dir / CONFIG_FILE
        if not (config.data in EMBEDDED or Path(config.data).exists()) and path.exists():
            raise UserError(
                f"{path}: data is {config.data}, which is not there; write the path of the images "
                "into that file"
            )
        self.dataset = open_dataset(config.data, largest)
        needs_labels = config.judges_cameras or config.cameras == "labels"
        if needs_labels and not self.dataset.has_cameras:
            raise UserError(
                f"{config.data}: has no camera labels in a dataset.json, which this configuration "
                f"needs; add them, or train without them (--set {WITHOUT_LABELS})"
            )
        if config.metrics:
            weights = config.inception_weights
            fidelity = Fidelity(config.metrics, None if weights is None else Path(weights))
            self.measures.append(fidelity)
        if self.is_main:
            check_run_dir(self.run_dir, config)
        self.accelerator.wait_for_everyone()
        saved = self._newest_checkpoint()
        self.networks = Networks(config, self.device, fresh=saved is None)
        self.cameras: CameraSource = self.networks.poses or config.generator.poses
        if needs_labels:
            # refuses labels unlike the model's
            labelled = DatasetCameras(self.dataset, config.mirror, config.generator.poses)
            self.cameras = labelled if config.cameras == "labels" else self.cameras
        self.counters = checkpoint.Counters(past_seconds=0.0)
        if saved is not None:
            self.counters = checkpoint.load_state(saved, self.networks)
        # in the order of the sessions; one that only writes the model again has trained nothing
        here = machine(self.device, self.accelerator.num_processes)
        if self.counters.stage < len(config.stages):
            self.counters.machines = tuple(dict.fromkeys((*self.counters.machines, here)))
        # not before, so that what was refused can be corrected in the same folder
        if self.is_main:
            write_config(self.run_dir, config)

    # ---------------------------------------------------------------- processes
    @property
    def memory(self) -> int:
        """Bytes of memory of this process: its GPU's, or its share of this machine's.

        In total, not free, so that a resumed run takes the same chunks and gets the same bits.
        """
        # torchrun's number of processes on this machine, one of several
        here = os.environ.get("LOCAL_WORLD_SIZE") or self.accelerator.num_processes
        return device_memory(self.device, int(here))

    def positions(self, batch: int) -> range:
        """The positions of a global batch that this process handles."""
        local, rank = batch // self.accelerator.num_processes, self.accelerator.process_index
        return range(rank * local, (rank + 1) * local)

    def totals(self, *values: float) -> list[float]:
        """The sum of each value over the processes, so that all take the same decision."""
        if self.accelerator.num_processes == 1:
            return list(values)
        total = self.accelerator.reduce(torch.tensor(values, device=self.device), reduction="sum")
        assert isinstance(total, Tensor)
        return total.tolist()

    def agreed(self, value: Any) -> Any:
        """The main process's value, on all: others may see an older state of a shared disk."""
        holder = [value]
        broadcast_object_list(holder)
        return holder[0]

    # ---------------------------------------------------------------- progress
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1], by the planned length of the stages."""
        stages, index = self.config.stages, self.counters.stage
        if index >= len(stages):
            return 1.0
        timed = all(stage.minutes is not None for stage in stages)
        lengths = [stage.minutes or 0.0 if timed else stage.kimg for stage in stages]
        done = sum(lengths[:index]) + lengths[index] * min(1.0, self.stage_progress())
        return done / sum(lengths)

    def stage_progress(self) -> float:
        """The share of the current stage that is done, above 1 at its end."""
        stage, counters = self.config.stages[self.counters.stage], self.counters
        by_time = 0.0 if stage.minutes is None else counters.stage_seconds / (stage.minutes * 60)
        return max(counters.stage_images / (stage.kimg * 1000), by_time)

    def is_due(self, kimg: float) -> bool:
        """Whether the last step crossed a multiple of `kimg` thousand images."""
        every, images = max(1, round(kimg * 1000)), self.counters.images
        batch = self.config.stages[self.counters.stage].batch
        return images // every > (images - batch) // every

    def end_stage(self) -> None:
        """Counts the current stage as done."""
        counters = self.counters
        if counters.past_seconds is not None:
            counters.past_seconds += counters.stage_seconds
        counters.stage, counters.stage_images, counters.stage_seconds = counters.stage + 1, 0, 0.0

    # ---------------------------------------------------------------- the model
    def averaged_model(self) -> ImageGenerator:
        """The averaged generator, ready to be saved or measured.

        It has the resolution of the last stage, the camera prior that is learned or that labels
        have, and mean styles for truncation. A transferred model keeps its mean shape.
        """
        ema, counters, config = self.networks.ema, self.counters, self.config
        last = max(0, counters.stage - (counters.stage_images == 0))
        ema.config = replace(ema.config, resolution=config.stages[last].resolution)
        if not isinstance(self.cameras, PoseDistribution):
            ema.config = replace(ema.config, poses=self.cameras.distribution())
        keeps_shape = config.start is not None and all(
            "shape_mapping" in stage.frozen for stage in config.stages
        )
        ema.update_style_means(include_shape=not keeps_shape)
        return ema

    @cached_property
    def _command(self) -> str:
        return command(self.config)

    def record(self) -> TrainingRecord:
        """What the model's file says of the run."""
        config, counters = self.config, self.counters
        past = counters.past_seconds
        return TrainingRecord(
            data=shown_name(config.data) + ", rendered by cips3d" * (config.data in EMBEDDED),
            data_images=len(self.dataset),
            start=None if config.start is None else shown_name(config.start),
            command=self._command,
            images=counters.images,
            minutes=None if past is None else round((past + counters.stage_seconds) / 60),
            machines=counters.machines,
            seed=config.seed,
            software=software(),
        )

    def measure(self) -> dict[str, float]:
        """The figures of the measures for the averaged generator."""
        self.counters.measured = self.counters.images
        ema, figures = self.averaged_model(), dict[str, float]()
        for measure in self.measures:
            figures |= measure(ema, self.dataset)
        return figures

    # ---------------------------------------------------------------- files
    def save(self) -> None:
        """Writes the model, then a checkpoint, and deletes old ones (main process only)."""
        self.save_model()  # first: a run that is stopped in between resumes and writes it again
        if self.is_main:
            folder = self.run_dir / checkpoint.FOLDER
            path = checkpoint.checkpoint_path(folder, self.counters.images)
            checkpoint.save_state(path, self.networks, self.counters)
            checkpoint.prune(folder)
            for half_written in self.run_dir.glob(".model*.safetensors"):  # by a killed process
                half_written.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def save_model(self) -> None:
        """Writes the averaged generator with the discriminators (main process only)."""
        if self.is_main:
            model = self.averaged_model()
            model.record = self.record()
            pretrained.save(model, self.model_path, self.networks.discriminators)
        self.accelerator.wait_for_everyone()

    def roll_back(self, skipped_steps: int) -> None:
        """Restores the newest checkpoint, with half the learning rates.

        Raises:
            UserError: if there is no checkpoint, or rolling back did not help.
        """
        saved, counters = self._newest_checkpoint(), self.counters
        if saved is None:
            raise UserError(
                f"{self.run_dir}: no finite gradients in {skipped_steps} steps in a row before the "
                "first checkpoint; lower the learning rates (generator_lr, discriminator_lr) and "
                "start again"
            )
        scale = counters.rate_scale / 2
        if scale < LEAST_RATE_SCALE:
            raise UserError(
                f"{self.run_dir}: no finite gradients at {counters.images} images, even with "
                f"learning rates times {2 * scale:g}; look for damaged images (cips3d data check), "
                "or start again with other settings"
            )
        restored = checkpoint.load_state(saved, self.networks)
        restored.rate_scale, restored.skipped = scale, counters.skipped
        restored.skipped_in_a_row, restored.machines = 0, counters.machines
        self.counters = restored
        if self.is_main:
            logger.warning(
                f"{counters.images} images: no finite gradients in {skipped_steps} steps in a row; "
                f"back to the checkpoint at {restored.images}, learning rates times {scale:g}"
            )

    def _newest_checkpoint(self) -> Path | None:
        folder = self.run_dir / checkpoint.FOLDER
        newest = [path.name for path in checkpoint.checkpoints(folder)[-1:]]
        name = self.agreed(newest[0] if newest else None)
        return None if name is None else folder / name


def located(config: TrainConfig) -> TrainConfig:
    """The configuration with absolute paths, so that its run can be resumed from any folder."""
    paths = {name: getattr(config, name) for name in ("data", "start", "inception_weights")}
    names = (None, *EMBEDDED, *BUNDLED)
    there = {
        field: str(Path(path).absolute())
        for field, path in paths.items()
        if path not in names and Path(path).exists()
    }
    return replace(config, **there)


def check_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Raises UserError if a directory is not for this run, or if wandb is needed and missing."""
    path = run_dir / CONFIG_FILE
    if path.exists():
        if located(read_json(TrainConfig, path)) != located(config):
            raise UserError(
                f"{run_dir} holds a run with another configuration; resume it with "
                f"cips3d train {run_dir}, or give another folder"
            )
    else:
        if run_dir.exists() and not run_dir.is_dir():
            raise UserError(f"{run_dir} is a file; give a folder for the run")
        if run_dir.is_dir() and any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
            raise UserError(f"{run_dir} is not empty and holds no run; give another folder")
        check_writable(path)
    if config.wandb is not None and find_spec("wandb") is None:
        raise UserError("wandb: the package is not installed; pip install wandb, or unset wandb")


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.json if the run directory has none yet; raises UserError if it cannot."""
    path = run_dir / CONFIG_FILE
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
