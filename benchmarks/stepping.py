"""One step of the training loop on given images, without logs and checkpoints."""

from __future__ import annotations

from torch import Tensor

from cips3d.models.ops.precision import fast_products
from cips3d.training.loop import adapt_loss_scale, real_batch, step_context, step_draws
from cips3d.training.run import Run
from cips3d.training.step import training_step


def take_step(run: Run, real: Tensor) -> None:
    """A step of the first stage on uint8 images, as `cips3d.training.loop` takes it."""
    stage, counters, networks = run.config.stages[0], run.counters, run.networks
    positions = run.positions(stage.batch)
    draws = step_draws(run, stage)
    batch = real_batch(run, draws, real[: len(positions)], None)
    with fast_products("auto"):
        context = step_context(run, stage)
        result = training_step(networks, batch, draws, run.config.objective, context)
    adapt_loss_scale(run, result.finite)
    networks.averaged.update_parameters(networks.generator)
    counters.step += 1
    counters.images += stage.batch
    counters.stage_images += stage.batch


def prepared(run: Run) -> Run:
    """A run ready for its first stage."""
    run.networks.prepare(run.config.stages[0], run.config.frozen_discriminator_blocks)
    return run
