"""The training loop: discriminator step, generator step, average, log, sample, checkpoint (paper Section 4.1).

Runs through `accelerate` on any number of processes. Networks are not wrapped: gradients are averaged over the processes in one
flat tensor after each backward pass, which needs no care for R1's double backward, for networks called several times in a step,
or for blocks that a resolution does not use.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cips3d import pretrained
from cips3d.configuration import read_json
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.models.records import RenderOutput, Sampling
from cips3d.training import checkpoint, gradients, losses
from cips3d.training.augment import AugmentDraws
from cips3d.training.config import Stage, TrainConfig
from cips3d.training.draws import FakeDraws, RealOrder, fake_draws, mirrored, picture_seed
from cips3d.training.logs import RunLog, write_config
from cips3d.training.steps import Networks, StepResult, average_gradients, discriminator_step, generator_step

#: File of the averaged generator in a run directory.
MODEL_FILE = "model.safetensors"
#: Steps in a row with NaN or infinite gradients after which the run goes back to its newest checkpoint.
SKIPS_TO_ROLL_BACK = 3

logger = logging.getLogger(__name__)


class _Diverged(Exception):
    """Too many steps in a row could not be taken."""


class Trainer:
    """One training run in one directory: starts it, or resumes it from its newest checkpoint.

    Args:
        config: the run. A directory that already holds a run must hold the same configuration.
        run_dir: where config.json, log.jsonl, samples/, checkpoints/, TensorBoard events and the model go.
        accelerator: devices and processes; made from the environment by default.

    Raises:
        UserError: if the data cannot be read, the directory cannot be written or holds another run, or a checkpoint is damaged.
    """

    def __init__(self, config: TrainConfig, run_dir: str | Path, accelerator: Accelerator | None = None) -> None:
        self.config = config
        self.run_dir = Path(run_dir)
        self.accelerator = accelerator or Accelerator(mixed_precision=config.precision)
        processes = self.accelerator.num_processes
        for stage in config.stages:
            if stage.batch % processes:
                raise UserError(f"stage at {stage.resolution}: batch {stage.batch} does not divide among {processes} processes")
        # at the largest size, so that a picture too small for a later stage is refused before the run starts
        self.dataset = open_dataset(config.data, max(stage.resolution for stage in config.stages))
        if self.accelerator.is_main_process:
            write_config(self.run_dir, config)
        self.accelerator.wait_for_everyone()
        self.networks = Networks(config, self.accelerator.device)
        self.counters = checkpoint.Counters()
        saved = checkpoint.checkpoints(self.run_dir / "checkpoints")
        if saved:
            self.counters = checkpoint.load_state(saved[-1], self.networks.modules, self.networks.optimizers)

    # ---------------------------------------------------------------- the run
    def run(self, progress: Callable[[float, dict[str, float]], None] | None = None) -> Path:
        """Trains to the end of the last stage and returns the path of the model.

        An interrupt (Ctrl-C) lets the current step end and saves a checkpoint before it goes on to the caller; a second one
        goes on at once.

        Args:
            progress: called after every step with the share of the run that is done, in [0, 1], and figures to show.

        Raises:
            UserError: if a file cannot be written or a picture cannot be read.
        """
        log = None
        try:
            if self.accelerator.is_main_process:
                log = RunLog(self.run_dir, self.counters.step, self.counters.images)
            with _first_interrupt_noted() as interrupts:
                while self.counters.stage < len(self.config.stages):
                    try:
                        self._run_stage(self.config.stages[self.counters.stage], log, progress, interrupts)
                    except _Diverged:
                        self._roll_back()
                        continue
                    at = self.counters
                    self.counters = replace(at, stage=at.stage + 1, stage_images=0, stage_seconds=0.0)
                    self.save()
        except OSError as error:
            raise UserError(f"cannot write in {self.run_dir}: {error.strerror or error}; make room and resume") from error
        finally:
            if log is not None:
                log.close()
        return self.save_model()

    def _run_stage(
        self,
        stage: Stage,
        log: RunLog | None,
        progress: Callable[[float, dict[str, float]], None] | None,
        interrupts: list[int],
    ) -> None:
        c, at = self.config, self.counters
        positions = self._positions(stage.batch)
        self.dataset = open_dataset(c.data, stage.resolution)
        real_batches = self._real_batches(stage, positions)
        n = self.networks
        if stage.from_average and at.stage_images == 0:
            n.generator.load_state_dict(n.ema.state_dict())
        for name, part in n.generator.named_children():
            part.requires_grad_(name not in stage.frozen)
        for optimizer, rate in (
            (n.generator_optimizer, stage.generator_lr),
            (n.discriminator_optimizer, stage.discriminator_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * at.rate_scale
        began, began_images = time.perf_counter() - at.stage_seconds, at.stage_images
        first = time.perf_counter()
        while self._stage_progress(stage) < 1:
            figures = self._step(stage, positions, next(real_batches), log is not None and at.step % c.log_steps == 0)
            at.step, at.images, at.stage_images = at.step + 1, at.images + stage.batch, at.stage_images + stage.batch
            at.stage_seconds, interrupted = self._agreed(time.perf_counter() - began, bool(interrupts))
            speed = (at.stage_images - began_images) / (time.perf_counter() - first)
            if log is not None and figures:
                figures |= {"images_per_second": speed, "resolution": stage.resolution, "skipped_steps": at.skipped}
                log.write(at.step, at.images, figures)
            if self._passed(c.sample_kimg, stage.batch) and log is not None:
                self.networks.ema.update_style_means()
                log.samples(self.networks.ema, at.images, stage.resolution)
            if self._passed(c.checkpoint_kimg, stage.batch):
                self.save()
            try:
                if progress is not None:
                    progress(self.progress(), {"resolution": stage.resolution, "images": at.images, "images_per_second": speed})
                if interrupted:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:  # only here, between steps, is the state one that can be resumed to the bit
                self.save()
                raise

    def _step(self, stage: Stage, positions: range, real: UInt8[Tensor, "b 3 r r"], logged: bool) -> dict[str, float]:
        """One iteration; returns figures for the log when they are asked for."""
        c, n, at = self.config, self.networks, self.counters
        alpha = min(1.0, at.stage_images / (stage.fade_kimg * 1000)) if stage.fade_kimg else 1.0
        device = self.accelerator.device
        pictures = real.to(device).float().div_(127.5).sub_(1)
        if c.mirror:
            flips = mirrored((c.seed, at.step), positions).to(device)
            pictures = torch.where(flips[:, None, None, None], pictures.flip(3), pictures)
        r1_weight = 0.5 * c.r1_gamma * c.r1_every if at.step % c.r1_every == 0 else 0.0
        augment = self._augment_draws(stage, positions)

        n.discriminator_optimizer.zero_grad(set_to_none=True)
        n.generator_optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            with torch.set_grad_enabled(c.share_fakes):
                fake = self._generate(stage, self._draws(stage, positions, "D"))
            d = discriminator_step(n, pictures, fake, alpha, stage.auxiliary, r1_weight, augment)
        finite = self._update(n.discriminators, n.discriminator_optimizer)
        with self.accelerator.autocast():
            if not c.share_fakes:
                fake = self._generate(stage, self._draws(stage, positions, "G"))
            g = generator_step(n, fake, alpha, stage.auxiliary, self._regulariser(fake), augment)
        finite &= self._update(n.generator, n.generator_optimizer)
        self._count_skipped(finite)
        n.averaged.update_parameters(n.generator)
        return _figures(d, g, fake) if logged else {}

    # ---------------------------------------------------------------- parts of a step
    def _regulariser(self, fake: RenderOutput) -> Tensor | None:
        c = self.config
        if c.transmittance_weight == 0:
            return None
        return c.transmittance_weight * losses.transmittance_loss(fake.opacity, c.transmittance_target)

    def _generate(self, stage: Stage, draws: FakeDraws) -> RenderOutput:
        generator = self.networks.generator
        arguments = (generator, draws.latents, draws.camera, stage.resolution, draws.rays, self._sampling)
        if stage.gradients == "full":
            return gradients.full(*arguments)
        chunk = stage.chunk or gradients.automatic_chunk(generator.config, len(draws.latents), self._sampling, self.accelerator)
        if stage.gradients == "checkpointed" or not torch.is_grad_enabled():
            return gradients.checkpointed(*arguments, chunk)
        assert stage.gradient_rays is not None  # Stage sees to it
        drawn = torch.Generator().manual_seed(picture_seed(self.config.seed, self.counters.step, "rays"))
        index = torch.randperm(stage.resolution**2, generator=drawn)[: stage.gradient_rays].to(self.accelerator.device)
        return gradients.partial(*arguments, index, chunk)

    def _augment_draws(self, stage: Stage, positions: range) -> AugmentDraws | None:
        if stage.augment == 0:
            return None
        seeds = [picture_seed(self.config.seed, self.counters.step, "augment", position) for position in positions]
        return AugmentDraws.sample(seeds, stage.augment)

    def _draws(self, stage: Stage, positions: range, purpose: str) -> FakeDraws:
        c, at = self.config, self.counters
        noise_std = c.density_noise * max(0.0, 1 - at.images / (c.density_noise_kimg * 1000)) if c.density_noise_kimg else 0.0
        key = (c.seed, at.step, purpose)
        return fake_draws(c.generator, self._sampling, stage.resolution, noise_std, key, positions, self.accelerator.device)

    @property
    def _sampling(self) -> Sampling:
        return self.config.sampling or self.networks.generator.sampling

    def _update(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """One optimiser step, unless a gradient is NaN or infinite; returns whether it was taken, the same on all processes."""
        average_gradients(module.parameters(), self.accelerator)
        changing = [p for p in module.parameters() if p.grad is not None]
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
        at.skipped, at.skipped_in_a_row = at.skipped + (not finite), 0 if finite else at.skipped_in_a_row + 1
        if at.skipped_in_a_row >= SKIPS_TO_ROLL_BACK:
            raise _Diverged

    def _roll_back(self) -> None:
        """Puts the newest checkpoint back, with half the learning rates.

        Raises:
            UserError: if there is none.
        """
        saved = checkpoint.checkpoints(self.run_dir / "checkpoints")
        if not saved:
            raise UserError(
                f"{self.run_dir}: no finite gradients in {SKIPS_TO_ROLL_BACK} steps in a row before the first checkpoint; "
                "give lower learning rates (generator_lr, discriminator_lr) and start anew"
            )
        scale, skipped, at_images = self.counters.rate_scale / 2, self.counters.skipped, self.counters.images
        self.counters = checkpoint.load_state(saved[-1], self.networks.modules, self.networks.optimizers)
        self.counters.rate_scale, self.counters.skipped = scale, skipped
        if self.accelerator.is_main_process:
            logger.warning(
                "%d pictures: no finite gradients in %d steps in a row; back to the checkpoint at %d, learning rates times %g",
                at_images, SKIPS_TO_ROLL_BACK, self.counters.images, scale,
            )  # fmt: skip

    def _positions(self, batch: int) -> range:
        """The pictures of a global batch that this process handles."""
        local = batch // self.accelerator.num_processes
        return range(self.accelerator.process_index * local, (self.accelerator.process_index + 1) * local)

    def _real_batches(self, stage: Stage, positions: range) -> Iterator[Tensor]:
        order = RealOrder(len(self.dataset), self.config.seed, self.counters.images, stage.batch, positions)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=order,
                num_workers=self.config.workers,
                worker_init_fn=_ignore_interrupts,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )

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

    def _agreed(self, seconds: float, interrupted: bool) -> tuple[float, bool]:
        """The main process's clock, and whether any process was interrupted: all end a stage, or stop, at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds, interrupted
        mine = torch.tensor(
            [seconds if self.accelerator.is_main_process else 0.0, float(interrupted)], device=self.accelerator.device
        )
        total = self.accelerator.reduce(mine, reduction="sum")
        assert isinstance(total, Tensor)
        return float(total[0]), bool(total[1] > 0)

    # ---------------------------------------------------------------- files
    def save(self) -> None:
        """Writes a checkpoint and deletes those that are no longer needed (main process only)."""
        if self.accelerator.is_main_process:
            folder = self.run_dir / "checkpoints"
            path = checkpoint.checkpoint_path(folder, self.counters.images)
            checkpoint.save_state(path, self.networks.modules, self.networks.optimizers, self.counters)
            checkpoint.prune(folder)
        self.accelerator.wait_for_everyone()

    def save_model(self) -> Path:
        """Writes the averaged generator, with its mean styles, as a one-file model, and returns its path."""
        path = self.run_dir / MODEL_FILE
        if self.accelerator.is_main_process:
            self.networks.ema.update_style_means()
            pretrained.save(self.networks.ema, path)
        self.accelerator.wait_for_everyone()
        return path


def resume_config(run_dir: Path) -> TrainConfig:
    """The configuration that a run directory holds.

    Raises:
        UserError: if it holds none that can be read.
    """
    return read_json(TrainConfig, run_dir / "config.json")


@contextlib.contextmanager
def _first_interrupt_noted() -> Iterator[list[int]]:
    """A list that the first Ctrl-C in the block goes to, raised at the block's end; the second is raised where it comes.

    Does nothing outside the main thread, or where interrupts are ignored or handled in another way.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield received
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt


def _ignore_interrupts(_: int) -> None:
    """Keeps a data loading process, which a Ctrl-C reaches too, at work until the step has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _figures(d: StepResult, g: StepResult, fake: RenderOutput) -> dict[str, float]:
    """Numbers for the log: losses, and how the density lies along the rays."""
    named = {f"d_{key}": value for key, value in vars(d).items()} | {"g_loss": g.loss}
    named |= {
        "opacity": fake.opacity.mean(),
        "last_sample_share": fake.last_weight.mean(),
        "depth_std": fake.depth.flatten(1).std(dim=1).mean(),
    }
    return {key: float(value.detach()) for key, value in named.items() if value is not None}
