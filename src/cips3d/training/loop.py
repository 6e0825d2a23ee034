"""The training loop (paper Section 4.1): step, average, log, sample, measure, checkpoint.

It runs through `accelerate` on any number of processes. Networks are not wrapped: gradients are
averaged over the processes in one flat tensor after each backward pass. So R1's double backward,
networks that are called several times in a step, and blocks that a resolution does not use need no
care.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cips3d.camera import mirrored_label
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.interrupts import first_interrupt_noted
from cips3d.metrics.geometry import last_sample_share
from cips3d.models.ops.precision import fast_products
from cips3d.training.batches import real_batches
from cips3d.training.draws import StepDraws, mirrored, sent
from cips3d.training.health import HealthMonitor
from cips3d.training.logs import RunLog
from cips3d.training.recipe import Stage
from cips3d.training.run import Run
from cips3d.training.step import Batch, StepContext, StepResult, training_step

#: Steps in a row with NaN or infinite gradients after which the run rolls back.
SKIPS_TO_ROLL_BACK = 3
#: Steps between changes of an adapted augmentation probability, and its maximum, above which
#: augmentations show in generated images (StyleGAN2-ADA, Karras et al. 2020, Sections 2.2, 3.2).
AUGMENT_STEPS, MOST_AUGMENT = 4, 0.8

#: Steps taken after which the scale of fp16 losses is doubled.
SCALED_STEPS = 2000

#: Called after every step with the share of the run that is done, in [0, 1], and figures to show.
Progress = Callable[[float, dict[str, float]], None]

logger = logging.getLogger(__name__)


def train(run: Run, progress: Progress | None = None) -> Path:
    """Trains to the end of the last stage and returns the path of the model.

    An interrupt (Ctrl-C) lets the current step end and saves a checkpoint before it is passed on to
    the caller; a second one is passed on at once.

    Raises:
        UserError: if another process trains in the directory, a file cannot be written, an image
            cannot be read, or an alarm ends the run.
    """
    log = None
    try:
        if run.is_main:
            log = RunLog(run.run_dir, run.config, run.counters.step, run.counters.images)
        with first_interrupt_noted() as interrupts:
            while run.counters.stage < len(run.config.stages):
                if train_stage(run, log, progress, interrupts):
                    run.end_stage()
                    run.save()
                else:
                    run.roll_back(SKIPS_TO_ROLL_BACK)
                    if log is not None:  # without the lines of steps that will be repeated
                        log.go_back(run.counters.step, run.counters.images)
        if run.agreed(not run.model_path.exists()):  # of a run that had already ended
            run.save_model()
        if run.measures and run.counters.measured != run.counters.images:
            figures = run.measure()
            if log is not None:
                log.write(run.counters.step, run.counters.images, figures)
            run.save()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write in {run.run_dir}: {reason}; make room and resume") from error
    finally:
        if log is not None:
            log.close()
    return run.model_path


def train_stage(
    run: Run, log: RunLog | None, progress: Progress | None, interrupts: list[int]
) -> bool:
    """Trains to the end of the current stage; returns False if the run has to roll back.

    Args:
        log: on the main process.
        interrupts: not empty once the user has interrupted the run.
    """
    config, counters, networks = run.config, run.counters, run.networks
    stage = config.stages[counters.stage]
    run.dataset = open_dataset(config.data, stage.resolution)
    monitor = HealthMonitor.of_dataset(run.dataset) if log is not None else None
    batches = real_batches(run, stage)
    if stage.from_average and counters.stage_images == 0:
        networks.generator.load_state_dict(networks.ema.state_dict())
    networks.prepare(stage, config.frozen_discriminator_blocks, counters.rate_scale)
    start, start_images = time.perf_counter(), counters.stage_images
    start_seconds, waited = counters.stage_seconds, 0.0

    while run.stage_progress() < 1:
        # one step
        asked = time.perf_counter()
        real, labels = next(batches)
        waited += time.perf_counter() - asked
        draws, context = step_draws(run, stage), step_context(run, stage)
        batch = real_batch(run, draws, real, labels)
        with fast_products("auto"):
            result = training_step(networks, batch, draws, config.objective, context)
        skipped = not adapt_loss_scale(run, result.finite) and not result.finite
        counters.skipped += skipped
        counters.skipped_in_a_row = counters.skipped_in_a_row + 1 if skipped else 0
        if counters.skipped_in_a_row >= SKIPS_TO_ROLL_BACK:
            return False
        if result.moved:
            networks.averaged.update_parameters(networks.generator)
        adapt_augmentation(run, result, stage.batch)
        counters.step += 1
        counters.images += stage.batch
        counters.stage_images += stage.batch

        # figures, samples and alarms
        elapsed = time.perf_counter() - start
        speed = (counters.stage_images - start_images) / elapsed
        figures: dict[str, float] = {}
        if log is not None and context.step % config.log_steps == 0:
            figures = step_figures(run, result)
        if run.is_due(config.sample_kimg):
            ema = run.averaged_model()
            if log is not None and monitor is not None:
                log.samples(ema, counters.images, stage.resolution)
                figures |= monitor.figures(ema, run.sampling)
        if run.is_due(config.metrics_kimg):
            figures |= run.measure()
        if log is not None and figures:
            figures |= {
                "images_per_second": speed,
                "data_share": waited / elapsed,
                "resolution": stage.resolution,
                "skipped_steps": counters.skipped,
            }
            log.write(counters.step, counters.images, figures)
        alarms = []
        if monitor is not None and counters.images >= config.alarm_kimg * 1000:
            alarms = monitor.alarms(figures)
        for alarm in alarms:
            logger.warning("%d images: %s", counters.images, alarm)

        # checkpoints, interrupts and the stage's end, at the same step on all processes
        seconds = start_seconds + time.perf_counter() - start if run.is_main else 0.0
        counters.stage_seconds, stop, alarmed = run.totals(
            seconds, float(bool(interrupts)), float(bool(alarms))
        )
        if run.is_due(config.checkpoint_kimg) and not counters.skipped_in_a_row:
            run.save()  # a checkpoint that begins with a fault would be of no use
        if alarmed and config.stop_on_alarm:
            run.save()
            text = f": {alarms[0]}" if alarms else ""
            raise UserError(f"{run.run_dir}: stopped by an alarm{text}; its checkpoint is kept")
        try:
            if progress is not None:
                shown = {"resolution": stage.resolution, "images": counters.images}
                progress(run.progress(), shown | {"images_per_second": speed})
            if stop:
                raise KeyboardInterrupt
        except KeyboardInterrupt:  # only here, between steps, is the state bit-exact to resume
            run.save()
            raise
    return True


# ---------------------------------------------------------------- parts of a step
def step_draws(run: Run, stage: Stage) -> StepDraws:
    """The random numbers of the next step."""
    config, counters = run.config, run.counters
    remaining = 0.0
    if config.density_noise_kimg:
        shown = counters.stage_images if stage.restart_noise else counters.images
        remaining = max(0.0, 1 - shown / (config.density_noise_kimg * 1000))
    adapted = config.augment_target is not None
    return StepDraws(
        config=config.generator,
        sampling=run.sampling,
        resolution=stage.resolution,
        noise_std=config.density_noise * remaining,
        key=(config.seed, counters.step),
        device=run.device,
        cameras=run.cameras,
        augment_probability=counters.augment if adapted else stage.augment,
    )


def step_context(run: Run, stage: Stage) -> StepContext:
    """How the next step runs."""
    stage_images, fade = run.counters.stage_images, stage.fade_kimg * 1000
    return StepContext(
        stage=stage,
        step=run.counters.step,
        alpha=min(1.0, stage_images / fade) if fade else 1.0,
        warming_up=stage_images < stage.warm_up_kimg * 1000,
        share_fakes=run.config.share_fakes,
        memory=run.memory,
        autocast=run.accelerator.autocast,
        update=partial(update, run),
        loss_scale=loss_scale(run),
    )


def real_batch(
    run: Run,
    draws: StepDraws,
    real: UInt8[Tensor, "batch 3 res res"],
    labels: Float[Tensor, "batch 25"] | None,
) -> Batch:
    """This process's real images on its device, mirrored where that is drawn."""
    positions = run.positions(len(real) * run.accelerator.num_processes)
    images = real.to(run.device, non_blocking=True).float().div_(127.5).sub_(1)
    if run.config.mirror:
        flips = mirrored(draws.key, positions)
        flipped = sent(flips, run.device)[:, None, None, None]
        images = torch.where(flipped, images.flip(3), images)
        if labels is not None:
            labels = torch.where(flips[:, None], mirrored_label(labels), labels)
    cameras = None if labels is None else sent(labels, run.device)
    return Batch(positions, images, cameras, draws.augment(positions))


