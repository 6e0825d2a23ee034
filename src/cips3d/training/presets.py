"""Training configurations by name: what each reproduces, or the machine it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from cips3d.camera import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.config import Cips3dNetworks, Embedding, GeneratorConfig, NetworkConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.peers.cips import CipsNetworks
from cips3d.models.peers.pi_gan import PiGanNetworks
from cips3d.models.registry import generator_class
from cips3d.training.objective import (
    R1,
    AppearanceCode,
    Objective,
    Pose,
    ShapeCode,
    Transmittance,
)
from cips3d.training.recipe import Stage, TrainConfig

#: The authors' learning rates of generator and discriminators, by resolution.
RELEASED_RATES = {32: (2e-4, 2e-3), 64: (2e-4, 2e-3), 128: (1e-4, 1e-3), 256: (1e-4, 5e-4)}
#: FID as in the paper's Table 2 and Fig. 8, 2,048 generated against 2,048 real images.
PAPER_METRICS = ("fid2048",)
#: pi-GAN's learning rate on the embedded heads; with CIPS-3D's it stops at speckled balls.
PI_GAN_RATE = 1e-4


# ---------------------------------------------------------------- the embedded heads
def _heads_32() -> TrainConfig:
    """The small preset: the embedded heads at 16² and 32² on a laptop's CPU."""
    networks = Cips3dNetworks(
        shape_dim=64, appearance_dim=64, shape_style_dim=64, appearance_style_dim=64,
        shape_mapping_layers=3, appearance_mapping_layers=3,
        nerf_width=48, density_gain=160.0, density_blob=240.0, feature_dim=32,
        inr_width=64, inr_blocks=4, rgb_from_block=1, residual_from_block=2, background="plain",
        aux_palette=True,
    )  # fmt: skip
    return TrainConfig(
        data="heads",
        generator=GeneratorConfig(networks, Sampling(16, 16), aux_luminance=True, resolution=32),
        sampling=Sampling(6, 6),
        discriminator=DiscriminatorConfig({4: 96, 8: 64, 16: 32, 32: 16}, pose_head=True),
        aux_discriminator=DiscriminatorConfig(
            {4: 48, 8: 32, 16: 24, 32: 16}, downsample_first=True, pose_head=True
        ),
        objective=Objective(
            pose=Pose(),
            r1=R1(0.2, every=16),
            transmittance=Transmittance(0.5, target=0.5),
            appearance_code=AppearanceCode(1.0),
            shape_code=ShapeCode(),
        ),
        mirror=False,
        grad_clip=None,
        ema_decay=0.995,
        density_noise=0.0,
        share_fakes=True,
        stages=(
            Stage(16, kimg=60, batch=16, generator_lr=5e-4, discriminator_lr=3e-3),
            Stage(32, kimg=90, batch=32, generator_lr=4e-4, discriminator_lr=4e-3, fade_kimg=2),
            Stage(32, kimg=50, batch=32, generator_lr=2e-4, discriminator_lr=2e-3),
        ),
    )


def without_pose_loss(config: TrainConfig) -> TrainConfig:
    """The run without the pose term and the heads that it trains."""
    return replace(
        config,
        objective=replace(config.objective, pose=None),
        discriminator=replace(config.discriminator, pose_head=False),
        aux_discriminator=replace(config.aux_discriminator, pose_head=False),
    )


def without_code_terms(config: TrainConfig) -> TrainConfig:
    """The run without the code terms and what supports them in the auxiliary image."""
    networks = config.generator.networks
    if isinstance(networks, Cips3dNetworks):
        networks = replace(networks, aux_palette=False)
    return replace(
        config,
        generator=replace(config.generator, networks=networks, aux_luminance=False),
        objective=replace(config.objective, appearance_code=None, shape_code=None),
    )


def for_a_few_minutes(config: TrainConfig) -> TrainConfig:
    """The run without the pose loss, and from a softer body: further in minutes.

    What both do for faces takes tens of thousands of images (docs/results.md has figures).
    """
    networks = replace(config.generator.networks, density_gain=40.0, density_blob=60.0)
    softer = replace(config.generator, networks=networks)
    return replace(without_pose_loss(config), generator=softer)


def _heads_32_pi_gan() -> TrainConfig:
    """heads-32 with pi-GAN's 8 layers and view direction; 112,819 parameters against 116,437."""
    networks = PiGanNetworks(
        shape_dim=64, appearance_dim=64, shape_style_dim=64, nerf_width=60, density_gain=160.0,
        density_blob=240.0, background="plain",
    )  # fmt: skip
    base = without_code_terms(_heads_32())
    return _with(networks, base, auxiliary=False, generator_lr=PI_GAN_RATE)


def _heads_32_cips_2d() -> TrainConfig:
    """heads-32 with CIPS's 14 layers, tRGB after every second; 109,093 parameters."""
    networks = CipsNetworks(
        shape_dim=64, appearance_dim=64, appearance_style_dim=64, appearance_mapping_layers=3,
        feature_dim=56, inr_width=56, rgb_tanh=True,
    )  # fmt: skip
    base = without_code_terms(without_pose_loss(_heads_32()))
    flat = replace(base, objective=replace(base.objective, transmittance=None))
    return _with(networks, flat, auxiliary=False)


