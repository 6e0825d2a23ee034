"""What an inversion fits: cameras and styles, in coordinates where random styles are normal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Camera, PoseDistribution
from cips3d.models.generator import Generator
from cips3d.models.types import Styles

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
        self.poses: PoseDistribution = generator.config.poses
        self.blocks = generator.style_blocks
        with torch.no_grad():
            styles = generator.map(generator.sample_latents(_SAMPLES, draws))
        assert isinstance(styles.appearance, Tensor)
        self.shape = NormalCoordinates(styles.shape)
        self.appearance = NormalCoordinates(styles.appearance)


class Hypotheses(nn.Module):
    """K cameras and subjects as parameters: angles, and styles in standard deviations.

    Args:
        yaw, pitch: (K,) radians.
        shape, appearance: (K, ws) and (K, blocks, wa); blocks is 1 in "w", where all share it.
    """

    def __init__(
        self, space: StyleSpace, yaw: Tensor, pitch: Tensor, shape: Tensor, appearance: Tensor
    ) -> None:
        super().__init__()
        self.space = space
        self.yaw, self.pitch = nn.Parameter(yaw), nn.Parameter(pitch)
        self.shape, self.appearance = nn.Parameter(shape), nn.Parameter(appearance)

    def camera(self) -> Camera:
        return self.space.poses.at(self.yaw, self.pitch.clamp(-MAX_PITCH, MAX_PITCH))

    def styles(self) -> Styles:
        shape = self.space.shape.styles(self.shape)
        w = self.space.appearance.styles(self.appearance)
        return Styles(shape, w[:, 0] if w.shape[1] == 1 else list(w.unbind(1)))

    @torch.no_grad()
    def constants(self) -> tuple[Camera, Styles]:
        """Camera and styles without gradients."""
        return self.camera(), self.styles()

    def best(self, losses: Float[Tensor, " hypotheses"]) -> Hypotheses:
        """Only the hypothesis with the smallest loss."""
        index = losses.argmin()[None]
        return Hypotheses(self.space, *(value[index] for value in self._values()))

    def per_block(self) -> Hypotheses:
        """The same styles with an appearance for each block."""
        yaw, pitch, shape, appearance = self._values()
        appearance = appearance.expand(-1, self.space.blocks, -1).clone()
        return Hypotheses(self.space, yaw, pitch, shape, appearance)

    def _values(self) -> list[Tensor]:
        parameters = (self.yaw, self.pitch, self.shape, self.appearance)
        return [parameter.detach().clone() for parameter in parameters]

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
