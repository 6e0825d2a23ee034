"""Training configurations by name: what each reproduces, or the machine that it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import nn

from cips3d.camera import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.config import RENDERING_FIELDS, GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.types import Sampling
from cips3d.training.recipe import Stage, TrainConfig

#: Weight of the pose loss, where there is one (pi-GAN's released code).
POSE_WEIGHT = 15.0
#: Of pi-GAN's generator on the embedded heads; with CIPS-3D's rate it does not get beyond speckled balls.
PI_GAN_RATE = 1e-4


def _heads_32() -> TrainConfig:
    """The small preset: the embedded heads at 16² and 32² on a laptop's CPU."""
    return TrainConfig(
        data="heads",
        generator=GeneratorConfig(
            shape_dim=64, appearance_dim=64, shape_style_dim=64, appearance_style_dim=64,
            shape_mapping_layers=3, appearance_mapping_layers=3,
            nerf_width=48, density_gain=160.0, density_blob=240.0, feature_dim=32,
            inr_width=64, inr_blocks=4, rgb_from_block=1, residual_from_block=2,
            background="plain", coarse_samples=16, fine_samples=16, resolution=32,
        ),
        sampling=Sampling(6, 6),
        discriminator=DiscriminatorConfig({4: 96, 8: 64, 16: 32, 32: 16}, pose_head=True),
        aux_discriminator=DiscriminatorConfig({4: 48, 8: 32, 16: 24, 32: 16}, downsample_first=True, pose_head=True),
        mirror=False,
        r1_gamma=0.2, r1_every=16,
        grad_clip=None,
        ema_decay=0.995,
        density_noise=0.0,
        transmittance_weight=0.5, transmittance_target=0.5,
        pose_weight=POSE_WEIGHT,
        share_fakes=True,
        stages=(
            Stage(16, kimg=60, batch=16, generator_lr=5e-4, discriminator_lr=3e-3),
            Stage(32, kimg=90, batch=32, generator_lr=4e-4, discriminator_lr=4e-3, fade_kimg=2),
            Stage(32, kimg=50, batch=32, generator_lr=2e-4, discriminator_lr=2e-3),
        ),
    )  # fmt: skip


def without_pose_loss(config: TrainConfig) -> TrainConfig:
    """The run without the pose loss and what asks for it."""
    return replace(
        config, pose_weight=0.0, discriminator=replace(config.discriminator, pose_head=False),
        aux_discriminator=replace(config.aux_discriminator, pose_head=False),
    )  # fmt: skip


def for_a_few_minutes(config: TrainConfig) -> TrainConfig:
    """The run as it comes farthest in minutes: without the pose loss, and from a softer body (docs/results.md has figures).

    What both do for faces takes tens of thousands of pictures.
    """
    softer = replace(config.generator, density_gain=40.0, density_blob=60.0)
    return replace(without_pose_loss(config), generator=softer)


def _heads_32_pi_gan() -> TrainConfig:
    """The preset heads-32 with pi-GAN: its 8 layers and view direction, 112,819 parameters instead of 110,197."""
    base = _heads_32_with(architecture="pi-gan", nerf_layers=8, nerf_width=60, view_direction=True)
    return replace(
        base, stages=tuple(replace(stage, generator_lr=PI_GAN_RATE) for stage in base.stages)
    )


def _heads_32_cips_2d() -> TrainConfig:
    """The preset heads-32 with the 2D CIPS: its 14 layers, a tRGB after every second; 109,093 parameters instead of 110,197."""
    return _heads_32_with(
        architecture="cips-2d",
        feature_dim=56,
        inr_width=56,
        inr_blocks=7,
        rgb_from_block=0,
        residual_from_block=7,
    )


def _heads_32_with(**changes: Any) -> TrainConfig:
    """The preset heads-32 with another generator, without what asks for an auxiliary picture or, of cips-2d, a density."""
    small = _heads_32()
    generator = replace(small.generator, **changes)
    flat = generator.architecture == "cips-2d"
    return replace(
        small,
        generator=generator,
        transmittance_weight=0.0 if flat else small.transmittance_weight,
        discriminator=replace(small.discriminator, pose_head=not flat),
        pose_weight=0.0 if flat else small.pose_weight,
        stages=tuple(replace(stage, auxiliary=False) for stage in small.stages),
    )


