"""Training configurations: stages of the progressive curriculum (paper Section 4.1) and presets by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from cips3d.configuration import Configuration, check_range
from cips3d.errors import UserError
from cips3d.models.baselines import GENERATORS
from cips3d.models.config import GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.types import Sampling

#: Beyond these a number is a slip of the finger, which a machine would not survive.
MOST_BATCH, MOST_WORKERS = 65_536, 256
#: Parts of the generators that a stage can freeze.
GENERATOR_PARTS = tuple(dict.fromkeys(part for kind in GENERATORS.values() for part in kind.parts))


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
    frozen: tuple[str, ...] = ()
    """parts of the generator that do not train, such as nerf, shape_mapping and aux_head"""
    warm_up_kimg: float = 0.0
    """for this many thousand pictures only the discriminators train, such as new ones of a transferred generator"""
    from_average: bool = False
    """the stage starts from the averaged generator instead of the trained one"""
    gradients: Literal["full", "partial", "checkpointed"] = "full"
    """which rays carry gradients (cips3d.training.gradients): all; `gradient_rays` of them (Section 3.2); or all in the memory
    of a chunk, for one more forward pass"""
    gradient_rays: int | None = None
    """n_r, for partial gradients"""
    chunk: int | None = None
    """rays of each picture at a time, for partial and checkpointed gradients; by default what fits a quarter of the memory"""
    augment: float = 0.0
    """probability with which DiffAugment changes a picture before it is judged"""
    accumulate: int = 1
    """each process takes its part of the batch in so many pieces, whose gradients add up to one step"""
    minutes: float | None = None
    """end the stage after this time even if `kimg` is not reached (how long the demo takes on any machine)"""

    def __post_init__(self) -> None:
        power = self.resolution >= 4 and self.resolution & (self.resolution - 1) == 0
        if not power:
            raise UserError(
                f"stage: resolution {self.resolution} is not a power of two from 4 up; choose 16, 32, 64 or another"
            )
        check_range(self, "stage", "batch", least=1, most=MOST_BATCH)
        check_range(self, "stage", "accumulate chunk", least=1)
        check_range(self, "stage", "gradient_rays", least=1, most=self.resolution**2)
        check_range(self, "stage", "kimg generator_lr discriminator_lr minutes", above=0)
        check_range(self, "stage", "fade_kimg warm_up_kimg", least=0)
        check_range(self, "stage", "augment", least=0, most=1)
        if self.batch % self.accumulate:
            raise UserError(
                f"stage: batch {self.batch} cannot be taken in {self.accumulate} equal pieces; change one of them"
            )
        unknown = sorted(set(self.frozen) - set(GENERATOR_PARTS))
        if unknown:
            raise UserError(
                f"stage: frozen names {', '.join(unknown)}; generators' parts are {', '.join(GENERATOR_PARTS)}"
            )
        if (self.gradients == "partial") != (self.gradient_rays is not None):
            raise UserError(
                "stage: gradient_rays goes with gradients partial, and the other way round; give both or neither"
            )
        if self.warm_up_kimg >= self.kimg:
            raise UserError(
                f"stage: its generator would not train: warm_up_kimg is {self.warm_up_kimg}, the whole stage {self.kimg} kimg"
            )


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """Everything that fixes a training run but the machine. The defaults are the authors' settings where they are known."""

    stages: tuple[Stage, ...]
    data: str = "heads"
    """"heads" or "heads-cartoon" (the embedded dataset), or the path of a folder or zip of pictures"""
    start: str | None = None
    """model whose weights the generator starts from, and whose discriminators' theirs, where they lie beside it and fit; for
    transfer (Section 4.4)"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    aux_discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(
            {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 128, 256: 64}, downsample_first=True
        )
    )
    frozen_discriminator_blocks: int = 0
    """so many of each discriminator's blocks, from the picture on, do not train (FreezeD, Mo et al. 2020)"""
    sampling: Sampling | None = None
    """samples per ray in training; by default as many as the generator renders with"""
    cameras: Literal["prior", "learned", "labels"] = "prior"
    """where generated pictures are seen from: the generator's camera prior; the same with a mean and spread that are trained
    (CAMPARI, Niemeyer & Geiger 2021); or the camera of a random picture of the dataset, which must have labels"""
    mirror: bool = True
    """show real pictures mirrored half of the time"""
    loss: Literal["logistic", "relativistic"] = "logistic"
    """the paper's non-saturating logistic loss, or each generated picture against a real one (R3GAN, Huang et al. 2024)"""
    r1_gamma: float = 10.0
    """weight γ of R1, ½γ|∂D/∂x|² at real pictures; 0 for none"""
    r2_gamma: float = 0.0
    """weight of R2, the same at generated pictures, which goes with the relativistic loss; 0 for none"""
    r1_every: int = 1
    """lazy R1 and R2: every so many steps, times as strong"""
    augment_target: float | None = None
    """adapts the probability of DiffAugment such that the mean sign of the discriminator's real logits stays at this value
    (StyleGAN2-ADA, Karras et al. 2020: 0.6); stages then give no probability of their own"""
    augment_kimg: float = 500.0
    """thousands of pictures in which an adapted probability can go from 0 to 1"""
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
    pose_weight: float = 0.0
    """weight of the error (mean square, radians) with which discriminators that have a `pose_head` tell the yaw and pitch of
    generated pictures, for both sides (pi-GAN's released code: 15); 0 for none"""
    share_fakes: bool = False
    """one set of generated pictures for the discriminator's and the generator's step, instead of a fresh one for each"""
    precision: Literal["no", "bf16"] = "no"
    """autocast of implicit network and discriminators (sines and compositing stay float32)"""
    seed: int = 0
    wandb: str | None = None
    """Weights & Biases project that the figures go to as well; needs the package wandb"""
    alarm_kimg: float = 20.0
    """after this many thousand pictures, collapse, flat or mirrored geometry and runaway R1 raise an alarm line"""
    stop_on_alarm: bool = False
    """an alarm ends the run, after a checkpoint"""
    log_steps: int = 20
    """a line in log.jsonl every so many steps"""
    sample_kimg: float = 10.0
    """a sample grid every so many thousand pictures"""
    metrics: tuple[str, ...] = ()
    """FID and KID to measure on the way and at the end, by name (see cips3d.metrics.fidelity), such as ["fd2k_heads"]"""
    metrics_kimg: float = 50.0
    """these every so many thousand pictures"""
    inception_weights: str | None = None
    """file with the weights of torch-fidelity's Inception, which would else be downloaded for FID and KID"""
    checkpoint_kimg: float = 10.0
    """a checkpoint every so many thousand pictures"""
    workers: int = 0
    """data loading processes per training process"""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("training configuration: no stages; give at least one")
        for stage in self.stages:
            entries = (
                self.discriminator.channels,
                self.aux_discriminator.channels if stage.auxiliary else {stage.resolution: 1},
            )
            if not all(stage.resolution in entry for entry in entries):
                raise UserError(
                    f"training configuration: a discriminator has no width for the stage at {stage.resolution}"
                )
        self._check_combinations()
        self._check_architecture()
        kind = "training configuration"
        blocks = min(len(d.channels) for d in (self.discriminator, self.aux_discriminator)) - 1
        amounts = "r1_gamma r2_gamma transmittance_weight pose_weight alarm_kimg density_noise density_noise_kimg"
        check_range(self, kind, amounts, least=0)
        check_range(self, kind, "log_steps r1_every", least=1)
        check_range(
            self, kind, "augment_kimg grad_clip sample_kimg metrics_kimg checkpoint_kimg", above=0
        )
        check_range(self, kind, "adam_beta2 ema_decay", least=0, below=1)
        check_range(self, kind, "augment_target", above=-1, below=1)
        check_range(self, kind, "transmittance_target", least=0, most=1)
        check_range(self, kind, "frozen_discriminator_blocks", least=0, most=blocks)
        check_range(self, kind, "seed", least=0, most=2**63 - 1)
        check_range(self, kind, "workers", least=0, most=MOST_WORKERS)

    def _check_combinations(self) -> None:
        if self.share_fakes and any(stage.accumulate > 1 for stage in self.stages):
            raise UserError(
                "training configuration: share_fakes keeps a whole batch in memory; give accumulate 1 or no share_fakes"
            )
        if (
            self.augment_target is not None and self.loss == "relativistic"
        ):  # which leaves the logits' zero free
            raise UserError(
                "training configuration: augment_target goes by the sign of real logits, which loss=relativistic leaves free; "
                "set augment_target=null (of cips3d finetune: give --augment)"
            )
        if self.augment_target is not None and any(stage.augment for stage in self.stages):
            raise UserError(
                "training configuration: augment_target adapts what a stage's augment fixes; give only one of them"
            )
        heads = self.discriminator.pose_head, self.aux_discriminator.pose_head
        judging = heads[: 1 + any(stage.auxiliary for stage in self.stages)]
        if any(
            told != bool(self.pose_weight) for told in judging
        ):  # an untrained head would tell inversion anything
            raise UserError(
                "training configuration: pose_weight and the discriminators' pose_head go together; give all of them, or set "
                "pose_weight=0 discriminator.pose_head=false aux_discriminator.pose_head=false"
            )
        if self.cameras == "learned" and self.generator.poses.kind == "spherical":
            raise UserError(
                "training configuration: cameras learned needs poses of kind gaussian or uniform, not spherical"
            )

    def _check_architecture(self) -> None:
        """Refuses what the generator cannot do, and stages that would train nothing."""
        name = self.generator.architecture
        parts = GENERATORS[name].parts
        if "nerf" not in parts and self.transmittance_weight:
            raise UserError(
                f"training configuration: {name} has no density; give transmittance_weight=0"
            )
        if "nerf" not in parts and (self.cameras == "learned" or self.pose_weight):
            raise UserError(
                f"training configuration: {name} shows the same from every camera; give cameras=prior and pose_weight=0"
            )
        without = (
            {"aux_head"} if self.generator.background == "plain" else {"aux_head", "background"}
        )
        shown = [part for part in parts if part not in without]
        for stage in self.stages:
            if stage.auxiliary and "aux_head" not in parts:
                raise UserError(
                    f"training configuration: {name} has no auxiliary picture; give auxiliary=false"
                )
            lacking = [part for part in stage.frozen if part not in parts]
            if lacking:
                raise UserError(
                    f"training configuration: frozen names {', '.join(lacking)}, which {name} does not have; "
                    f"its parts are {', '.join(parts)}"
                )
            if set(shown) <= set(stage.frozen) and self.cameras != "learned":
                raise UserError(
                    f"training configuration: the stage at {stage.resolution} freezes all that its pictures are made with; "
                    f"leave one of {', '.join(shown)} to train"
                )

    @property
    def judges_cameras(self) -> bool:
        """Whether a discriminator sees the camera of each picture besides its colours."""
        return self.discriminator.camera_label or self.aux_discriminator.camera_label


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


def check_batches(stages: Iterable[Stage], processes: int, source: str) -> None:
    """Raises UserError for the first stage whose batch does not divide among so many processes, and each part into its pieces.

    Args:
        source: what says how many, for the error line.
    """
    for stage in stages:
        if stage.batch % (processes * stage.accumulate):
            pieces = "" if stage.accumulate == 1 else f" of {stage.accumulate} pieces each"
            place = f"batch {stage.batch} of the stage at {stage.resolution}"
            raise UserError(
                f"{source}: {place} does not divide among {processes} processes{pieces}; give other numbers"
            )