def _with(networks: NetworkConfig, base: TrainConfig, **changes: Any) -> TrainConfig:
    """A run with another generator, and with changes of all stages."""
    stages = tuple(replace(stage, **changes) for stage in base.stages)
    return replace(base, generator=replace(base.generator, networks=networks), stages=stages)


def _heads_64() -> TrainConfig:
    """heads-32, continued at 64² with one more block in each discriminator."""
    small = _heads_32()
    main, aux = small.discriminator, small.aux_discriminator
    return replace(
        small,
        generator=replace(small.generator, resolution=64),
        discriminator=replace(main, channels={**main.channels, 64: 16}),
        aux_discriminator=replace(aux, channels={**aux.channels, 64: 16}),
        stages=(
            *small.stages,
            Stage(64, kimg=30, batch=32, generator_lr=2e-4, discriminator_lr=2e-3, fade_kimg=4),
            Stage(64, kimg=12, batch=32, generator_lr=1e-4, discriminator_lr=1e-3),
        ),
    )


# ---------------------------------------------------------------- the paper's datasets
def _large(resolution: int, stages: tuple[Stage, ...], **changes: Any) -> TrainConfig:
    """Settings that all large presets share."""
    changes = {"generator": GeneratorConfig(resolution=resolution)} | changes
    return TrainConfig(
        stages, data="datasets/ffhq.zip", precision="bf16", workers=3, sample_kimg=50.0,
        checkpoint_kimg=50.0, **changes,
    )  # fmt: skip


def _released(resolution: int, kimg: float, **changes: Any) -> Stage:
    """A stage at the authors' rates; those at 256² above it, where nothing was released."""
    rates = RELEASED_RATES[min(256, resolution)]
    return Stage(resolution, kimg, generator_lr=rates[0], discriminator_lr=rates[1], **changes)


def _ffhq(resolution: int) -> TrainConfig:
    """The authors' released settings (8 GPUs × 4 images) up to that resolution.

    80,000 steps at 32², 200,000 at 64², 800,000 at each resolution above. The density noise starts
    anew at 64² and 128². The stage at 256² starts from the average. From it on, radiance field, its
    mapping and the auxiliary head are frozen, there is no auxiliary discriminator, DiffAugment
    changes every image and the new block fades in over 10,000 steps. Nothing was released above
    256²: those stages are like the one at 256², with 256² gradient rays, the authors' setting for
    every resolution.
    """
    first = (
        _released(32, 2_560),
        _released(64, 6_400, restart_noise=True),
        _released(128, 25_600, restart_noise=True),
    )
    late = [
        _released(
            side, 25_600, fade_kimg=320, auxiliary=False, augment=1.0,
            frozen=("nerf", "shape_mapping", "aux_head"), from_average=side == 256,
            gradients="partial" if side > 256 else "full",
            gradient_rays=256**2 if side > 256 else None,
        )
        for side in (256, 512, 1024)
    ]  # fmt: skip
    stages = tuple(stage for stage in (*first, *late) if stage.resolution <= resolution)
    return _large(resolution, stages)


def _ffhq_512_paper() -> TrainConfig:
    """The paper's text (Sections 3 and 4.1, Fig. 8), and the released settings where it is silent.

    64² up to 512² with the auxiliary discriminator, all networks trained, 400² gradient rays at
    512²; a learned embedding, tRGB after every block, no residual additions, no tanh; StyleGAN2's
    discriminators, the auxiliary one with fewer channels; no mirrored images, density noise or
    clipped gradients. docs/paper-to-code.md lists what the text leaves open.
    """
    stages = (
        _released(64, 8_960),
        _released(128, 25_600),
        _released(256, 25_600),
        _released(512, 25_600, gradients="partial", gradient_rays=400**2),
    )
    networks = Cips3dNetworks(
        embedding="learned", rgb_from_block=0, residual_from_block=9, rgb_tanh=False
    )
    widths = {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 128, 256: 64, 512: 32}
    return _large(
        512, stages, generator=GeneratorConfig(networks, resolution=512),
        discriminator=DiscriminatorConfig(stddev_group=4),
        aux_discriminator=DiscriminatorConfig(widths, stddev_group=4),
        mirror=False, density_noise=0.0, grad_clip=None, metrics=PAPER_METRICS,
    )  # fmt: skip


def _afhq_cats_256() -> TrainConfig:
    """Cats at 256²: the released settings, pi-GAN's camera prior for cats, adapted augmentation.

    The paper reaches this dataset by transfer from FFHQ only. A discriminator soon memorises its
    5,000 images, so augmentation adapts (StyleGAN2-ADA). Stages are a quarter as long as FFHQ's.
    """
    faces = _ffhq(256)
    poses = PoseDistribution("uniform", yaw_std=0.5, pitch_std=0.4)
    generator = replace(faces.generator, poses=poses)
    stages = tuple(replace(stage, kimg=stage.kimg / 4, augment=0.0) for stage in faces.stages)
    changes = {"data": "datasets/afhq-cats.zip", "generator": generator, "augment_target": 0.6}
    return replace(faces, stages=stages, **changes)