def _heads_64() -> TrainConfig:
    """The preset heads-32, continued at 64² with a block more in each discriminator."""
    small = _heads_32()
    return replace(
        small,
        generator=replace(small.generator, resolution=64),
        discriminator=replace(
            small.discriminator, channels={**small.discriminator.channels, 64: 16}
        ),
        aux_discriminator=replace(
            small.aux_discriminator, channels={**small.aux_discriminator.channels, 64: 16}
        ),
        stages=(
            *small.stages,
            Stage(64, kimg=30, batch=32, generator_lr=2e-4, discriminator_lr=2e-3, fade_kimg=4),
            Stage(64, kimg=12, batch=32, generator_lr=1e-4, discriminator_lr=1e-3),
        ),
    )


def _ffhq(resolution: int) -> TrainConfig:
    """The authors' released settings (8 GPUs × 4 pictures) up to that resolution.

    80,000 steps at 32², 200,000 at 64², 800,000 at each resolution from there. The stage at 256² starts from the average. In it
    and above, radiance field, its mapping and the auxiliary head are frozen, there is no auxiliary discriminator, DiffAugment
    changes every picture and the new block fades in over 10,000 steps. Above 256², where nothing was released, stages are like
    the one at 256², with 256² rays that carry gradients, the authors' setting for every resolution.
    """
    first = (Stage(32, kimg=2_560), Stage(64, kimg=6_400), Stage(128, kimg=25_600))
    late = [
        Stage(
            side, kimg=25_600, generator_lr=1e-4, discriminator_lr=5e-4, fade_kimg=320, auxiliary=False, augment=1.0,
            frozen=("nerf", "shape_mapping", "aux_head"), from_average=side == 256,
            gradients="partial" if side > 256 else "full", gradient_rays=256**2 if side > 256 else None,
        )
        for side in (256, 512, 1024)
    ]  # fmt: skip
    return TrainConfig(
        data="datasets/ffhq.zip",
        generator=GeneratorConfig(resolution=resolution),
        stages=tuple(stage for stage in (*first, *late) if stage.resolution <= resolution),
        precision="bf16",
        workers=3,
        sample_kimg=50.0,
        checkpoint_kimg=50.0,
    )


def _ffhq_512_paper() -> TrainConfig:
    """The paper's text (Sections 3.2 and 4.1) where it differs from the released settings.

    64² up to 512² with the auxiliary discriminator, all parts trained, 400² gradient rays at 512²; tRGB after every block, no
    residual additions, no tanh. The text gives no lengths: they are the released ones.
    """
    sides = {64: 8_960, 128: 25_600, 256: 25_600, 512: 25_600}
    return TrainConfig(
        data="datasets/ffhq.zip",
        generator=GeneratorConfig(
            resolution=512, rgb_from_block=0, residual_from_block=9, rgb_tanh=False
        ),
        aux_discriminator=DiscriminatorConfig(
            {4: 256, 8: 256, 16: 256, 32: 256, 64: 256, 128: 128, 256: 64, 512: 32},
            downsample_first=True,
        ),
        stages=tuple(
            Stage(side, kimg=kimg, gradients="partial", gradient_rays=400**2)
            if side == 512
            else Stage(side, kimg=kimg)
            for side, kimg in sides.items()
        ),
        precision="bf16",
        workers=3,
        sample_kimg=50.0,
        checkpoint_kimg=50.0,
    )


def _afhq_cats_256() -> TrainConfig:
    """Cats at 256²: the released settings, with pi-GAN's camera prior for cats and an augmentation that adapts.

    The paper reaches this dataset by transfer from FFHQ only. With its 5,000 pictures a discriminator soon knows them by heart,
    hence the adapted augmentation (StyleGAN2-ADA); the stages are a quarter as long as those of FFHQ.
    """
    faces = _ffhq(256)
    poses = PoseDistribution("uniform", yaw_std=0.5, pitch_std=0.4)
    return replace(
        faces,
        data="datasets/afhq-cats.zip",
        generator=replace(faces.generator, poses=poses),
        stages=tuple(replace(stage, kimg=stage.kimg / 4, augment=0.0) for stage in faces.stages),
        augment_target=0.6,
    )


