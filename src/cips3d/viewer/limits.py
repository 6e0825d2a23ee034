"""Yaw and pitch limits of the camera: a model has only learned the views of its camera prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cips3d.camera import Camera, PoseDistribution, below_pole

#: Limits an offset from the middle of a range, given half the range's width; radians.
Clamp = Callable[[float, float], float]
#: Standard deviations of a Gaussian prior that count as trained.
_DEVIATIONS = 2.0
#: Share of the range in which the limit changes nothing.
_FREE = 0.8
#: How far a camera may run ahead of the limited one, in widths of the soft zone.
_AHEAD = 2.0


@dataclass(frozen=True)
class PoseLimits:
    """The trained range of yaw and pitch, approached softly.

    Attributes:
        yaw, pitch: middle of the range, radians.
        yaw_reach, pitch_reach: half its width, radians.
    """

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
        return self._bent(camera, soft_clamp)

    def reined_in(self, camera: Camera) -> Camera:
        """The camera no further outside than needed, so that dragging back has an effect at once.

        Its limited camera is nearly the same.
        """
        return self._bent(camera, _hard_clamp)

    def contains(self, camera: Camera) -> bool:
        """Whether the limit leaves the camera where it is."""
        return self.limited(camera) is camera

    def _bent(self, camera: Camera, clamp: Clamp) -> Camera:
        yaw, pitch = (float(angle) for angle in camera.yaw_pitch())
        new_yaw = self.yaw + clamp(_nearest_turn(yaw - self.yaw), self.yaw_reach)
        new_pitch = self.pitch + clamp(pitch - self.pitch, self.pitch_reach)
        if abs(_nearest_turn(new_yaw - yaw)) < 1e-6 and abs(new_pitch - pitch) < 1e-6:
            return camera
        return _turned(camera, (yaw, pitch), (new_yaw, new_pitch))


def soft_clamp(offset: float, reach: float) -> float:
    """The identity within 80 % of the reach; beyond, it approaches the reach without a kink."""
    return _beyond_free(offset, reach, math.tanh)


def _hard_clamp(offset: float, reach: float) -> float:
    return _beyond_free(offset, reach, lambda excess: min(excess, _AHEAD))


def _beyond_free(offset: float, reach: float, bend: Callable[[float], float]) -> float:
    """Bends the part beyond the free range; `bend` maps widths of the soft zone."""
    free, zone = _FREE * reach, (1 - _FREE) * reach
    if abs(offset) <= free or reach >= math.pi:  # a whole turn has no ends
        return offset
    return math.copysign(free + zone * bend((abs(offset) - free) / zone), offset) if zone else 0.0


def _nearest_turn(angle: float) -> float:
    """The same direction in [-π, π]."""
    return math.remainder(angle, math.tau)


def _turned(camera: Camera, old: tuple[float, float], new: tuple[float, float]) -> Camera:
    """The camera, rotated about the origin as a camera on a sphere moves from `old` to `new`."""
    pose = camera.cam_to_world
    yaws, pitches = pose.new_tensor([old, new]).unbind(1)
    before, after = Camera.orbit(yaws, below_pole(pitches)).cam_to_world[:, :3, :3]
    moved = pose.clone()
    moved[:, :3] = after @ before.mT @ pose[:, :3]
    return Camera(moved, camera.fov)
