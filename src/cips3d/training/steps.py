"""What is trained and how one step goes: networks, losses and gradients of both sides, averages over weights and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.records import RenderOutput
from cips3d.training import losses
from cips3d.training.augment import AugmentDraws, diff_augment
from cips3d.training.config import TrainConfig

TensorList = tuple[Tensor, ...] | list[Tensor]


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
    augment: AugmentDraws | None = None,
) -> StepResult:
    """Loss of both discriminators, its gradients accumulated in their parameters.

    Args:
        real, fake: pictures in [-1, 1]; the fakes are treated as constants.
        alpha: fade-in of the resolution.
        auxiliary: whether the auxiliary discriminator takes part.
        r1_weight: what |∂D/∂x|² is multiplied by: ½γ, times the interval of lazy R1, or 0 for none this time.
        augment: changes to all pictures before they are judged; R1 is about the pictures as they were.
    """
    leaves = [real.clone().requires_grad_(r1_weight > 0) for _ in _judged(fake, auxiliary)]
    fakes = _augmented([image.detach() for image in _judged(fake, auxiliary)], augment)
    reals = _augmented(leaves, augment)
    if r1_weight > 0 or not networks.judges_each_alone:
        fake_logits, real_logits = networks.logits(fakes, alpha), networks.logits(reals, alpha)
    else:  # one call of each discriminator instead of two
        both = networks.logits([torch.cat(pair) for pair in zip(fakes, reals, strict=True)], alpha)
        fake_logits, real_logits = both.view(len(fakes), 2, len(real), 1).transpose(0, 1).flatten(1, 2)
    loss = losses.discriminator_loss(real_logits, fake_logits)
    penalty = None
    if r1_weight > 0:
        parts = real_logits.split(len(real))
        penalty = torch.cat([losses.squared_gradient(part, image) for part, image in zip(parts, leaves, strict=True)]).mean()
        loss = loss + r1_weight * penalty
    loss.backward()
    return StepResult(loss, real_logits[: len(real)].mean(), fake_logits[: len(real)].mean(), penalty)


def _judged(fake: RenderOutput, auxiliary: bool) -> list[Tensor]:
    """The pictures that discriminators see: the main one's, and the auxiliary one's where it takes part."""
    return [fake.image, fake.aux_image] if auxiliary else [fake.image]


def _augmented(images: list[Tensor], augment: AugmentDraws | None) -> list[Tensor]:
    return images if augment is None else [diff_augment(image, augment) for image in images]


def generator_step(
    networks: Networks,
    fake: RenderOutput,
    alpha: float,
    auxiliary: bool,
    regulariser: Tensor | None = None,
    augment: AugmentDraws | None = None,
) -> StepResult:
    """Loss of the generator against both discriminators, its gradients accumulated in the generator's parameters.

    Args:
        regulariser: added to the loss.
        augment: as in `discriminator_step`.
    """
    networks.discriminators.requires_grad_(False)
    loss = losses.generator_loss(networks.logits(_augmented(_judged(fake, auxiliary), augment), alpha))
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
