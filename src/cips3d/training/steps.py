"""What is trained and how one step goes: networks, losses and gradients of both sides, averages over weights and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cips3d import pretrained
from cips3d.errors import UserError
from cips3d.models.registry import build_generator
from cips3d.models.config import RENDERING_FIELDS
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.layers import without_autocast
from cips3d.models.types import RenderOutput
from cips3d.training import losses
from cips3d.training.augment import AugmentDraws, diff_augment
from cips3d.training.cameras import LearnedPoses
from cips3d.training.recipe import TrainConfig

TensorList = tuple[Tensor, ...] | list[Tensor]


class Networks:
    """The networks of a run and their optimisers; the same initial weights on every process.

    Args:
        config: architectures, Adam's β₂, the seed, and the model to start from.
        device: where they live.
        fresh: take the weights of that model; else they stay random, or the caller puts those of a checkpoint in their place.

    Raises:
        UserError: if the model to start from cannot be read or has other networks.
    """

    def __init__(self, config: TrainConfig, device: torch.device, fresh: bool = True) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = build_generator(config.generator).to(device)
            self.discriminators = nn.ModuleDict(
                {
                    "main": ProgressiveDiscriminator(config.discriminator),
                    "aux": ProgressiveDiscriminator(config.aux_discriminator),
                }
            ).to(device)
        if fresh and config.start is not None:
            self._start_from(config.start)
        #: The camera prior, where it is trained.
        self.poses = (
            LearnedPoses(config.generator.poses).to(device) if config.cameras == "learned" else None
        )
        #: Whether a logit depends on its picture alone.
        self.judges_each_alone = (
            config.discriminator.stddev_group == config.aux_discriminator.stddev_group == 0
        )
        self.averaged = AveragedModel(
            self.generator, multi_avg_fn=ramped_average(config.ema_decay)
        ).requires_grad_(False)
        adam = {"betas": (0.0, config.adam_beta2), "fused": device.type != "meta"}
        poses = [] if self.poses is None else list(self.poses.parameters())
        self.generator_optimizer = torch.optim.Adam([*self.generator.parameters(), *poses], **adam)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminators.parameters(), **adam)

    def _start_from(self, model: str) -> None:
        """Takes the weights of a model, and those of the discriminators beside it that are of the configuration's form."""
        found = pretrained.load(model)
        pretrained.load_weights(self.generator, found.state_dict(), model)
        ours, theirs = self.generator.config, found.config
        for name in (field.name for field in fields(ours) if field.name not in RENDERING_FIELDS):
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"start: {model} has {name} {getattr(theirs, name)}; set generator.{name} to it"
                )
        for name, found in (pretrained.load_discriminators(model) or nn.ModuleDict()).items():
            own = self.discriminators[name]
            if found.config == own.config:
                own.load_state_dict(found.state_dict())

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by name."""
        modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "averaged": self.averaged,
            "discriminators": self.discriminators,
        }
        return modules if self.poses is None else modules | {"poses": self.poses}

    @property
    def ema(self) -> Generator:
        """The averaged generator."""
        module = self.averaged.module
        assert isinstance(module, Generator)
        return module

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers that a checkpoint holds, by name."""
        return {
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def judge(
        self, images: list[Tensor], alpha: float, cameras: Tensor | None = None
    ) -> tuple[Float[Tensor, "logits 1"], list[Float[Tensor, "batch 2"]]]:
        """Logits of the main discriminator and, where there is a second batch of pictures, of the auxiliary one on it.

        With them the poses that each of those with a `pose_head` tells.
        """
        logits, poses = [], []
        for name, pictures in zip(("main", "aux")[: len(images)], images, strict=True):
            discriminator = self.discriminators[name]
            assert isinstance(discriminator, ProgressiveDiscriminator)
            logit, pose = discriminator.judge(pictures, alpha, cameras)
            logits.append(logit)
            if pose is not None:
                poses.append(pose)
        return torch.cat(logits), poses


def freeze_blocks(discriminator: nn.Module, resolution: int, count: int) -> None:
    """Lets all of a discriminator train but its first `count` blocks for pictures of that resolution (FreezeD).

    Blocks that it does not have stay out of it: smaller pictures have fewer, and an auxiliary one may end below the resolution.
    """
    assert isinstance(discriminator, ProgressiveDiscriminator)
    discriminator.requires_grad_(True)
    discriminator.from_rgb.requires_grad_(count == 0)
    for i in range(count):
        if str(resolution >> i) in discriminator.blocks:
            discriminator.blocks[str(resolution >> i)].requires_grad_(False)


def ramped_average(decay: float) -> Callable[[TensorList, TensorList, Tensor | int], None]:
    """Exponential moving average for `AveragedModel`: θ̄ ← θ̄ + (1 − d)(θ − θ̄), d = min(decay, (1 + n)/(10 + n)) after n updates.

    The ramp lets the average forget the first, formless generators.
    """

    @torch.no_grad()
    def update(averaged: TensorList, current: TensorList, updates: Tensor | int) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, updates)

    return update


