"""Yaw and pitch limits of the camera: a model has only learned the views of its camera prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cips3d.camera import Camera, PoseDistribution, below_pole
from cips3d.trajectories import nearest_turn

#: Standard deviations of a Gaussian prior that count as trained.
_DEVIATIONS = 2.0
#: Share of the range in which the limit changes nothing.
_FREE = 0.8
#: How far a camera may run ahead of the limited one, in widths of the soft zone.
_AHEAD = 2.0


@dataclass(frozen=True)
class PoseLimits:
    """The middle (`yaw`, `pitch`) and half the width of the trained range, radians."""

    yaw: float
    yaw_reach: float
    pitch: float
    pitch_reach: float

    @staticmethod
    def of(poses: PoseDistribution) -> PoseLimits:
        """Two standard deviations of a Gaussian prior, the ends of other priors."""
        width = _DEVIATIONS if poses.kind == "gaussian" else 1.0
        return PoseLimits(
            poses.yaw_mean, width * poses.yaw_std, poses.pitch_mean, width * poses.pitch_std
        )

    def limited(self, camera: Camera) -> Camera:
        """The camera within the range: unchanged well inside, softly stopped near the ends."""
        return self._bent(camera, math.tanh)

    def reined_in(self, camera: Camera) -> Camera:
        """A nearer camera with about the same limited one, so that dragging back acts at once."""
        return self._bent(camera, lambda excess: min(excess, _AHEAD))

    def contains(self, camera: Camera) -> bool:
        """Whether the limit leaves the camera where it is."""
        return self.limited(camera) is camera

    def _bent(self, camera: Camera, bend: Callable[[float], float]) -> Camera:
        """The camera, rotated about the origin, with yaw and pitch bent by `soft_clamp`."""
        yaw, pitch = (float(angle) for angle in camera.yaw_pitch())
        yaw = nearest_turn(yaw, self.yaw)
        new_yaw = self.yaw + soft_clamp(yaw - self.yaw, self.yaw_reach, bend)
        new_pitch = self.pitch + soft_clamp(pitch - self.pitch, self.pitch_reach, bend)
        if abs(new_yaw - yaw) < 1e-6 and abs(new_pitch - pitch) < 1e-6:
            return camera
        moved = camera.cam_to_world.clone()
        yaws, pitches = moved.new_tensor([[yaw, new_yaw], [pitch, new_pitch]])
        before, after = Camera.orbit(yaws, below_pole(pitches)).cam_to_world[:, :3, :3]
        moved[:, :3] = after @ before.mT @ moved[:, :3]
        return Camera(moved, camera.fov)


def soft_clamp(offset: float, reach: float, bend: Callable[[float], float] = math.tanh) -> float:
    """The identity within 80 % of the reach; beyond, it approaches the reach without a kink.

    `bend` maps what lies beyond the 80 %, in widths of the rest.
    """
    zone = (1 - _FREE) * reach
    excess = abs(offset) - _FREE * reach
    if excess <= 0 or reach >= math.pi:  # a whole turn has no ends
        return offset
    # subtracted from the reach, so that rounding cannot exceed it
    return math.copysign(reach - zone * (1 - bend(excess / zone)), offset) if zone else 0.0
