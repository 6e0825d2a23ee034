"""One side of a training step at a time, on images that a test makes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tiny
from cips3d.camera import Camera
from cips3d.models.types import Latents, RayDraws, RenderOutput
from cips3d.training.augment import AugmentDraws
from cips3d.training.draws import FakeDraws, StepDraws
from cips3d.training.networks import Networks
from cips3d.training.objective import Objective
from cips3d.training.recipe import Stage
from cips3d.training.step import Batch, Game, StepContext

#: No term but the adversarial loss.
PLAIN = Objective(r1=None)


def context(stage: Stage | None = None, **changes: Any) -> StepContext:
    """A context for one step of a stage, without autocast or optimisers."""
    arguments: dict[str, Any] = {
        "stage": stage or Stage(4, kimg=1),
        "step": 0,
        "alpha": 1.0,
        "warming_up": False,
        "share_fakes": False,
        "memory": 2**34,
        "autocast": nullcontext,
        "update": lambda _: True,
    }
    return StepContext(**arguments | changes)


@dataclass(frozen=True)
class FixedDraws(StepDraws):
    """Draws with a given augmentation."""

    augmentation: AugmentDraws | None = None

    def augment(self, positions: Any) -> AugmentDraws | None:
        return self.augmentation


def game(
    networks: Networks,
    real: Tensor,
    objective: Objective = PLAIN,
    *,
    auxiliary: bool = True,
    augment: AugmentDraws | None = None,
    share: float = 1.0,
    alpha: float = 1.0,
) -> Game:
    """The game about a batch of real images."""
    config = tiny.GENERATOR
    draws = FixedDraws(
        config, config.sampling, 4, 0.0, (0, 0), torch.device("cpu"), config.poses, 0.0, augment
    )
    of_step = context(Stage(4, kimg=1, auxiliary=auxiliary), alpha=alpha)
    batch = Batch(range(len(real)), real)
    return Game(networks, objective, objective.terms(), of_step, batch, draws, share)


def fakes(poses: Tensor | None = None, count: int = 2) -> FakeDraws:
    """Draws of generated images, of which only the cameras matter: yaw and pitch, (B, 2)."""
    poses = torch.zeros(count, 2) if poses is None else poses
    none = torch.zeros(len(poses), 0)
    rays = RayDraws(none[:, None], none[:, None])
    return FakeDraws(Latents(none, none), Camera.orbit(poses[:, 0], poses[:, 1]), rays)


def discriminator_step(
    networks: Networks,
    real: Tensor,
    fake: RenderOutput,
    objective: Objective = PLAIN,
    poses: Tensor | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Adds gradients to the discriminators; returns the figures."""
    return game(networks, real, objective, **changes).discriminator_step(
        fake, fakes(poses, len(fake.image))
    )


def generator_step(
    networks: Networks,
    fake: RenderOutput,
    objective: Objective = PLAIN,
    poses: Tensor | None = None,
    real: Tensor | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Adds gradients to whatever made the images; returns the figures."""
    real = torch.zeros_like(fake.image).detach() if real is None else real
    return game(networks, real, objective, **changes).generator_step(
        fake, fakes(poses, len(fake.image))
    )
