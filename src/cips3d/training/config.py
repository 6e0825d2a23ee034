"""Training configurations: stages of the progressive curriculum (paper Section 4.1) and presets by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from cips3d.camera import PoseDistribution
from cips3d.configuration import Configuration
from cips3d.errors import UserError
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.generator import GeneratorConfig
from cips3d.models.records import Sampling


@dataclass(frozen=True)
class Stage(Configuration):
    """One line of the curriculum: a resolution and how to train at it."""

    resolution: int
    """side of the square pictures, pixels; a power of two that the discriminators can enter"""
    kimg: float
    """length: thousands of real pictures shown"""
    batch: int = 32
    """pictures per step over all processes"""
    generator_lr: float = 2e-4
    discriminator_lr: float = 2e-3
    fade_kimg: float = 0.0
    """the new resolution fades in over this many thousand pictures"""
    auxiliary: bool = True
    """train with the auxiliary discriminator (Section 3.3)"""
    minutes: float | None = None
    """end the stage after this time even if `kimg` is not reached (how long the demo takes on any machine)"""

    def __post_init__(self) -> None:
        power = self.resolution >= 4 and self.resolution & (self.resolution - 1) == 0
        if not power:
            raise UserError(
                f"stage: resolution {self.resolution} is not a power of two from 4 up; choose 16, 32, 64 or another"
            )
        if self.batch < 1:
            raise UserError(f"stage: batch is {self.batch}; it must be at least 1")
        for name in ("kimg", "generator_lr", "discriminator_lr"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise UserError(f"stage: {name} is {value}; it must be a positive number")
        if not math.isfinite(self.fade_kimg) or self.fade_kimg < 0:
            raise UserError(f"stage: fade_kimg is {self.fade_kimg}; it must be 0 or more")


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """Everything that fixes a training run but the machine. The defaults are the authors' settings where they are known."""

    stages: tuple[Stage, ...]
    data: str = "heads"
    """"heads" or "heads-cartoon" (the embedded dataset), or the path of a folder or zip of pictures"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    aux_discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(
            {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 128, 256: 64}, downsample_first=True
        )
    )
    sampling: Sampling | None = None
    """samples per ray in training; by default as many as the generator renders with"""
    mirror: bool = True
    """show real pictures mirrored half of the time"""
    r1_gamma: float = 10.0
    """weight γ of R1, ½γ|∂D/∂x|²; 0 for none"""
    r1_every: int = 1
    """lazy R1: every so many steps, times as strong"""
    adam_beta2: float = 0.999
    grad_clip: float | None = 10.0
    """largest norm of all gradients of one optimiser"""
    ema_decay: float = 0.999
    """decay per step of the averaged generator; ramps up as (1 + n)/(10 + n) over its first updates"""
    density_noise: float = 1.0
    """standard deviation of the density noise at the start, per world unit"""
    density_noise_kimg: float = 160.0
    """it falls linearly to 0 over this many thousand pictures"""
    transmittance_weight: float = 0.0
    """weight of the transmittance loss (Dream Fields, Eq. 4): rewards empty space around the subject; 0 for none"""
    transmittance_target: float = 0.4
    """share of the light that should pass a picture, at which that reward ends"""
    share_fakes: bool = False
    """one set of generated pictures for the discriminator's and the generator's step, instead of a fresh one for each"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """autocast of implicit network and discriminators (sines and compositing stay float32)"""
    seed: int = 0
    log_steps: int = 20
    """a line in log.jsonl every so many steps"""
    sample_kimg: float = 10.0
    """a sample grid every so many thousand pictures"""
    checkpoint_kimg: float = 10.0
    """a checkpoint every so many thousand pictures"""
    workers: int = 0
    """data loading processes per training process"""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("training configuration: no stages; give at least one")
        for stage in self.stages:
            entries = self.discriminator.channels, self.aux_discriminator.channels if stage.auxiliary else {stage.resolution: 1}
            if not all(stage.resolution in entry for entry in entries):
                raise UserError(f"training configuration: a discriminator has no width for the stage at {stage.resolution}")
        for name in ("log_steps", "r1_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training configuration: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.transmittance_target <= 1:
            raise UserError(
                f"training configuration: transmittance_target is {self.transmittance_target}; it must lie in [0, 1]"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training configuration: ema_decay is {self.ema_decay}; it must lie in [0, 1)")


def _heads_32() -> TrainConfig:
    """The small preset: the embedded heads at 16² and 32² on a laptop's CPU."""
    return TrainConfig(
        data="heads",
        generator=GeneratorConfig(
            shape_dim=64, appearance_dim=64, shape_style_dim=64, appearance_style_dim=64,
            shape_mapping_layers=3, appearance_mapping_layers=3,
            nerf_width=48, density_gain=40.0, density_blob=20.0, feature_dim=32,
            inr_width=64, inr_blocks=4, rgb_from_block=1, residual_from_block=2,
            background="plain", coarse_samples=16, fine_samples=16, resolution=32,
        ),
        sampling=Sampling(6, 6),
        discriminator=DiscriminatorConfig({4: 96, 8: 64, 16: 32, 32: 16}),
        aux_discriminator=DiscriminatorConfig({4: 48, 8: 32, 16: 24, 32: 16}, downsample_first=True),
        mirror=False,
        r1_gamma=0.2, r1_every=16,
        grad_clip=None,
        ema_decay=0.995,
        density_noise=0.0,
        transmittance_weight=0.5, transmittance_target=0.5,
        share_fakes=True,
        stages=(
            Stage(16, kimg=40, batch=16, generator_lr=5e-4, discriminator_lr=3e-3),
            Stage(32, kimg=50, batch=16, generator_lr=2e-4, discriminator_lr=2e-3, fade_kimg=2),
            Stage(32, kimg=50, batch=16, generator_lr=1e-4, discriminator_lr=1e-3),
        ),
    )  # fmt: skip


def _ffhq_64() -> TrainConfig:
    """The authors' released settings up to 64²: 32² for 80,000 steps, then 64² for 200,000, 32 pictures a step (8 GPUs × 4)."""
    return TrainConfig(
        data="datasets/ffhq.zip",
        generator=GeneratorConfig(resolution=64, poses=PoseDistribution()),
        stages=(Stage(32, kimg=2560), Stage(64, kimg=6400)),
        precision="bf16",
        workers=3,
    )


PRESETS = {"heads-32": _heads_32, "ffhq-64": _ffhq_64}


def preset(name: str) -> TrainConfig:
    """The configuration of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: no preset named {name}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def with_minutes(config: TrainConfig, minutes: float) -> TrainConfig:
    """The same curriculum cut to a time: half of it for the stages below the final resolution, half for those at it."""
    final = config.stages[-1].resolution
    at_final = sum(stage.resolution == final for stage in config.stages)
    below = len(config.stages) - at_final
    stages = []
    for stage in config.stages:
        peers = at_final if stage.resolution == final else below
        stages.append(replace(stage, minutes=minutes / peers * (0.5 if below else 1.0)))
    return replace(config, stages=tuple(stages))
