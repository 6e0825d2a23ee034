"""The networks of a run, their optimisers and the averaged generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cips3d import pretrained
from cips3d.errors import UserError
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.storage import load_weights
from cips3d.training.cameras import LearnedPoses
from cips3d.training.recipe import Stage, TrainConfig

TensorList = tuple[Tensor, ...] | list[Tensor]


class Networks:
    """Generator, discriminators, learned camera prior, optimisers and average.

    Initial weights are the same on every process.

    Args:
        fresh: take the weights of the model that the configuration starts from; False leaves them
            random, for the caller to replace by those of a checkpoint.

    Raises:
        UserError: if the model to start from cannot be read or has other networks.
    """

    def __init__(self, config: TrainConfig, device: torch.device, fresh: bool = True) -> None:
        parts = config.judges
        # on the CPU, whatever torch's default is: equal seeds, equal weights
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(config.seed)
            self.generator = build_generator(config.generator).to(device)
            self.discriminators = nn.ModuleDict(
                {name: ProgressiveDiscriminator(part) for name, part in parts.items()}
            ).to(device)
        if fresh and config.start is not None:
            self._start_from(config.start)
        #: The camera prior, where it is learned.
        self.poses: LearnedPoses | None = None
        if config.cameras == "learned":
            self.poses = LearnedPoses(config.generator.poses).to(device)
        #: Whether a logit depends on other images of the batch (minibatch standard deviation).
        self.mixes_batch = any(part.stddev_group > 0 for part in parts.values())
        with torch.device("cpu"):  # its counter, which is read in every step
            average = AveragedModel(self.generator, multi_avg_fn=ramped_average(config.ema_decay))
        self.averaged = average.requires_grad_(False)
        adam = {"betas": (0.0, config.adam_beta2), "fused": device.type != "meta"}
        poses = [] if self.poses is None else list(self.poses.parameters())
        self.generator_optimizer = torch.optim.Adam([*self.generator.parameters(), *poses], **adam)
        self.discriminator_optimizer = torch.optim.Adam(self.discriminators.parameters(), **adam)
        #: What a checkpoint contains, by name.
        self.modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "averaged": self.averaged,
            "discriminators": self.discriminators,
        }
        if self.poses is not None:
            self.modules["poses"] = self.poses
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def _start_from(self, model: str) -> None:
        """Takes a model's weights, and those of its discriminators that have our configuration.

        Pose and code heads may differ: what a discriminator lacks starts anew.
        """
        found = pretrained.load(model)
        ours, theirs = vars(self.generator.config.networks), vars(found.config.networks)
        load_weights(self.generator, found.state_dict(), model)
        for name in ours:
            if ours[name] != theirs.get(name):
                raise UserError(
                    f"start: {model} has {name} {theirs.get(name)}; "
                    f"set generator.networks.{name} to it"
                )
        for name, other in (pretrained.load_discriminators(model) or nn.ModuleDict()).items():
            if name not in self.discriminators:  # the reader of geometry, without a shape term
                continue
            own = self.discriminators[name]
            assert isinstance(own, ProgressiveDiscriminator)
            assert isinstance(other, ProgressiveDiscriminator)
            heads = {key: getattr(own.config, key) for key in ("pose_head", "code_numbers")}
            if replace(other.config, **heads) == own.config:
                expected = own.state_dict()
                own.load_state_dict(
                    {
                        key: value
                        for key, value in other.state_dict().items()
                        if key in expected and value.shape == expected[key].shape
                    },
                    strict=False,
                )

    @property
    def ema(self) -> ImageGenerator:
        """The averaged generator."""
        module = self.averaged.module
        assert isinstance(module, ImageGenerator)
        return module

    def prepare(self, stage: Stage, frozen_blocks: int = 0, rate_scale: float = 1.0) -> None:
        """Sets what trains in a stage, and at which rates; freezes blocks as `freeze_blocks`."""
        for name, part in self.generator.named_children():
            part.requires_grad_(name not in stage.frozen)
        for discriminator in self.discriminators.children():
            assert isinstance(discriminator, ProgressiveDiscriminator)
            freeze_blocks(discriminator, stage.resolution, frozen_blocks)
        self.generator_optimizer.param_groups[0]["lr"] = stage.generator_lr * rate_scale
        self.discriminator_optimizer.param_groups[0]["lr"] = stage.discriminator_lr * rate_scale

    def judge(
        self, images: list[Tensor], alpha: float, cameras: Tensor | None = None
    ) -> tuple[Float[Tensor, "logits 1"], list[Float[Tensor, "batch 2"]], dict[str, Tensor]]:
        """All logits, the main discriminator's first; poses; codes by discriminator.

        Poses and codes are of the discriminators that have such a head.

        Args:
            images: the main discriminator's and, where it takes part, the auxiliary one's.
            alpha: fade-in of the resolution.
            cameras: labels, for discriminators that see them.
        """
        logits, poses, codes = [], [], dict[str, Tensor]()
        for name, batch in zip(("main", "aux")[: len(images)], images, strict=True):
            discriminator = self.discriminators[name]
            assert isinstance(discriminator, ProgressiveDiscriminator)
            logit, pose, code = discriminator.judge(batch, alpha, cameras)
            logits.append(logit)
            if pose is not None:
                poses.append(pose)
            if code is not None:
                codes[name] = code
        return torch.cat(logits), poses, codes

    def read_geometry(self, maps: Tensor | None) -> dict[str, Float[Tensor, "batch n"]]:
        """The shape code that is predicted from geometry as images, by the reader's name."""
        if maps is None:
            return {}
        reader = self.discriminators["geometry"]
        assert isinstance(reader, ProgressiveDiscriminator)
        code = reader.judge(maps).code
        assert code is not None
        return {"geometry": code}


def freeze_blocks(discriminator: ProgressiveDiscriminator, resolution: int, count: int) -> None:
    """Freezes a discriminator's first `count` blocks for images of a resolution (FreezeD).

    Blocks that it does not have are ignored: smaller images use fewer, and an auxiliary
    discriminator may end below the resolution.
    """
    discriminator.requires_grad_(True)
    discriminator.from_rgb.requires_grad_(count == 0)
    for i in range(count):
        if str(resolution >> i) in discriminator.blocks:
            discriminator.blocks[str(resolution >> i)].requires_grad_(False)


def ramped_average(decay: float) -> Callable[[TensorList, TensorList, Tensor | int], None]:
    """Exponential moving average for `AveragedModel`, which forgets the first generators quickly.

    θ̄ ← θ̄ + (1 − d)(θ − θ̄), with d = min(decay, (1 + n)/(10 + n)) after n updates.
    """

    @torch.no_grad()
    def update(averaged: TensorList, current: TensorList, updates: Tensor | int) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, updates)

    return update