@dataclass
class StepResult:
    """What a step tells the log: means over the local batch, as tensors so that nothing waits for the device."""

    loss: Tensor
    real_logit: Tensor | None = None
    fake_logit: Tensor | None = None
    real_sign: Tensor | None = None
    """mean sign of the main discriminator's real logits: near 1 it has learned the dataset by heart (StyleGAN2-ADA's r_t)"""
    squared_gradient: Tensor | None = None
    fake_squared_gradient: Tensor | None = None

    @staticmethod
    def mean(results: Sequence[StepResult]) -> StepResult:
        """The mean over pieces of a batch."""
        means: dict[str, Any] = {}
        for name in vars(results[0]):
            values = [getattr(result, name) for result in results]
            means[name] = None if values[0] is None else torch.stack(values).mean()
        return StepResult(**means)


@dataclass(frozen=True)
class Judging:
    """How the discriminators see the pictures of a step, on both sides of the game.

    Attributes:
        alpha: fade-in of the resolution.
        auxiliary: whether the auxiliary discriminator takes part.
        augment: changes to all pictures before they are judged; penalties are about the pictures as they were.
        relativistic: each generated picture is judged against the real one of its number.
        real_cameras, fake_cameras: labels, for discriminators that see them.
        fake_poses: yaw and pitch of generated pictures, radians, for discriminators to tell; None: that is no part of the loss.
        pose_weight: of their error.
    """

    alpha: float = 1.0
    auxiliary: bool = True
    augment: AugmentDraws | None = None
    relativistic: bool = False
    real_cameras: Float[Tensor, "batch 25"] | None = None
    fake_cameras: Float[Tensor, "batch 25"] | None = None
    fake_poses: Float[Tensor, "batch 2"] | None = None
    pose_weight: float = 0.0

    def pictures(self, fake: RenderOutput) -> list[Tensor]:
        """The pictures that discriminators see: the main one's, and the auxiliary one's where it takes part."""
        return [fake.image, fake.aux_image] if self.auxiliary else [fake.image]

    def augmented(self, images: list[Tensor]) -> list[Tensor]:
        """The pictures as the discriminators get them."""
        return (
            images
            if self.augment is None
            else [diff_augment(image, self.augment) for image in images]
        )

    def pose_loss(self, told: list[Tensor]) -> Tensor | float:
        """What both sides add to their loss for the poses that discriminators tell of generated pictures."""
        return (
            0.0
            if self.fake_poses is None
            else self.pose_weight * losses.pose_loss(told, self.fake_poses)
        )