def _table_2(view_direction: bool, embedding: Embedding, auxiliary: bool) -> TrainConfig:
    """One row of Table 2: FFHQ at 64²."""
    networks = Cips3dNetworks(view_direction=view_direction, embedding=embedding)
    return replace(_with(networks, _ffhq(64), auxiliary=auxiliary), metrics=PAPER_METRICS)


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "heads-32": _heads_32,
    "heads-32-pi-gan": _heads_32_pi_gan,
    "heads-32-cips-2d": _heads_32_cips_2d,
    "heads-64": _heads_64,
    **{f"ffhq-{side}": partial(_ffhq, side) for side in (64, 128, 256, 512, 1024)},
    "ffhq-512-paper": _ffhq_512_paper,
    "afhq-cats-256": _afhq_cats_256,
    "table-2-direction": partial(_table_2, True, "fixed", False),
    "table-2-fixed": partial(_table_2, False, "fixed", False),
    "table-2-learned": partial(_table_2, False, "learned", False),
    "table-2-full": partial(_table_2, False, "learned", True),
}


def preset(name: str) -> TrainConfig:
    """The configuration of that name; raises UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"--preset: no preset named {name}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


# ---------------------------------------------------------------- transfer
#: Thousands of images for which the discriminators first train alone: the model's own, or new ones.
WARM_UP_KIMG = (1.0, 3.0)


def transfer(
    generator: GeneratorConfig,
    model: str,
    data: str,
    discriminators: nn.ModuleDict | None,
    kimg: float,
    name: str | None = None,
) -> TrainConfig:
    """Transfer to another domain (Section 4.4): one stage with everything that makes V_r frozen.

    The augmentation adapts (StyleGAN2-ADA), since the new images may be few, at the pace of resumed
    runs there (100 thousand images) or faster.

    Args:
        generator: the model's configuration.
        model: its name, as for `cips3d.load`.
        data: the new images.
        discriminators: those that it was trained against, if known.
        kimg: length, thousands of images; at most its first quarter warms the discriminators up.
        name: preset with the learning rates and, if none are known, the discriminators; by default
            the first one with the model's networks and resolution.

    Raises:
        UserError: if the model's shape and appearance are not separate, or no preset fits it.
    """
    networks, side = generator.networks, generator.resolution
    geometry = generator_class(networks.architecture).geometry_parts
    if not geometry:
        raise UserError(
            f"{model}: is a {networks.architecture}, whose shape cannot stay while the rest "
            "learns; give a cips-3d"
        )
    if name is None:
        made = {key: make() for key, make in PRESETS.items()}
        alike = [key for key, config in made.items() if _alike(config.generator.networks, networks)]
        name = next((key for key in alike if _first_stage(made[key], side)), None)
    if name is None:
        raise UserError(
            f"{model}: no preset has its networks; name one for rates and discriminators with "
            "--preset"
        )
    base = preset(name)
    stage = _first_stage(base, side)
    if stage is None:
        raise UserError(f"--preset {name}: has no stage at the model's {side}²; choose another")
    judges, pose = [base.discriminator, base.aux_discriminator], base.objective.pose
    code = base.objective.appearance_code
    if discriminators is not None:
        parts = discriminators.values()
        judges = [part.config for part in parts if isinstance(part, ProgressiveDiscriminator)]
        pose = Pose() if judges[0].pose_head else None
        numbers = judges[0].code_numbers
        code = AppearanceCode(numbers=numbers) if numbers else None
        judges = [replace(judge, code_numbers=0) for judge in judges]
    plain = networks.background == "plain"
    stage = replace(
        stage, kimg=kimg, warm_up_kimg=min(WARM_UP_KIMG[discriminators is None], kimg / 4),
        frozen=(*geometry, "aux_head") if plain else ("nerf", "shape_mapping", "aux_head"),
        auxiliary=False, fade_kimg=0.0, augment=0.0, minutes=None, from_average=False,
    )  # fmt: skip
    return replace(
        base, stages=(stage,), data=data, start=model, generator=generator,
        discriminator=judges[0], aux_discriminator=judges[1],
        objective=replace(
            base.objective, pose=pose, transmittance=None, opacity=None, appearance_code=code,
            shape_code=None
        ),
        cameras="prior", augment_target=0.6, augment_kimg=min(100.0, kimg), density_noise=0.0,
        sample_kimg=5.0, alarm_kimg=10.0, metrics=(),
    )  # fmt: skip


def _alike(a: NetworkConfig, b: NetworkConfig) -> bool:
    """Whether networks are the same but for the auxiliary head, which plays no part in transfer."""
    return vars(a) | {"aux_palette": None} == vars(b) | {"aux_palette": None}


def _first_stage(config: TrainConfig, resolution: int) -> Stage | None:
    """The first stage at a resolution, which has the rates of learning anew."""
    return next((stage for stage in config.stages if stage.resolution == resolution), None)
