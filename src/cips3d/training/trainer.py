"""The training loop: discriminator step, generator step, average, log, sample, checkpoint (paper Section 4.1).

Runs through `accelerate` on any number of processes. Networks are not wrapped: gradients are averaged over the processes in one
flat tensor after each backward pass, which needs no care for R1's double backward, for networks called several times in a step,
or for blocks that a resolution does not use.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from cips3d import pretrained
from cips3d.configuration import read_json
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.records import RenderOutput, Sampling
from cips3d.training import checkpoint, losses
from cips3d.training.config import Stage, TrainConfig
from cips3d.training.draws import FakeDraws, RealOrder, fake_draws, mirrored
from cips3d.training.logs import RunLog, write_config

TensorList = tuple[Tensor, ...] | list[Tensor]
#: File of the averaged generator in a run directory.
MODEL_FILE = "model.safetensors"


class Networks:
    """The networks of a run and their optimisers; the same initial weights on every process.

    Args:
        config: architectures, Adam's β₂ and the seed.
        device: where they live.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = Generator(config.generator).to(device)
            self.discriminators = nn.ModuleDict(
                {
                    "main": ProgressiveDiscriminator(config.discriminator),
                    "aux": ProgressiveDiscriminator(config.aux_discriminator),
                }
            ).to(device)
        #: Whether a logit depends on its picture alone.
        self.judges_each_alone = config.discriminator.stddev_group == config.aux_discriminator.stddev_group == 0
        self.averaged = AveragedModel(self.generator, multi_avg_fn=ramped_average(config.ema_decay)).requires_grad_(False)
        adam = {"betas": (0.0, config.adam_beta2), "fused": True}
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), **adam)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminators.parameters(), **adam)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by name."""
        return {"generator": self.generator, "averaged": self.averaged, "discriminators": self.discriminators}

    @property
    def ema(self) -> Generator:
        """The averaged generator."""
        module = self.averaged.module
        assert isinstance(module, Generator)
        return module

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers that a checkpoint holds, by name."""
        return {"generator_optimizer": self.generator_optimizer, "discriminator_optimizer": self.discriminator_optimizer}

    def logits(self, images: list[Tensor], alpha: float) -> Float[Tensor, "logits 1"]:
        """Logits of the main discriminator and, where there is a second batch of pictures, of the auxiliary one on it."""
        names = ("main", "aux")[: len(images)]
        return torch.cat([self.discriminators[name](x, alpha) for name, x in zip(names, images, strict=True)])


def ramped_average(decay: float) -> Callable[[TensorList, TensorList, Tensor | int], None]:
    """Exponential moving average for `AveragedModel`: θ̄ ← θ̄ + (1 − d)(θ − θ̄), d = min(decay, (1 + n)/(10 + n)) after n updates.

    The ramp lets the average forget the first, formless generators.
    """

    @torch.no_grad()
    def update(averaged: TensorList, current: TensorList, updates: Tensor | int) -> None:
        n = int(updates)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, weight)

    return update


@dataclass
class StepResult:
    """What a step tells the log: means over the local batch, as tensors so that nothing waits for the device."""

    loss: Tensor
    real_logit: Tensor | None = None
    fake_logit: Tensor | None = None
    squared_gradient: Tensor | None = None


def discriminator_step(
    networks: Networks,
    real: Float[Tensor, "batch 3 res res"],
    fake: RenderOutput,
    alpha: float,
    auxiliary: bool,
    r1_weight: float,
) -> StepResult:
    """Loss of both discriminators, its gradients accumulated in their parameters.

    Args:
        real, fake: pictures in [-1, 1]; the fakes are treated as constants.
        alpha: fade-in of the resolution.
        auxiliary: whether the auxiliary discriminator takes part.
        r1_weight: what |∂D/∂x|² is multiplied by: ½γ, times the interval of lazy R1, or 0 for none this time.
    """
    fakes = [image.detach() for image in _judged(fake, auxiliary)]
    reals = [real.clone().requires_grad_(r1_weight > 0) for _ in fakes]
    if r1_weight > 0 or not networks.judges_each_alone:
        fake_logits, real_logits = networks.logits(fakes, alpha), networks.logits(reals, alpha)
    else:  # one call of each discriminator instead of two
        both = networks.logits([torch.cat(pair) for pair in zip(fakes, reals, strict=True)], alpha)
        fake_logits, real_logits = both.view(len(fakes), 2, len(real), 1).transpose(0, 1).flatten(1, 2)
    loss = losses.discriminator_loss(real_logits, fake_logits)
    penalty = None
    if r1_weight > 0:
        parts = real_logits.split(len(real))
        penalty = torch.cat([losses.squared_gradient(part, image) for part, image in zip(parts, reals, strict=True)]).mean()
        loss = loss + r1_weight * penalty
    loss.backward()
    return StepResult(loss, real_logits[: len(real)].mean(), fake_logits[: len(real)].mean(), penalty)


