"""The training recipe: the progressive curriculum (paper Section 4.1) and a run's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from cips3d.configuration import (
    Configuration,
    Count,
    Decay,
    NonNegative,
    Positive,
    Seed,
    Share,
)
from cips3d.errors import UserError
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.registry import PARTS, generator_class
from cips3d.training.objective import Objective

if TYPE_CHECKING:
    from cips3d.models.protocol import ImageGenerator

#: Beyond these a number is a typo that a machine would not survive.
MOST_BATCH, MOST_WORKERS = 65_536, 256


@dataclass(frozen=True)
class Stage(Configuration):
    """One line of the curriculum: a resolution and how to train at it."""

    label: ClassVar[str] = "stage"

    resolution: int
    """side of the square images, pixels; a power of two that the discriminators can enter"""
    kimg: Positive
    """length: thousands of real images shown"""
    batch: Annotated[int, Ge(1), Le(MOST_BATCH)] = 32
    """images per step over all processes"""
    generator_lr: Positive = 2e-4
    discriminator_lr: Positive = 2e-3
    fade_kimg: NonNegative = 0.0
    """the new resolution fades in over this many thousand images"""
    auxiliary: bool = True
    """train with the auxiliary discriminator (Section 3.3)"""
    frozen: tuple[str, ...] = ()
    """networks of the generator that do not train, such as nerf, shape_mapping and aux_head"""
    warm_up_kimg: NonNegative = 0.0
    """only the discriminators train for this many thousand images, such as new discriminators of a
    transferred generator"""
    from_average: bool = False
    """start the stage from the averaged generator"""
    gradients: Literal["full", "partial", "checkpointed"] = "full"
    """which rays carry gradients (cips3d.models.rays): all; `gradient_rays` of them (Section 3.2);
    or all in the memory of a chunk, for one more forward pass"""
    gradient_rays: Count | None = None
    """n_r, for partial gradients"""
    chunk: Count | None = None
    """rays of each image at a time, for partial and checkpointed gradients; by default as many as
    fit a quarter of the memory"""
    augment: Share = 0.0
    """probability that DiffAugment changes an image before it is judged"""
    accumulate: Count = 1
    """each process takes its part of the batch in this many pieces, whose gradients add up"""
    minutes: Positive | None = None
    """end the stage after this time even if `kimg` is not reached"""

    def check(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise UserError(
                f"stage: resolution {self.resolution} is not a power of two from 4 up; "
                "choose 16, 32, 64 or another"
            )
        if self.gradient_rays is not None and self.gradient_rays > self.resolution**2:
            raise UserError(
                f"stage: gradient_rays is {self.gradient_rays}; "
                f"it must be at most {self.resolution**2}"
            )
        if self.batch % self.accumulate:
            raise UserError(
                f"stage: batch {self.batch} does not divide into {self.accumulate} equal pieces; "
                "change one of them"
            )
        unknown = sorted(set(self.frozen) - set(PARTS))
        if unknown:
            raise UserError(
                f"stage: frozen names {', '.join(unknown)}; generators have {', '.join(PARTS)}"
            )
        if (self.gradients == "partial") != (self.gradient_rays is not None):
            raise UserError(
                "stage: partial gradients and gradient_rays go together; give both or neither"
            )
        if self.warm_up_kimg >= self.kimg:
            raise UserError(
                f"stage: warm_up_kimg is {self.warm_up_kimg} and the whole stage {self.kimg} kimg, "
                "so its generator would not train; shorten the warm-up"
            )


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """Everything that fixes a training run but the machine.

    The defaults are the authors' settings where they are known.
    """

    label: ClassVar[str] = "training configuration"

    stages: tuple[Stage, ...]
    data: str = "heads"
    """"heads" or "heads-cartoon" (embedded datasets), or the path of a folder or zip of images"""
    start: str | None = None
    """model whose weights the generator starts from; the discriminators start from the model's own
    where they fit (transfer, Section 4.4)"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    aux_discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(
            {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 128, 256: 64}, downsample_first=True
        )
    )
    objective: Objective = field(default_factory=Objective)
    """adversarial loss, penalties and regularisers"""
    frozen_discriminator_blocks: Annotated[int, Ge(0)] = 0
    """blocks of each discriminator, from the image on, that stay frozen (FreezeD, Mo 2020)"""
    sampling: Sampling | None = None
    """samples per ray in training; by default the generator's"""
    cameras: Literal["prior", "learned", "labels"] = "prior"
    """cameras of generated images: from the generator's prior; from a prior whose mean and spread
    are learned (CAMPARI, Niemeyer & Geiger 2021); or those of random images of the dataset, which
    must have labels"""
    mirror: bool = True
    """show each real image mirrored half of the time"""
    augment_target: Annotated[float, Gt(-1), Lt(1)] | None = None
    """adapt the probability of DiffAugment to keep the mean sign of the discriminator's real logits
    at this value (StyleGAN2-ADA, Karras et al. 2020: 0.6); stages then give no probability"""
    augment_kimg: Positive = 500.0
    """thousands of images in which an adapted probability can go from 0 to 1"""
    adam_beta2: Decay = 0.999
    grad_clip: Positive | None = 10.0
    """largest norm of all gradients of one optimiser"""
    ema_decay: Decay = 0.999
    """decay per step of the averaged generator; ramps up as (1 + n)/(10 + n) at the start"""
    density_noise: NonNegative = 1.0
    """standard deviation of the density noise at the start, per world unit"""
    density_noise_kimg: NonNegative = 160.0
    """it falls linearly to 0 over this many thousand images"""
    share_fakes: bool = False
    """one set of generated images for both steps, the discriminators' and the generator's"""
    precision: Literal["no", "bf16"] = "no"
    """autocast of implicit network and discriminators (sines and compositing stay float32)"""
    seed: Seed = 0
    wandb: str | None = None
    """Weights & Biases project that receives the figures too; needs the package wandb"""
    alarm_kimg: NonNegative = 20.0
    """after this many thousand images, collapse, flat or mirrored geometry and runaway R1 raise an
    alarm"""
    stop_on_alarm: bool = False
    """an alarm ends the run, after a checkpoint"""
    log_steps: Count = 20
    """write a log line every Nth step"""
    sample_kimg: Positive = 10.0
    """write a sample sheet every this many thousand images"""
    metrics: tuple[str, ...] = ()
    """FID and KID to measure during the run and at its end, by name (cips3d.metrics.fidelity), such
    as ["fd2k_heads"]"""
    metrics_kimg: Positive = 50.0
    """measure them every this many thousand images"""
    inception_weights: str | None = None
    """file with torch-fidelity's Inception weights, which FID and KID otherwise download"""
    checkpoint_kimg: Positive = 10.0
    """write a checkpoint every this many thousand images"""
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)] = 0
    """data loading processes per training process"""

    def check(self) -> None:
        if not self.stages:
            raise UserError("training configuration: no stages; give at least one")
        for stage in self.stages:
            judges = [self.discriminator, self.aux_discriminator][: 1 + stage.auxiliary]
            if not all(stage.resolution in judge.channels for judge in judges):
                raise UserError(
                    "training configuration: a discriminator has no width for the stage at "
                    f"{stage.resolution}; add it to its channels"
                )
        blocks = min(len(d.channels) for d in (self.discriminator, self.aux_discriminator)) - 1
        if self.frozen_discriminator_blocks > blocks:
            raise UserError(
                "training configuration: frozen_discriminator_blocks is "
                f"{self.frozen_discriminator_blocks}; it must be at most {blocks}"
            )
        self._check_combinations()
        self._check_architecture()

    def _check_combinations(self) -> None:
        label = self.label
        if self.share_fakes and any(stage.accumulate > 1 for stage in self.stages):
            raise UserError(
                f"{label}: share_fakes keeps a whole batch in memory; set accumulate=1 or "
                "share_fakes=false"
            )
        if self.augment_target is not None and self.objective.game.compares:
            raise UserError(
                f"{label}: augment_target uses the sign of real logits, which the relativistic "
                "loss leaves free; set augment_target=null (in cips3d finetune, give --augment)"
            )
        if self.augment_target is not None and any(stage.augment for stage in self.stages):
            raise UserError(
                f"{label}: augment_target adapts what a stage's augment fixes; give only one"
            )
        heads = self.discriminator.pose_head, self.aux_discriminator.pose_head
        judging = heads[: 1 + any(stage.auxiliary for stage in self.stages)]
        # inversion would trust the predictions of an untrained head
        if any(head != (self.objective.pose is not None) for head in judging):
            raise UserError(
                f"{label}: objective.pose and the discriminators' pose_head go together; give all "
                "of them, or set objective.pose=null discriminator.pose_head=false "
                "aux_discriminator.pose_head=false"
            )
        if self.cameras == "learned" and self.generator.poses.kind == "spherical":
            raise UserError(
                f"{label}: cameras=learned needs poses of kind gaussian or uniform, not spherical"
            )

    def _check_architecture(self) -> None:
        """Refuses what the generator cannot do, and stages that would train nothing."""
        networks = self.generator.networks
        name, kind = networks.architecture, generator_class(networks.architecture)
        if not kind.has_density and self.objective.transmittance is not None:
            raise UserError(
                f"{self.label}: {name} has no density; set objective.transmittance=null"
            )
        if not kind.has_density and (self.cameras == "learned" or self.objective.pose is not None):
            raise UserError(
                f"{self.label}: {name} draws the same from every camera; set cameras=prior and "
                "objective.pose=null"
            )
        for stage in self.stages:
            self._check_stage(stage, name, kind)

    def _check_stage(self, stage: Stage, name: str, kind: type[ImageGenerator]) -> None:
        if stage.auxiliary and not kind.has_aux_image:
            raise UserError(f"{self.label}: {name} has no auxiliary image; set auxiliary=false")
        lacking = [part for part in stage.frozen if part not in kind.parts]
        if lacking:
            raise UserError(
                f"{self.label}: frozen names {', '.join(lacking)}, which {name} does not have; "
                f"its networks are {', '.join(kind.parts)}"
            )
        plain = self.generator.networks.background == "plain"
        unused = {"aux_head"} if plain else {"aux_head", "background"}
        trained = [part for part in kind.parts if part not in unused]
        if set(trained) <= set(stage.frozen) and self.cameras != "learned":
            raise UserError(
                f"{self.label}: the stage at {stage.resolution} freezes everything that makes its "
                f"images; leave one of {', '.join(trained)} to train"
            )

    @property
    def judges_cameras(self) -> bool:
        """Whether a discriminator sees the camera of each image besides its colours."""
        return self.discriminator.camera_label or self.aux_discriminator.camera_label


def with_minutes(config: TrainConfig, minutes: float) -> TrainConfig:
    """The same curriculum in a given time: half for the final resolution, half for those below."""
    final = config.stages[-1].resolution
    at_final = sum(stage.resolution == final for stage in config.stages)
    below = len(config.stages) - at_final
    stages = []
    for stage in config.stages:
        peers = at_final if stage.resolution == final else below
        stages.append(replace(stage, minutes=minutes / peers * (0.5 if below else 1.0)))
    return replace(config, stages=tuple(stages))


def check_batches(stages: Iterable[Stage], processes: int, source: str) -> None:
    """Raises UserError for the first stage whose batch does not divide among the processes.

    Args:
        source: the option that sets their number, for the error line.
    """
    for stage in stages:
        if stage.batch % (processes * stage.accumulate):
            pieces = "" if stage.accumulate == 1 else f" of {stage.accumulate} pieces each"
            raise UserError(
                f"{source}: batch {stage.batch} of the stage at {stage.resolution} does not divide "
                f"among {processes} processes{pieces}; give other numbers"
            )
