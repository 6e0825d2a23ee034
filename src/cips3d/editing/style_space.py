"""What an inversion fits: cameras and styles, in coordinates where random styles are normal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Camera
from cips3d.models.generator import Generator
from cips3d.models.types import Styles
from cips3d.records import TensorRecord

#: Random styles that the mean and covariance are estimated from.
_SAMPLES = 4096
#: Limit of the pitch, radians: at the pole yaw has no meaning.
MAX_PITCH = 1.5


class NormalCoordinates:
    """Coordinates u in which samples w are standard normal: w = w̄ + u·L, L Lᵀ their covariance.

    The smallest variances are raised so that the map can be inverted.
    """

    def __init__(self, samples: Float[Tensor, "count width"]) -> None:
        self.mean = samples.mean(dim=0)
        # Apple's GPUs have no float64
        values, vectors = torch.linalg.eigh(torch.cov(samples.T.cpu().double()))
        deviations = values.clamp(min=float(values.max()) * 1e-4).sqrt()
        self.matrix = (vectors * deviations).T.to(samples)
        self.inverse = (vectors / deviations).to(samples)

    def styles(self, u: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.mean + u @ self.matrix

    def coordinates(self, w: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return (w - self.mean) @ self.inverse


class StyleSpace:
    """Normal coordinates of a generator's shape and appearance styles, and its camera prior."""

    def __init__(self, generator: Generator, draws: torch.Generator) -> None:
        self.poses = generator.config.poses
        self.blocks = generator.style_blocks
        with torch.no_grad():
            styles = generator.map(generator.sample_latents(_SAMPLES, draws))
        assert isinstance(styles.appearance, Tensor)
        self.shape = NormalCoordinates(styles.shape)
        self.appearance = NormalCoordinates(styles.appearance)


@dataclass(frozen=True)
class Hypotheses(TensorRecord):
    """K cameras and subjects to fit: angles in radians, and styles in standard deviations."""

    yaw: Float[Tensor, " hypotheses"]
    pitch: Float[Tensor, " hypotheses"]
    shape: Float[Tensor, "hypotheses ws"]
    appearance: Float[Tensor, "hypotheses blocks wa"]
    """one block in "w", where all blocks share it"""
    space: StyleSpace

    def camera(self) -> Camera:
        return self.space.poses.at(self.yaw, self.pitch.clamp(-MAX_PITCH, MAX_PITCH))

    def styles(self) -> Styles:
        w = self.space.appearance.styles(self.appearance)
        appearance = w[:, 0] if w.shape[1] == 1 else list(w.unbind(1))
        return Styles(self.space.shape.styles(self.shape), appearance)

    def per_block(self) -> Hypotheses:
        """The same styles with an appearance for each block."""
        return replace(self, appearance=self.appearance.expand(-1, self.space.blocks, -1))

    def prior_penalty(self) -> Float[Tensor, " hypotheses"]:
        """Mean squares of camera and styles in standard deviations of their prior."""
        poses = self.space.poses
        camera = torch.zeros_like(self.yaw)
        if poses.kind == "gaussian" and min(poses.yaw_std, poses.pitch_std) > 0:
            yaw = (self.yaw - poses.yaw_mean) / poses.yaw_std
            pitch = (self.pitch - poses.pitch_mean) / poses.pitch_std
            camera = yaw.square() + pitch.square()
        return camera + self.shape.square().mean(dim=1) + self.appearance.square().mean(dim=(1, 2))

    def spread_penalty(self) -> Float[Tensor, " hypotheses"]:
        """Mean squared difference of the blocks' styles from their mean."""
        centred = self.appearance - self.appearance.mean(dim=1, keepdim=True)
        return centred.square().mean(dim=(1, 2))
