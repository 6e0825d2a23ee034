"""The training recipe: the progressive curriculum (paper Section 4.1) and a run's settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from cips3d.configuration import Configuration, Count, Decay, NonNegative, Positive, Seed, Share
from cips3d.errors import UserError
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.registry import PARTS, generator_class
from cips3d.training.objective import Objective

#: Beyond these a number is a typo that a machine would not survive.
MOST_BATCH, MOST_WORKERS = 65_536, 256
#: Widest layer of the network that reads the shape code from geometry.
READER_WIDTH = 32
#: The discriminators' fields in a configuration.
DISCRIMINATORS = ("discriminator", "aux_discriminator")


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
    """thousands of images over which the new resolution fades in"""
    auxiliary: bool = True
    """train with the auxiliary discriminator (Section 3.3)"""
    frozen: tuple[str, ...] = ()
    """networks of the generator that do not train, such as nerf, shape_mapping and aux_head"""
    warm_up_kimg: NonNegative = 0.0
    """thousands of images for which only the discriminators train, such as in a transfer"""
    from_average: bool = False
    """start the stage from the averaged generator"""
    restart_noise: bool = False
    """the density noise starts anew, as in a run of its own"""
    gradients: Literal["full", "partial", "checkpointed"] = "full"
    """rays that carry gradients: all; `gradient_rays` of them (Section 3.2); or all in the memory
    of a chunk, for one more forward pass (cips3d.models.rays)"""
    gradient_rays: Count | None = None
    """n_r, for partial gradients"""
    chunk: Count | None = None
    """rays of an image at a time, unless gradients are full; null fits a quarter of the memory"""
    augment: Share = 0.0
    """probability that DiffAugment changes an image"""
    accumulate: Count = 1
    """pieces of each process's part of the batch, whose gradients add up"""
    minutes: Positive | None = None
    """end the stage after this time even if `kimg` is not reached"""

    def check(self) -> None:
        for problem in self._problems():
            raise UserError(f"stage: {problem}")

    def _problems(self) -> Iterator[str]:
        side, most, unknown = self.resolution, self.resolution**2, {*self.frozen} - {*PARTS}
        if side < 4 or side & (side - 1):
            yield f"resolution {side} is not a power of two from 4 up; choose 16, 32, 64 or another"
        if (self.gradients == "partial") != (self.gradient_rays is not None):
            yield "gradient_rays go with partial gradients; give both or neither"
        if self.gradient_rays is not None and self.gradient_rays > most:
            yield f"gradient_rays is {self.gradient_rays}; it must be at most {most}"
        if self.batch % self.accumulate:
            pieces = f"{self.accumulate} equal pieces"
            yield f"batch {self.batch} does not divide into {pieces}; change one of them"
        if unknown:
            yield f"frozen names {', '.join(sorted(unknown))}; generators have {', '.join(PARTS)}"
        if self.warm_up_kimg >= self.kimg:
            yield (
                f"warm_up_kimg is {self.warm_up_kimg} and the whole stage {self.kimg} kimg, so its "
                "generator would not train; shorten the warm-up"
            )


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """Everything that fixes a training run but the machine.

    The defaults are the authors' settings where they are known.
    """

    label: ClassVar[str] = "training configuration"

    stages: tuple[Stage, ...]
    data: str = "heads"
    """heads or heads-cartoon (embedded datasets), or the path of a folder or zip of images"""
    start: str | None = None
    """model to start from, with its discriminators where they fit (transfer, Section 4.4)"""
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
    """cameras of generated images: from the generator's prior; from a prior that is learned
    (CAMPARI, Niemeyer & Geiger 2021); or from the labels of random images of the dataset"""
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
    """thousands of images over which it falls linearly to 0, from the start of the run, or of a
    stage with `restart_noise`"""
    share_fakes: bool = False
    """one set of generated images for both steps, the discriminators' and the generator's"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """autocast of implicit network and discriminators (sines and compositing stay float32); fp16,
    with loss scaling, for GPUs without bfloat16 such as V100 and T4"""
    seed: Seed = 0
    wandb: str | None = None
    """Weights & Biases project that receives the figures too; needs the package wandb"""
    alarm_kimg: NonNegative = 20.0
    """warn of collapse, flat or mirrored geometry and runaway R1 after this many thousand images"""
    stop_on_alarm: bool = False
    """an alarm ends the run, after a checkpoint"""
    log_steps: Count = 20
    """write a log line every Nth step"""
    sample_kimg: Positive = 10.0
    """thousands of images between sample sheets"""
    metrics: tuple[str, ...] = ()
    """FID and KID to measure (cips3d.metrics.fidelity), such as ["fd2k_heads"]"""
    metrics_kimg: Positive = 50.0
    """thousands of images between measurements; there is one at the end too"""
    inception_weights: str | None = None
    """file with torch-fidelity's Inception weights, which FID and KID otherwise download"""
    checkpoint_kimg: Positive = 10.0
    """thousands of images between checkpoints"""
    workers: Annotated[int, Ge(0), Le(MOST_WORKERS)] = 0
    """data loading processes per training process"""

    def check(self) -> None:
        for problem in itertools.chain(self._problems(), self._problems_of_architecture()):
            raise UserError(f"{self.label}: {problem}")

    def _problems(self) -> Iterator[str]:
        """Settings that do not go together."""
        if not self.stages:
            yield "no stages; give at least one"
        judges = self.discriminator, self.aux_discriminator
        for stage in self.stages:
            if any(stage.resolution not in d.channels for d in judges[: 1 + stage.auxiliary]):
                yield (
                    f"a discriminator has no width for the stage at {stage.resolution}; add it to "
                    "its channels"
                )
        frozen, blocks = self.frozen_discriminator_blocks, min(len(d.channels) for d in judges) - 1
        if frozen > blocks:
            yield f"frozen_discriminator_blocks is {frozen}; it must be at most {blocks}"
        if self.share_fakes and any(stage.accumulate > 1 for stage in self.stages):
            yield "share_fakes keeps a whole batch in memory; set accumulate=1 or share_fakes=false"
        if self.augment_target is not None and self.objective.game.compares:
            yield (
                "augment_target uses the sign of real logits, which the relativistic loss leaves "
                "free; set augment_target=null (in cips3d finetune, give --augment)"
            )
        if self.augment_target is not None and any(stage.augment for stage in self.stages):
            yield "augment_target adapts what a stage's augment fixes; give only one"
        used = judges[: 1 + any(stage.auxiliary for stage in self.stages)]
        # inversion would trust the predictions of an untrained head
        if any(d.pose_head != (self.objective.pose is not None) for d in used):
            yield (
                "objective.pose and the discriminators' pose_head go together; give all of them, "
                "or set objective.pose=null discriminator.pose_head=false "
                "aux_discriminator.pose_head=false"
            )
        for name, given, made in zip(DISCRIMINATORS, judges, self.judges.values(), strict=False):
            if given.code_numbers not in (0, made.code_numbers):
                yield (
                    f"{name}.code_numbers is {given.code_numbers}; leave it 0, since the "
                    "objective's code terms set it"
                )
        if self.cameras == "learned" and self.generator.poses.kind == "spherical":
            yield "cameras=learned needs poses of kind gaussian or uniform, not spherical"

    def _problems_of_architecture(self) -> Iterator[str]:
        """What the generator cannot do, and stages that would train nothing."""
        networks = self.generator.networks
        name, kind = networks.architecture, generator_class(networks.architecture)
        o = self.objective
        for term in (o.transmittance, o.opacity, o.convexity, o.shape_code):
            if not kind.has_density and term is not None:
                yield f"{name} has no density; set {term.label}=null"
        if not kind.has_density and (self.cameras == "learned" or self.objective.pose is not None):
            yield (
                f"{name} draws the same from every camera; set cameras=prior and "
                "objective.pose=null"
            )
        codes = (self.objective.appearance_code, self.objective.shape_code)
        for term in codes:
            if term is None:
                continue
            width = vars(networks).get(f"{term.part}_{'' if term.of == 'z' else 'style_'}dim", 0)
            if term.numbers > width:
                yield (
                    f"{term.label}.numbers is {term.numbers}, but {name}'s {term.part} code "
                    f"{term.of} has {width}; give at most that, or set {term.label}=null"
                )
        used = {"plain": "background", "field": "surroundings"}.get(networks.background)
        unused = {"aux_head", "aux_palette", "background", "surroundings"} - {used}
        trained = [part for part in kind.parts if part not in unused]
        for stage in self.stages:
            if stage.auxiliary and not kind.has_aux_image:
                yield f"{name} has no auxiliary image; set auxiliary=false"
            lacking = [part for part in stage.frozen if part not in kind.parts]
            if lacking:
                yield (
                    f"frozen names {', '.join(lacking)}, which {name} does not have; its networks "
                    f"are {', '.join(kind.parts)}"
                )
            if {*trained} <= {*stage.frozen} and self.cameras != "learned":
                yield (
                    f"the stage at {stage.resolution} freezes everything that makes its images; "
                    f"leave one of {', '.join(trained)} to train"
                )

    @property
    def judges(self) -> dict[str, DiscriminatorConfig]:
        """The main and the auxiliary discriminator, and what reads the shape code from geometry.

        With the heads that the code terms train.
        """
        appearance, shape = self.objective.appearance_code, self.objective.shape_code
        numbers = appearance.numbers if appearance else 0
        judges = {
            "main": replace(self.discriminator, code_numbers=numbers),
            "aux": replace(self.aux_discriminator, code_numbers=0),
        }
        if shape is not None:
            widths = self.discriminator.channels.items()
            channels = {side: min(READER_WIDTH, width) for side, width in widths}
            judges["geometry"] = DiscriminatorConfig(
                channels, downsample_first=True, code_numbers=shape.numbers
            )
        return judges

    @property
    def judges_cameras(self) -> bool:
        """Whether a discriminator sees the camera of each image besides its colours."""
        return self.discriminator.camera_label or self.aux_discriminator.camera_label


def with_minutes(config: TrainConfig, minutes: float) -> TrainConfig:
    """The same curriculum in a given time: half for the final resolution, half for those below."""
    final = [stage.resolution == config.stages[-1].resolution for stage in config.stages]
    half = minutes if all(final) else minutes / 2
    stages = zip(config.stages, final, strict=True)
    return replace(
        config,
        stages=tuple(replace(s, minutes=half / final.count(is_final)) for s, is_final in stages),
    )


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
