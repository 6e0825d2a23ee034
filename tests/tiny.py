"""Configurations that render and train in seconds, images for them, and a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
from PIL import Image

from cips3d.models.config import Cips3dNetworks, GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.registry import generator_class

if TYPE_CHECKING:
    from cips3d.training.recipe import TrainConfig

GENERATOR = GeneratorConfig(
    Cips3dNetworks(
        shape_dim=8, appearance_dim=8, shape_style_dim=8, appearance_style_dim=8,
        shape_mapping_layers=2, appearance_mapping_layers=2, nerf_width=16, nerf_layers=1,
        feature_dim=8, inr_width=16, inr_blocks=2, rgb_from_block=0, residual_from_block=1,
        background="plain",
    ),
    Sampling(4, 4),
    resolution=8,
)  # fmt: skip


def generator(base: GeneratorConfig = GENERATOR, **changes: Any) -> GeneratorConfig:
    """`base` with changed fields of its networks, samples (`coarse`, `fine`), resolution and poses.

    Another `architecture` gets those fields of `base`'s networks that it has too.
    """
    old = base.networks
    kind = generator_class(changes.pop("architecture", old.architecture)).Networks
    ours = {field.name for field in fields(kind)} - {"architecture"}
    own, sampling, networks = {}, {}, {name: getattr(old, name) for name in ours & vars(old).keys()}
    for name, value in changes.items():
        if name in vars(base):
            own[name] = value
        else:
            (sampling if name in ("coarse", "fine") else networks)[name] = value
    merged = {"networks": kind(**networks), "sampling": replace(base.sampling, **sampling)}
    return replace(base, **(merged | own))


def images(folder: Path, count: int = 6, size: int = 8) -> str:
    """A new folder of noise images; returns its path."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return str(folder)


pictures = images  # until every test module calls it by the new name


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the checks of annotated types that the tests add, as a user runs the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextmanager
def full_disk_after(size: int) -> Iterator[None]:
    """Lets this process write files of at most `size` bytes, as a full disk would."""
    import resource  # not above: Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def config(data: str = "heads", **changes: Any) -> TrainConfig:
    """Four steps at 4² and eight at 8², four images each, a checkpoint after every fourth step."""
    from cips3d.training.objective import R1, Objective
    from cips3d.training.recipe import Stage, TrainConfig

    tiny = TrainConfig(
        data=data,
        generator=GENERATOR,
        discriminator=DiscriminatorConfig({4: 8, 8: 8}),
        aux_discriminator=DiscriminatorConfig({4: 8, 8: 8}, downsample_first=True),
        stages=(
            Stage(4, kimg=0.016, batch=4, generator_lr=1e-3, discriminator_lr=2e-3),
            Stage(
                8, kimg=0.032, batch=4, generator_lr=5e-4, discriminator_lr=1e-3, fade_kimg=0.016
            ),
        ),
        objective=Objective(adversarial="logistic", r1=R1(weight=10.0, every=3)),
        density_noise_kimg=0.032,
        log_steps=1,
        sample_kimg=1000,
        checkpoint_kimg=0.016,
    )
    return replace(tiny, **changes)