def _table_2(
    view_direction: bool, embedding: Literal["learned", "fixed"], auxiliary: bool
) -> TrainConfig:
    """One row of Table 2: FFHQ at 64²."""
    base = _ffhq(64)
    return replace(
        base,
        generator=replace(base.generator, view_direction=view_direction, embedding=embedding),
        stages=tuple(replace(stage, auxiliary=auxiliary) for stage in base.stages),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "heads-32": _heads_32,
    "heads-32-pi-gan": _heads_32_pi_gan,
    "heads-32-cips-2d": _heads_32_cips_2d,
    "heads-64": _heads_64,
    **{f"ffhq-{side}": partial(_ffhq, side) for side in (64, 128, 256, 512, 1024)},
    "ffhq-512-paper": _ffhq_512_paper,
    "afhq-cats-256": _afhq_cats_256,
    "table-2-direction": partial(_table_2, view_direction=True, embedding="fixed", auxiliary=False),
    "table-2-fixed": partial(_table_2, view_direction=False, embedding="fixed", auxiliary=False),
    "table-2-learned": partial(
        _table_2, view_direction=False, embedding="learned", auxiliary=False
    ),
    "table-2-full": partial(_table_2, view_direction=False, embedding="learned", auxiliary=True),
}


def preset(name: str) -> TrainConfig:
    """The configuration of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: no preset named {name}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


#: What makes V_r, depth and opacity, which transfer leaves as they are.
NERF_PARTS = ("nerf", "shape_mapping", "background", "aux_head")
#: Thousands of pictures for which the discriminators train alone at first: those that the model came with, and new ones.
WARM_UP_KIMG = (1.0, 3.0)


def transfer(
    generator: GeneratorConfig,
    model: str,
    data: str,
    discriminators: nn.ModuleDict | None,
    kimg: float,
    name: str | None = None,
) -> TrainConfig:
    """Transfer to another domain (Section 4.4): one stage at the model's resolution with everything that makes V_r frozen.

    The augmentation adapts (StyleGAN2-ADA), since the new pictures may be few, at the pace that such a short run needs (theirs,
    when it resumes: 100 thousand pictures).

    Args:
        generator: the model's configuration.
        model: its name, as for `cips3d.load`.
        data: the new pictures.
        discriminators: those that it was trained against, if there are any.
        kimg: length, thousands of pictures shown; at most the first quarter of it warms the discriminators up.
        name: of the preset whose rates and, without discriminators, whose discriminators are taken; by default the first one
            with the model's networks and resolution.

    Raises:
        UserError: if the model has no implicit network, or no preset fits it.
    """
    if generator.architecture != "cips-3d":
        raise UserError(
            f"{model}: is a {generator.architecture}; only cips-3d has a NeRF that can stay while the rest learns"
        )
    if name is None:
        name = next((key for key, make in PRESETS.items() if _fits(make(), generator)), None)
    if name is None:
        raise UserError(
            f"{model}: its networks are those of no preset; name one for rates and discriminators with --preset"
        )
    base = preset(name)
    side = generator.resolution
    stage = next(
        (stage for stage in base.stages if stage.resolution == side), None
    )  # the first has the rates of learning anew
    if stage is None:
        raise UserError(f"--preset {name}: has no stage at the model's {side}²; choose another")
    known: dict[str, Any] = {}
    if discriminators is not None:
        configs = [
            part.config
            for part in discriminators.values()
            if isinstance(part, ProgressiveDiscriminator)
        ]
        told = POSE_WEIGHT if configs[0].pose_head else 0.0
        known = {"discriminator": configs[0], "aux_discriminator": configs[1], "pose_weight": told}
    frozen = tuple(
        part for part in NERF_PARTS if part != "background" or generator.background == "plain"
    )
    stage = replace(
        stage, kimg=kimg, frozen=frozen, auxiliary=False, fade_kimg=0.0, augment=0.0, minutes=None, from_average=False,
        warm_up_kimg=min(WARM_UP_KIMG[discriminators is None], kimg / 4),
    )  # fmt: skip
    return replace(
        base, stages=(stage,), data=data, start=model, generator=generator, cameras="prior", augment_target=0.6,
        augment_kimg=min(100.0, kimg), density_noise=0.0, transmittance_weight=0.0, sample_kimg=5.0, alarm_kimg=10.0,
        metrics=(), **known,
    )  # fmt: skip


def _fits(config: TrainConfig, generator: GeneratorConfig) -> bool:
    """Whether a preset trains such networks, whatever is sampled of them, at the generator's resolution."""
    same = (
        replace(config.generator, **{name: getattr(generator, name) for name in RENDERING_FIELDS})
        == generator
    )
    return same and any(stage.resolution == generator.resolution for stage in config.stages)