def update(run: Run, optimizer: torch.optim.Optimizer) -> bool:
    """One optimiser step, unless a gradient is NaN or infinite.

    Returns:
        Whether it was taken, the same on all processes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    changing = [p for p in parameters if p.grad is not None]
    average_gradients(run, changing)
    if (scale := loss_scale(run)) != 1:
        for p in changing:
            p.grad.div_(scale)
    norm = torch.nn.utils.get_total_norm([p.grad for p in changing])
    if not bool(torch.isfinite(norm)):
        return False
    if run.config.grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(changing, run.config.grad_clip, norm)
    optimizer.step()
    return True


def average_gradients(run: Run, parameters: list[torch.nn.Parameter]) -> None:
    """Replaces every gradient by its average over the processes, in one message."""
    if run.accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = run.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def loss_scale(run: Run) -> float:
    """The factor of the losses: 1 but in precision fp16."""
    return run.counters.loss_scale if run.config.precision == "fp16" else 1.0


def adapt_loss_scale(run: Run, finite: bool) -> bool:
    """Adapts the scale of fp16 losses to the last step's gradients, as torch's GradScaler does.

    Returns:
        Whether it was lowered, so that infinite gradients do not speak of a fault.
    """
    counters = run.counters
    if run.config.precision != "fp16":
        return False
    if finite:
        counters.scaled_steps += 1
        if counters.scaled_steps < SCALED_STEPS:
            return False
    elif counters.loss_scale <= 1:
        return False
    counters.loss_scale *= 2 if finite else 0.5
    counters.scaled_steps = 0
    return not finite


def adapt_augmentation(run: Run, result: StepResult, batch: int) -> None:
    """Raises the augmentation probability when real logits are too often positive, or lowers it."""
    target, counters = run.config.augment_target, run.counters
    if target is None:
        return
    (signs,) = run.totals(float(result.figures["d_real_sign"]))
    counters.real_signs += signs / run.accelerator.num_processes
    if (counters.step + 1) % AUGMENT_STEPS == 0:
        change = AUGMENT_STEPS * batch / (run.config.augment_kimg * 1000)
        if counters.real_signs / AUGMENT_STEPS <= target:
            change = -change
        counters.augment = min(MOST_AUGMENT, max(0.0, counters.augment + change))
        counters.real_signs = 0.0


def step_figures(run: Run, result: StepResult) -> dict[str, float]:
    """Numbers for the log: losses, where the density is along the rays, what the run adapts."""
    figures = {name: float(value) for name, value in result.figures.items()}
    r1, fake, poses = run.config.objective.r1, result.fake, run.networks.poses
    if r1 is not None and "d_r1" in figures:
        figures["r1_penalty"] = figures["d_r1"] / r1.every
    figures["opacity"] = float(fake.opacity.detach().mean())
    figures["depth_std"] = float(fake.depth.detach().flatten(1).std(dim=1).mean())
    figures["last_sample_share"] = last_sample_share(fake)
    if poses is not None:
        prior = vars(poses.distribution())
        names = ("yaw_mean", "yaw_std", "pitch_mean", "pitch_std")
        figures |= {name: prior[name] for name in names}
    if run.config.augment_target is not None:
        figures["augment"] = run.counters.augment
    return figures
