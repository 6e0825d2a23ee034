"""One side of a training step at a time, on images that a test makes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from cips3d.camera import Camera
from cips3d.models.types import Latents, RayDraws, RenderOutput
from cips3d.training import step
from cips3d.training.augment import AugmentDraws
from cips3d.training.draws import FakeDraws
from cips3d.training.networks import Networks
from cips3d.training.objective import Objective
from cips3d.training.recipe import Stage
from cips3d.training.step import Batch, StepContext

#: No term but the adversarial loss.
PLAIN = Objective(r1=None)


def context(stage: Stage | None = None, alpha: float = 1.0) -> StepContext:
    """A context for the first step of a stage, without autocast or optimisers."""
    stage = stage or Stage(4, kimg=1)
    return StepContext(stage, 0, alpha, False, False, 2**34, nullcontext, lambda _: True)


def drawn(poses: Tensor | None = None, count: int = 2, latents: Latents | None = None) -> FakeDraws:
    """Draws of generated images, of which cameras and codes matter: yaw and pitch, (B, 2)."""
    poses = torch.zeros(count, 2) if poses is None else poses
    none = torch.zeros(len(poses), 0)
    rays, camera = RayDraws(none[:, None], none[:, None]), Camera.orbit(poses[:, 0], poses[:, 1])
    return FakeDraws(latents or Latents(none, none), camera, rays)


def discriminator_step(
    networks: Networks,
    real: Tensor,
    fake: RenderOutput,
    objective: Objective = PLAIN,
    poses: Tensor | None = None,
    augment: AugmentDraws | None = None,
    *,
    alpha: float = 1.0,
    latents: Latents | None = None,
    **stage: Any,
) -> dict[str, Tensor]:
    """Adds gradients to the discriminators; returns the figures."""
    of_step = context(Stage(4, kimg=1, **stage), alpha)
    batch = Batch(range(len(real)), real, augment=augment)
    fakes = drawn(poses, len(fake.image), latents)
    return step.discriminator_step(networks, batch, fake, fakes, objective, of_step)


def generator_step(
    networks: Networks,
    fake: RenderOutput,
    objective: Objective = PLAIN,
    poses: Tensor | None = None,
    augment: AugmentDraws | None = None,
    *,
    real: Tensor | None = None,
    alpha: float = 1.0,
    latents: Latents | None = None,
    **stage: Any,
) -> dict[str, Tensor]:
    """Adds gradients to whatever made the images; returns the figures."""
    real = torch.zeros_like(fake.image).detach() if real is None else real
    of_step = context(Stage(4, kimg=1, **stage), alpha)
    batch = Batch(range(len(real)), real, augment=augment)
    fakes = drawn(poses, len(fake.image), latents)
    return step.generator_step(networks, batch, fake, fakes, objective, of_step)