def _judged(fake: RenderOutput, auxiliary: bool) -> list[Tensor]:
    """The pictures that discriminators see: the main one's, and the auxiliary one's where it takes part."""
    return [fake.image, fake.aux_image] if auxiliary else [fake.image]


def generator_step(
    networks: Networks, fake: RenderOutput, alpha: float, auxiliary: bool, regulariser: Tensor | None = None
) -> StepResult:
    """Loss of the generator against both discriminators, its gradients accumulated in the generator's parameters.

    Args:
        regulariser: added to the loss.
    """
    networks.discriminators.requires_grad_(False)
    loss = losses.generator_loss(networks.logits(_judged(fake, auxiliary), alpha))
    (loss if regulariser is None else loss + regulariser).backward()
    networks.discriminators.requires_grad_(True)
    return StepResult(loss)


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replaces every gradient by its mean over the processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


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
                    self._run_stage(self.config.stages[self.counters.stage], log, progress, interrupts)
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
        for optimizer, rate in (
            (self.networks.generator_optimizer, stage.generator_lr),
            (self.networks.discriminator_optimizer, stage.discriminator_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate
        began, began_images = time.perf_counter() - at.stage_seconds, at.stage_images
        first = time.perf_counter()
        while self._stage_progress(stage) < 1:
            figures = self._step(stage, positions, next(real_batches), log is not None and at.step % c.log_steps == 0)
            at.step, at.images, at.stage_images = at.step + 1, at.images + stage.batch, at.stage_images + stage.batch
            seconds = time.perf_counter() - began
            at.stage_seconds = seconds if stage.minutes is None else self._same_everywhere(seconds)
            speed = (at.stage_images - began_images) / (time.perf_counter() - first)
            if log is not None and figures:
                figures |= {"images_per_second": speed, "resolution": stage.resolution}
                log.write(at.step, at.images, figures)
            if self._passed(c.sample_kimg, stage.batch) and log is not None:
                self.networks.ema.update_style_means()
                log.samples(self.networks.ema, at.images, stage.resolution)
            if self._passed(c.checkpoint_kimg, stage.batch):
                self.save()
            try:
                if progress is not None:
                    progress(self.progress(), {"resolution": stage.resolution, "images": at.images, "images_per_second": speed})
                if interrupts:
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

        n.discriminator_optimizer.zero_grad(set_to_none=True)
        n.generator_optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            with torch.set_grad_enabled(c.share_fakes):
                fake = self._generate(stage, self._draws(stage, positions, "D"))
            d = discriminator_step(n, pictures, fake, alpha, stage.auxiliary, r1_weight)
        self._update(n.discriminators, n.discriminator_optimizer)
        with self.accelerator.autocast():
            if not c.share_fakes:
                fake = self._generate(stage, self._draws(stage, positions, "G"))
            g = generator_step(n, fake, alpha, stage.auxiliary, self._regulariser(fake))
        self._update(n.generator, n.generator_optimizer)
        n.averaged.update_parameters(n.generator)
        return _figures(d, g, fake) if logged else {}

    # ---------------------------------------------------------------- parts of a step
    def _regulariser(self, fake: RenderOutput) -> Tensor | None:
        c = self.config
        if c.transmittance_weight == 0:
            return None
        return c.transmittance_weight * losses.transmittance_loss(fake.opacity, c.transmittance_target)

    def _generate(self, stage: Stage, draws: FakeDraws) -> RenderOutput:
        return self.networks.generator(draws.latents, draws.camera, stage.resolution, draws.rays, self._sampling)

    def _draws(self, stage: Stage, positions: range, purpose: str) -> FakeDraws:
        c, at = self.config, self.counters
        noise_std = c.density_noise * max(0.0, 1 - at.images / (c.density_noise_kimg * 1000)) if c.density_noise_kimg else 0.0
        key = (c.seed, at.step, purpose)
        return fake_draws(c.generator, self._sampling, stage.resolution, noise_std, key, positions, self.accelerator.device)

    @property
    def _sampling(self) -> Sampling:
        return self.config.sampling or self.networks.generator.sampling

    def _update(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        average_gradients(module.parameters(), self.accelerator)
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), self.config.grad_clip)
        optimizer.step()

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

    def _same_everywhere(self, seconds: float) -> float:
        """The main process's clock on all processes, so that all of them end a timed stage at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        mine = torch.tensor([seconds if self.accelerator.is_main_process else 0.0], device=self.accelerator.device)
        total = self.accelerator.reduce(mine, reduction="sum")
        assert isinstance(total, Tensor)
        return float(total)

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
