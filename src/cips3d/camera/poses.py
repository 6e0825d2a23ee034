"""The camera prior: where training images are taken from (paper Section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.camera.cameras import Angles, Camera, Numbers
from cips3d.configuration import Configuration, FieldOfView, Finite, NonNegative, Positive

#: Radians between the steepest camera and the pole, over which a camera has no defined up.
_FROM_POLE = 1e-3


@dataclass(frozen=True)
class PoseDistribution(Configuration):
    """The camera prior (paper Section 4.1; the defaults are the authors' for FFHQ).

    `kind` is "gaussian" (yaw and pitch normal), "uniform" (both uniform), or "spherical" (uniform
    on the patch of the sphere: yaw and sin(pitch) uniform).
    """

    label: ClassVar[str] = "camera prior"

    kind: Literal["gaussian", "uniform", "spherical"] = "gaussian"
    yaw_mean: Finite = 0.0
    """radians, like all angles here"""
    yaw_std: NonNegative = 0.3
    """standard deviation if "gaussian", half the width otherwise; also in pitch"""
    pitch_mean: Finite = 0.0
    pitch_std: NonNegative = 0.155
    radius: Positive = 1.0
    """distance of the camera, world units"""
    fov: FieldOfView = 12.0
    """full field of view, degrees"""

    def angles(self, draws: Float[Tensor, "batch 2"]) -> tuple[Angles, Angles]:
        """Yaw and pitch in radians from standard draws, see `draw`."""
        spread = draws if self.kind == "gaussian" else 2 * draws - 1
        yaw = self.yaw_mean + self.yaw_std * spread[:, 0]
        pitch = self.pitch_mean + self.pitch_std * spread[:, 1]
        if self.kind == "spherical":
            bottom, top = self.pitch_mean - self.pitch_std, self.pitch_mean + self.pitch_std
            low, high = math.sin(max(bottom, -math.pi / 2)), math.sin(min(top, math.pi / 2))
            pitch = torch.asin(low + (high - low) * draws[:, 1])
        return yaw, below_pole(pitch)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count, 2) standard draws on the CPU: normal for "gaussian", else uniform in [0, 1)."""
        draw = torch.randn if self.kind == "gaussian" else torch.rand
        device = "cpu" if generator is None else generator.device
        return draw(count, 2, generator=generator, dtype=torch.float32, device=device)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Camera:
        """`count` random cameras on the CPU, float32."""
        return self.camera(self.draw(count, generator))

    def camera(self, draws: Float[Tensor, "batch 2"]) -> Camera:
        """The cameras of given standard draws, see `draw`."""
        return self.at(*self.angles(draws))

    def at(self, yaw: Numbers, pitch: Numbers = 0.0) -> Camera:
        """Cameras at these angles (radians), with the prior's distance and field of view."""
        return Camera.orbit(yaw, pitch, self.radius, self.fov)


def below_pole(pitch: Angles) -> Angles:
    """Pitches in radians, kept away from the poles, over which a camera has no defined up."""
    limit = math.pi / 2 - _FROM_POLE
    return pitch.clamp(-limit, limit)
