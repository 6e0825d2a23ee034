"""How near an inversion came to its image, and whether the model knows such images at all.

With enough freedom an inversion comes near to any image, but only subjects that the model knows
look right from other sides. So what counts is step "w", which stays among them: it is compared with
what the model's own subjects reach there, and with the distance between two different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.editing.inversion import Inversion, invert
from cips3d.editing.similarity import Distance, default_distance, pixel_distance, psnr
from cips3d.editing.target import InversionConfig
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import DEFAULT_PSI

#: Subjects whose distances from each other are measured.
_SUBJECTS = 8
#: Share of an inversion's steps that the model's own subject takes, which is found easily.
_SHARE = 0.25
#: Share of the distance between two subjects from which on an image is foreign to the model. With
#: the bundled model heads and cartoon heads come within a fifth, photographs to seven tenths.
_FOREIGN = 0.5


@dataclass(frozen=True)
class Nearness:
    """How near an image came to another."""

    psnr: float
    """peak signal-to-noise ratio of the colours, decibels"""
    distance: float
    """perceptual distance: of features (see `cips3d.editing.similarity`), or else of colours"""

    def __str__(self) -> str:
        return f"{self.psnr:.1f} dB, perceptual distance {self.distance:.3f}"


@dataclass(frozen=True)
class Reach:
    """What an inversion reached, beside the model's own subjects."""

    reached: Nearness
    """by the last step"""
    among_subjects: Nearness
    """by step "w", with a subject that the model knows"""
    own: Nearness
    """by step "w" for a subject of the model"""
    apart: float
    """median distance between two different subjects of the model"""

    @property
    def is_foreign(self) -> bool:
        """Whether the image is far from everything that the model knows."""
        return self.among_subjects.distance > max(_FOREIGN * self.apart, self.own.distance)

    def lines(self) -> list[str]:
        """What was reached, and the comparison."""
        return [
            f"reached: {self.reached}",
            f"in space w: {self.among_subjects}; the model's own subjects reach {self.own}; two "
            f"different ones are at {self.apart:.3f}",
        ]

    def warning(self) -> str | None:
        """What to say about a foreign image."""
        if not self.is_foreign:
            return None
        return (
            "the image is far from what the model knows, so the result will not look right from "
            "other sides; use an image like the model's training images, framed like them, or "
            "another model"
        )


def reach(
    generator: ImageGenerator,
    image: Float[Tensor, "1 3 side side"],
    found: Inversion,
    discriminator: ProgressiveDiscriminator | None = None,
    *,
    features: Distance | None = None,
    config: InversionConfig | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Reach:
    """Compares an inversion with one of a subject of the model, which takes a few seconds.

    Args:
        generator: the model that the image was inverted with.
        image: at its resolution, in [-1, 1].
        features, discriminator, config, seed, progress: as for `cips3d.invert`. Without a weight
            of features, colours are compared.
    """
    side, config = image.shape[-1], config or InversionConfig()
    distance = None
    if config.feature_weight:
        distance = features or default_distance(discriminator, image.device, side)
    distance = distance or pixel_distance
    draws = torch.Generator().manual_seed(seed)

    def nearness(result: Inversion, target: Tensor) -> Nearness:
        with torch.no_grad():
            again = result.generator.render(result.styles, result.camera, side).image
            return Nearness(psnr(again, target), float(distance(again, target)))

    with torch.no_grad():
        poses = generator.config.poses
        camera = poses.at(torch.full((_SUBJECTS,), poses.yaw_mean), poses.pitch_mean)
        subjects = generator.sample_latents(_SUBJECTS, draws)
        images = generator.render(subjects, camera, side).image
        apart = float(distance(images, images.roll(1, 0)).median())
        own = generator.render(
            generator.sample_latents(1, draws), poses.sample(1, draws), side, psi=DEFAULT_PSI
        ).image
    steps = tuple(max(1, round(_SHARE * count)) for count in config.steps)
    again = invert(
        generator, own, "w", features=features, discriminator=discriminator, seed=seed,
        config=replace(config, steps=steps), progress=progress,
    )  # fmt: skip
    first = (*found.earlier, found)[0]
    return Reach(nearness(found, image), nearness(first, image), nearness(again, own), apart)