def discriminator_step(
    networks: Networks,
    real: Float[Tensor, "batch 3 res res"],
    fake: RenderOutput,
    judging: Judging,
    r1_weight: float = 0.0,
    r2_weight: float = 0.0,
    share: float = 1.0,
) -> StepResult:
    """Loss of both discriminators, its gradients accumulated in their parameters.

    Args:
        real, fake: pictures in [-1, 1]; the fakes are treated as constants.
        r1_weight, r2_weight: what |∂D/∂x|² of real and of generated pictures is multiplied by: ½γ, times the interval of lazy
            penalties, or 0 for none this time.
        share: of the whole batch, what these pictures are; the gradients are multiplied by it.
    """
    real_leaves = [real.clone().requires_grad_(r1_weight > 0) for _ in judging.pictures(fake)]
    fake_leaves = [image.detach().requires_grad_(r2_weight > 0) for image in judging.pictures(fake)]
    fakes, reals = judging.augmented(fake_leaves), judging.augmented(real_leaves)
    if r1_weight > 0 or r2_weight > 0 or not networks.judges_each_alone:
        fake_logits, told = networks.judge(fakes, judging.alpha, judging.fake_cameras)
        real_logits, _ = networks.judge(reals, judging.alpha, judging.real_cameras)
    else:  # one call of each discriminator instead of two
        labels = [x for x in (judging.fake_cameras, judging.real_cameras) if x is not None]
        cameras = torch.cat(labels) if labels else None
        both, told = networks.judge(
            [torch.cat(pair) for pair in zip(fakes, reals, strict=True)], judging.alpha, cameras
        )
        fake_logits, real_logits = (
            both.view(len(fakes), 2, len(real), 1).transpose(0, 1).flatten(1, 2)
        )
        told = [pose[: len(real)] for pose in told]
    if judging.relativistic:
        loss = losses.relativistic_loss(real_logits, fake_logits)
    else:
        loss = losses.discriminator_loss(real_logits, fake_logits)
    loss = loss + judging.pose_loss(told)
    penalties: list[Tensor | None] = []
    for weight, logits, leaves in (
        (r1_weight, real_logits, real_leaves),
        (r2_weight, fake_logits, fake_leaves),
    ):
        penalties.append(_mean_squared_gradient(logits, leaves) if weight > 0 else None)
        if penalties[-1] is not None:
            loss = loss + weight * penalties[-1]
    with without_autocast(
        loss.device
    ):  # gradients have the precision of what they are of, unless told otherwise
        (share * loss).backward()
    real_main = real_logits[: len(real)].detach()
    return StepResult(
        loss.detach(),
        real_main.mean(),
        fake_logits[: len(real)].detach().mean(),
        real_main.sign().mean(),
        *penalties,
    )


def _mean_squared_gradient(logits: Tensor, leaves: list[Tensor]) -> Tensor:
    """Mean of |∂D/∂x|² over the pictures of both discriminators."""
    parts = zip(logits.split(len(leaves[0])), leaves, strict=True)
    with without_autocast(logits.device):
        return torch.cat([losses.squared_gradient(part, image) for part, image in parts]).mean()


def generator_step(
    networks: Networks,
    fake: RenderOutput,
    judging: Judging,
    regulariser: Tensor | None = None,
    real: Float[Tensor, "batch 3 res res"] | None = None,
    share: float = 1.0,
) -> StepResult:
    """Loss of the generator against both discriminators, its gradients accumulated in the generator's parameters.

    Args:
        regulariser: added to the loss.
        real: the pictures that a relativistic loss compares with.
        share: as in `discriminator_step`.
    """
    pictures = judging.pictures(fake)
    logits, told = networks.judge(judging.augmented(pictures), judging.alpha, judging.fake_cameras)
    if judging.relativistic:
        assert real is not None
        with torch.no_grad():
            reals = judging.augmented([real for _ in pictures])
            real_logits, _ = networks.judge(reals, judging.alpha, judging.real_cameras)
        loss = losses.relativistic_loss(logits, real_logits)
    else:
        loss = losses.generator_loss(logits)
    loss = loss + judging.pose_loss(told)
    # first to the pictures only: gradients of the discriminators' parameters are then not computed
    # what depends on frozen parts alone has no gradient to pass on
    trained = [picture for picture in pictures if picture.requires_grad]
    with without_autocast(loss.device):
        gradients: list[Tensor | None] = [*torch.autograd.grad(share * loss, trained)]
        if regulariser is not None and regulariser.requires_grad:
            trained, gradients = [*trained, share * regulariser], [*gradients, None]
        torch.autograd.backward(trained, gradients)
    return StepResult(loss.detach())


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replaces every gradient by its mean over the processes, in one message."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
