"""The training loop: discriminator step, generator step, average, log, sample, checkpoint (paper Section 4.1).

Runs through `accelerate` on any number of processes. Networks are not wrapped: gradients are averaged over the processes in one
flat tensor after each backward pass, which needs no care for R1's double backward, for networks called several times in a step,
or for blocks that a resolution does not use.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float, UInt8
from torch import Tensor

from cips3d import pretrained
from cips3d.camera import PoseDistribution, mirrored_label
from cips3d.data import ImageDataset, open_dataset
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.interrupts import first_interrupt_noted
from cips3d.metrics.fidelity import Fidelity
from cips3d.metrics.geometry import last_sample_share
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput, Sampling
from cips3d.pretrained import MODEL_FILE
from cips3d.training import checkpoint, gradients, losses
from cips3d.training.augment import AugmentDraws
from cips3d.training.batches import pieces, real_batches
from cips3d.training.cameras import WITHOUT_LABELS, CameraSource, DatasetCameras
from cips3d.training.draws import FakeDraws, fake_draws, mirrored, picture_seed
from cips3d.training.health import Watch
from cips3d.training.launch import joined
from cips3d.training.logs import RunLog, check_run_dir, write_config
from cips3d.training.recipe import Stage, TrainConfig, check_batches
from cips3d.training.steps import (
    Judging,
    Networks,
    StepResult,
    average_gradients,
    discriminator_step,
    freeze_blocks,
    generator_step,
)

#: Steps in a row with NaN or infinite gradients after which the run goes back to its newest checkpoint.
SKIPS_TO_ROLL_BACK = 3
#: Halved learning rates below this share of the configuration's end the run.
LEAST_RATE_SCALE = 2.0**-8
#: An adapted augmentation probability moves every so many steps, and to this at most, above which augmentations show in the
#: generated pictures (StyleGAN2-ADA, Karras et al. 2020, Sections 2.2 and 3.2).
AUGMENT_STEPS, MOST_AUGMENT = 4, 0.8

#: Figures of the averaged generator for the log, measured by all processes together against the dataset of the stage.
Measure = Callable[[Generator, SyntheticHeads | ImageDataset], dict[str, float]]

logger = logging.getLogger(__name__)


class _Diverged(Exception):
    """Too many steps in a row could not be taken."""


class Trainer:
    """One training run in one directory: starts it, or resumes it from its newest checkpoint.

    Args:
        config: the run. A directory that already holds a run must hold the same configuration.
        run_dir: where config.json, log.jsonl, samples/, checkpoints/, TensorBoard events and the model go.
        accelerator: devices and processes; made from the environment by default.
        measures: called every `metrics_kimg` and at the end, besides the configuration's metrics; what they return is logged.

    Raises:
        UserError: if a metric cannot be measured, the data cannot be read or lacks the labels that the configuration needs or
            has those of other cameras, the directory cannot be written or holds another run, a checkpoint is damaged, or the
            device does not have the precision.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: str | Path,
        accelerator: Accelerator | None = None,
        measures: Sequence[Measure] = (),
    ) -> None:
        self.config, self.measures = config, [*measures]
        self.run_dir = Path(run_dir)
        self.accelerator = accelerator or joined(config.precision)
        torch.backends.cudnn.benchmark = True  # all pictures of a stage have one size
        check_batches(config.stages, self.accelerator.num_processes, "stages")
        # at the largest size, so that a picture too small for a later stage is refused before the run starts
        self.dataset = open_dataset(config.data, max(stage.resolution for stage in config.stages))
        if (config.judges_cameras or config.cameras == "labels") and not self.dataset.has_cameras:
            raise UserError(
                f"{config.data}: has no camera labels in a dataset.json, which this configuration needs; add them, or do "
                f"without (--set {WITHOUT_LABELS})"
            )
        if config.metrics:
            weights = None if config.inception_weights is None else Path(config.inception_weights)
            self.measures.append(Fidelity(config.metrics, weights))
        if self.accelerator.is_main_process:
            check_run_dir(self.run_dir, config)
        self.accelerator.wait_for_everyone()
        saved = self._newest_checkpoint()
        self.networks = Networks(config, self.accelerator.device, fresh=saved is None)
        self._cameras: CameraSource = self.networks.poses or config.generator.poses
        if config.judges_cameras or config.cameras == "labels":
            labelled = DatasetCameras(
                self.dataset, config.mirror, config.generator.poses
            )  # refuses labels unlike the model's
            self._cameras = labelled if config.cameras == "labels" else self._cameras
        self.counters = checkpoint.Counters()
        if saved is not None:
            self.counters = checkpoint.load_state(
                saved, self.networks.modules, self.networks.optimizers
            )
        if (
            self.accelerator.is_main_process
        ):  # not before, so that what was refused can be set right in the same folder
            write_config(self.run_dir, config)

    # ---------------------------------------------------------------- the run
    def run(self, progress: Callable[[float, dict[str, float]], None] | None = None) -> Path:
        """Trains to the end of the last stage and returns the path of the model.

        An interrupt (Ctrl-C) lets the current step end and saves a checkpoint before it goes on to the caller; a second one
        goes on at once.

        Args:
            progress: called after every step with the share of the run that is done, in [0, 1], and figures to show.

        Raises:
            UserError: if another process trains in the directory, a file cannot be written, a picture cannot be read, or an
                alarm ends the run.
        """
        log = None
        try:
            if self.accelerator.is_main_process:
                log = RunLog(self.run_dir, self.config, self.counters.step, self.counters.images)
            with first_interrupt_noted() as interrupts:
                while self.counters.stage < len(self.config.stages):
                    try:
                        self._run_stage(
                            self.config.stages[self.counters.stage], log, progress, interrupts
                        )
                    except _Diverged:
                        self._roll_back()
                        if log is not None:  # without the lines of what is done again
                            log.go_back(self.counters.step, self.counters.images)
                        continue
                    at = self.counters
                    self.counters = replace(
                        at, stage=at.stage + 1, stage_images=0, stage_seconds=0.0
                    )
                    self.save()
            path = self.run_dir / MODEL_FILE
            if self._agreed(not path.exists()):  # of a run that had ended
                self.save_model()
            at = self.counters
            if self.measures and at.measured != at.images:
                figures = self._measured()
                if log is not None:
                    log.write(at.step, at.images, figures)
                self.save()
        except OSError as error:
            raise UserError(
                f"cannot write in {self.run_dir}: {error.strerror or error}; make room and resume"
            ) from error
        finally:
            if log is not None:
                log.close()
        return path

    def _run_stage(
        self,
        stage: Stage,
        log: RunLog | None,
        progress: Callable[[float, dict[str, float]], None] | None,
        interrupts: list[int],
    ) -> None:
        c, at, n = self.config, self.counters, self.networks
        positions = self._positions(stage.batch)
        self.dataset = open_dataset(c.data, stage.resolution)
        watch = Watch.of(self.dataset) if log is not None else None
        batches = real_batches(
            self.dataset,
            c,
            at.images,
            stage.batch,
            positions,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        if stage.from_average and at.stage_images == 0:
            n.generator.load_state_dict(n.ema.state_dict())
        for name, part in n.generator.named_children():
            part.requires_grad_(name not in stage.frozen)
        for discriminator in n.discriminators.children():
            freeze_blocks(discriminator, stage.resolution, c.frozen_discriminator_blocks)
        for optimizer, rate in (
            (n.generator_optimizer, stage.generator_lr),
            (n.discriminator_optimizer, stage.discriminator_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * at.rate_scale
        began, began_images = time.perf_counter() - at.stage_seconds, at.stage_images
        first, waited = time.perf_counter(), 0.0
        while self._stage_progress(stage) < 1:
            asked = time.perf_counter()
            pictures, labels = next(batches)
            waited += time.perf_counter() - asked
            figures = self._step(
                stage, positions, pictures, labels, log is not None and at.step % c.log_steps == 0
            )
            at.step, at.images, at.stage_images = (
                at.step + 1,
                at.images + stage.batch,
                at.stage_images + stage.batch,
            )
            speed = (at.stage_images - began_images) / (time.perf_counter() - first)
            if self._passed(c.sample_kimg, stage.batch):
                figures |= self._look(stage, log, watch)
            if self._passed(c.metrics_kimg, stage.batch):
                figures |= self._measured()
            if figures:
                waiting = waited / (time.perf_counter() - first)
                figures |= {
                    "images_per_second": speed, "data_share": waiting, "resolution": stage.resolution,
                    "skipped_steps": at.skipped,
                }  # fmt: skip
            alarms = (
                watch.alarms(figures)
                if watch is not None and at.images >= c.alarm_kimg * 1000
                else ()
            )
            for alarm in alarms:
                logger.warning("%d pictures: %s", at.images, alarm)
            if log is not None and figures:
                log.write(at.step, at.images, figures)
            main = self.accelerator.is_main_process
            seconds = time.perf_counter() - began if main else 0.0
            at.stage_seconds, stop, alarmed = self._totals(
                seconds, float(bool(interrupts)), float(bool(alarms))
            )
            if (
                self._passed(c.checkpoint_kimg, stage.batch) and not at.skipped_in_a_row
            ):  # none that begins with a fault
                self.save()
            if alarmed and c.stop_on_alarm:
                self.save()
                raise UserError(
                    f"{self.run_dir}: stopped by an alarm{': ' + alarms[0] if alarms else ''}; its checkpoint is kept"
                )
            try:
                if progress is not None:
                    progress(
                        self.progress(),
                        {
                            "resolution": stage.resolution,
                            "images": at.images,
                            "images_per_second": speed,
                        },
                    )
                if stop:
                    raise KeyboardInterrupt
            except (
                KeyboardInterrupt
            ):  # only here, between steps, is the state one that can be resumed to the bit
                self.save()
                raise

    def _measured(self) -> dict[str, float]:
        """What the measures say of the averaged generator."""
        self.counters.measured = self.counters.images
        ema, figures = self._averaged, dict[str, float]()
        self._update_style_means(
            ema
        )  # the average takes the trained generator's, which are not kept up
        for measure in self.measures:
            figures |= measure(ema, self.dataset)
        return figures

    @property
    def _averaged(self) -> Generator:
        """The averaged generator, with the last stage's resolution and the camera prior that is learned or that labels have."""
        ema, at = self.networks.ema, self.counters
        last = max(0, at.stage - (at.stage_images == 0))
        ema.config = replace(ema.config, resolution=self.config.stages[last].resolution)
        if not isinstance(self._cameras, PoseDistribution):
            ema.config = replace(ema.config, poses=self._cameras.distribution())
        return ema

    def _update_style_means(self, ema: Generator) -> None:
        """For truncation; the mean shape of a transferred model stays the one of the model that it came from."""
        stays = self.config.start is not None and all(
            "shape_mapping" in stage.frozen for stage in self.config.stages
        )
        ema.update_style_means(of_shapes=not stays)

    def _look(self, stage: Stage, log: RunLog | None, watch: Watch | None) -> dict[str, float]:
        """A sample grid, and figures of the averaged generator."""
        ema = self._averaged
        self._update_style_means(ema)
        figures: dict[str, float] = {}
        if log is not None and watch is not None:
            log.samples(ema, self.counters.images, stage.resolution)
            figures |= watch.figures(ema, self._sampling)
        return figures

    def _step(
        self,
        stage: Stage,
        positions: range,
        real: UInt8[Tensor, "b 3 r r"],
        cameras: Float[Tensor, "b 25"] | None,
        logged: bool,
    ) -> dict[str, float]:
        """One iteration; returns figures for the log when they are asked for.

        Args:
            positions: of the global batch, this process's.
            real: the dataset's pictures there.
            cameras: their labels, for discriminators that see them.
        """
        c, n, at = self.config, self.networks, self.counters
        device = self.accelerator.device
        pictures = real.to(device, non_blocking=True).float().div_(127.5).sub_(1)
        if c.mirror:
            flips = mirrored((c.seed, at.step), positions)
            pictures = torch.where(
                flips.to(device)[:, None, None, None], pictures.flip(3), pictures
            )
            cameras = (
                None
                if cameras is None
                else torch.where(flips[:, None], mirrored_label(cameras), cameras)
            )
        penalty = 0.5 * c.r1_every if at.step % c.r1_every == 0 else 0.0
        parts = pieces(stage, positions, pictures, cameras)
        warming_up = at.stage_images < stage.warm_up_kimg * 1000

        n.discriminator_optimizer.zero_grad(set_to_none=True)
        n.generator_optimizer.zero_grad(set_to_none=True)
        d_results, g_results = [], []
        for part, batch, labels in parts:
            with self.accelerator.autocast():
                draws = self._draws(stage, part, "D")
                with torch.set_grad_enabled(c.share_fakes and not warming_up):
                    fake = self._generate(stage, draws)
                judging = self._judging(stage, part, labels, draws)
                weights = penalty * c.r1_gamma, penalty * c.r2_gamma
                d_results.append(
                    discriminator_step(n, batch, fake, judging, *weights, share=1 / len(parts))
                )
        finite = self._update(n.discriminator_optimizer)
        for part, batch, labels in () if warming_up else parts:
            with self.accelerator.autocast():
                if not c.share_fakes:
                    draws = self._draws(stage, part, "G")
                    fake = self._generate(stage, draws)
                judging = self._judging(stage, part, labels, draws)
                g_results.append(
                    generator_step(
                        n, fake, judging, self._regulariser(fake), batch, share=1 / len(parts)
                    )
                )
        if not warming_up:
            finite &= self._update(n.generator_optimizer)
        self._count_skipped(finite)
        if not warming_up:
            n.averaged.update_parameters(n.generator)
        d = StepResult.mean(d_results)
        self._adapt_augmentation(d, stage.batch)
        return (
            self._figures(d, None if warming_up else StepResult.mean(g_results), fake)
            if logged
            else {}
        )

    # ---------------------------------------------------------------- parts of a step
    def _regulariser(self, fake: RenderOutput) -> Tensor | None:
        c = self.config
        if c.transmittance_weight == 0:
            return None
        return c.transmittance_weight * losses.transmittance_loss(
            fake.opacity, c.transmittance_target
        )

    def _generate(self, stage: Stage, draws: FakeDraws) -> RenderOutput:
        key, memory = (
            (self.config.seed, self.counters.step),
            gradients.process_memory(self.accelerator),
        )
        return gradients.for_stage(
            stage, self.networks.generator, draws, self._sampling, key, memory
        )

    def _judging(
        self, stage: Stage, positions: range, real_cameras: Tensor | None, draws: FakeDraws
    ) -> Judging:
        c, at = self.config, self.counters
        device = self.accelerator.device
        alpha = min(1.0, at.stage_images / (stage.fade_kimg * 1000)) if stage.fade_kimg else 1.0
        augment, probability = None, at.augment if c.augment_target is not None else stage.augment
        if probability > 0:
            augment = AugmentDraws.sample(
                [picture_seed(c.seed, at.step, "augment", i) for i in positions], probability
            )
        judging = Judging(
            alpha, stage.auxiliary, augment, c.loss == "relativistic", pose_weight=c.pose_weight
        )
        if c.pose_weight:
            judging = replace(
                judging,
                fake_poses=torch.stack(draws.camera.yaw_pitch(), dim=-1).detach().to(device),
            )
        if real_cameras is None:
            return judging
        # a camera that the discriminator could pull at would be told to fit the label, not the picture
        fake_cameras = draws.camera.to_label().detach()
        return replace(
            judging, real_cameras=real_cameras.to(device), fake_cameras=fake_cameras.to(device)
        )

    def _adapt_augmentation(self, d: StepResult, batch: int) -> None:
        """Raises the augmentation probability when real logits are too often positive, else lowers it."""
        c, at = self.config, self.counters
        if c.augment_target is None:
            return
        assert d.real_sign is not None
        (signs,) = self._totals(float(d.real_sign))
        at.real_signs += signs / self.accelerator.num_processes
        if (at.step + 1) % AUGMENT_STEPS == 0:
            step = AUGMENT_STEPS * batch / (c.augment_kimg * 1000)
            too_sure = at.real_signs / AUGMENT_STEPS > c.augment_target
            at.augment = min(MOST_AUGMENT, max(0.0, at.augment + (step if too_sure else -step)))
            at.real_signs = 0.0

    def _draws(self, stage: Stage, positions: range, purpose: str) -> FakeDraws:
        c, at = self.config, self.counters
        noise_std = (
            c.density_noise * max(0.0, 1 - at.images / (c.density_noise_kimg * 1000))
            if c.density_noise_kimg
            else 0.0
        )
        key = (c.seed, at.step, purpose)
        device = self.accelerator.device
        return fake_draws(
            c.generator,
            self._sampling,
            stage.resolution,
            noise_std,
            key,
            positions,
            device,
            self._cameras,
        )

    @property
    def _sampling(self) -> Sampling:
        return self.config.sampling or self.networks.generator.sampling

    def _update(self, optimizer: torch.optim.Optimizer) -> bool:
        """One optimiser step, unless a gradient is NaN or infinite; returns whether it was taken, the same on all processes."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters, self.accelerator)
        changing = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in changing if p.grad is not None])
        if not bool(torch.isfinite(norm)):
            return False
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(changing, self.config.grad_clip, norm)
        optimizer.step()
        return True

    def _count_skipped(self, finite: bool) -> None:
        """Counts steps whose gradients were not finite.

        Raises:
            _Diverged: after `SKIPS_TO_ROLL_BACK` of them in a row.
        """
        at = self.counters
        at.skipped, at.skipped_in_a_row = (
            at.skipped + (not finite),
            0 if finite else at.skipped_in_a_row + 1,
        )
        if at.skipped_in_a_row >= SKIPS_TO_ROLL_BACK:
            raise _Diverged

    def _roll_back(self) -> None:
        """Puts the newest checkpoint back, with half the learning rates.

        Raises:
            UserError: if there is none, or that was done often in vain.
        """
        saved = self._newest_checkpoint()
        if saved is None:
            raise UserError(
                f"{self.run_dir}: no finite gradients in {SKIPS_TO_ROLL_BACK} steps in a row before the first checkpoint; "
                "give lower learning rates (generator_lr, discriminator_lr) and start anew"
            )
        scale, skipped, at_images = (
            self.counters.rate_scale / 2,
            self.counters.skipped,
            self.counters.images,
        )
        if scale < LEAST_RATE_SCALE:
            raise UserError(
                f"{self.run_dir}: no finite gradients at {at_images} pictures, even with learning rates times {2 * scale:g}; "
                "look for damaged pictures (cips3d data check), or start anew with other settings"
            )
        self.counters = checkpoint.load_state(
            saved, self.networks.modules, self.networks.optimizers
        )
        self.counters = replace(
            self.counters, rate_scale=scale, skipped=skipped, skipped_in_a_row=0
        )
        if self.accelerator.is_main_process:
            logger.warning(
                "%d pictures: no finite gradients in %d steps in a row; back to the checkpoint at %d, learning rates times %g",
                at_images, SKIPS_TO_ROLL_BACK, self.counters.images, scale,
            )  # fmt: skip

    def _positions(self, batch: int) -> range:
        """The pictures of a global batch that this process handles."""
        local = batch // self.accelerator.num_processes
        return range(
            self.accelerator.process_index * local, (self.accelerator.process_index + 1) * local
        )

    def _figures(self, d: StepResult, g: StepResult | None, fake: RenderOutput) -> dict[str, float]:
        """Numbers for the log: losses, how the density lies along the rays, and what the run adapts."""
        c = self.config
        named = {f"d_{key}": value for key, value in vars(d).items()} | {
            "g_loss": None if g is None else g.loss
        }
        if d.squared_gradient is not None:
            named["r1_penalty"] = 0.5 * c.r1_gamma * d.squared_gradient
        named |= {
            "opacity": fake.opacity.mean(),
            "depth_std": fake.depth.flatten(1).std(dim=1).mean(),
        }
        figures = {key: float(value.detach()) for key, value in named.items() if value is not None}
        figures["last_sample_share"] = last_sample_share(fake)
        if self.networks.poses is not None:
            poses = self.networks.poses.distribution()
            figures |= {
                name: getattr(poses, name)
                for name in ("yaw_mean", "yaw_std", "pitch_mean", "pitch_std")
            }
        if c.augment_target is not None:
            figures["augment"] = self.counters.augment
        return figures

    # ---------------------------------------------------------------- progress
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1], by the planned length of the stages."""
        stages, at = self.config.stages, self.counters
        if at.stage >= len(stages):
            return 1.0
        timed = all(stage.minutes is not None for stage in stages)
        lengths = [stage.minutes if timed else stage.kimg for stage in stages]
        done = sum(length or 0.0 for length in lengths[: at.stage])
        current = (lengths[at.stage] or 0.0) * min(1.0, self._stage_progress(stages[at.stage]))
        return (done + current) / sum(length or 0.0 for length in lengths)

    def _stage_progress(self, stage: Stage) -> float:
        at = self.counters
        by_images = at.stage_images / (stage.kimg * 1000)
        by_time = at.stage_seconds / (stage.minutes * 60) if stage.minutes is not None else 0.0
        return max(by_images, by_time)

    def _passed(self, kimg: float, batch: int) -> bool:
        """Whether the last step crossed a multiple of `kimg` thousand pictures."""
        every, images = max(1, round(kimg * 1000)), self.counters.images
        return images // every > (images - batch) // every

    def _totals(self, *values: float) -> list[float]:
        """The sum of each value over the processes, so that all of them end a stage, stop or adapt at the same step."""
        if self.accelerator.num_processes == 1:
            return list(values)
        total = self.accelerator.reduce(
            torch.tensor(values, device=self.accelerator.device), reduction="sum"
        )
        assert isinstance(total, Tensor)
        return total.tolist()

    def _agreed(self, value: Any) -> Any:
        """The main process's value, on all: others may see an older state of a shared disk."""
        holder = [value]
        broadcast_object_list(holder)
        return holder[0]

    # ---------------------------------------------------------------- files
    def _newest_checkpoint(self) -> Path | None:
        folder = self.run_dir / checkpoint.FOLDER
        newest = self._agreed(
            next((path.name for path in reversed(checkpoint.checkpoints(folder))), None)
        )
        return None if newest is None else folder / newest

    def save(self) -> None:
        """Writes the model, then a checkpoint, and deletes those that are no longer needed (main process only)."""
        self.save_model()  # first: whoever is stopped in between resumes and writes it again
        if self.accelerator.is_main_process:
            folder = self.run_dir / checkpoint.FOLDER
            checkpoint.save_state(
                checkpoint.checkpoint_path(folder, self.counters.images),
                self.networks.modules,
                self.networks.optimizers,
                self.counters,
            )
            checkpoint.prune(folder)
            for half_written in self.run_dir.glob(
                ".model*.safetensors"
            ):  # by a process that was killed
                half_written.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def save_model(self) -> None:
        """Writes the averaged generator, with its mean styles, as a one-file model, and the discriminators beside it."""
        if self.accelerator.is_main_process:
            ema, path = self._averaged, self.run_dir / MODEL_FILE
            self._update_style_means(ema)
            pretrained.save(ema, path)
            pretrained.save_discriminators(self.networks.discriminators, path)
        self.accelerator.wait_for_everyone()
