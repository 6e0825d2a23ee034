"""Cameras of the viewer: ours and viser's, their limits, keyframes, and where to look from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trimesh.transformations import quaternion_from_matrix, quaternion_matrix

from cips3d.camera import Camera, PoseDistribution, below_pole
from cips3d.trajectories import nearest_turn

#: Range of the field of view, degrees.
FOVS = (0.1, 150.0)
#: Distances of the camera from the origin, in half depths of the sampled volume. Closer, rays would
#: start inside the subject.
_NEAREST, _FARTHEST = 1.05, 1000.0
#: Yaw, pitch and field of view of the camera that shows a mesh, degrees.
_MESH_VIEW = (25.0, 10.0, 30.0)
#: Yaw and pitch (degrees), distance (in the prior's) and field of view (degrees) of the camera that
#: shows a mesh and the cameras around it.
_OVERVIEW = (60.0, 20.0, 1.5, 40.0)
#: Standard deviations of a Gaussian prior that count as trained.
_DEVIATIONS = 2.0
#: Share of the range in which the limit changes nothing.
_FREE = 0.8
#: How far a camera may run ahead of the limited one, in widths of the soft zone.
_AHEAD = 2.0


@dataclass(frozen=True)
class Pose:
    """A client's camera, as viser sends it: from OpenCV camera axes to the world.

    `wxyz` is a quaternion, `fov` the full field of view in radians, `width` and `height` are the
    size of the browser's canvas in pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    width: int
    height: int


def camera_from_viser(pose: Pose, extent: float) -> Camera | None:
    """Our camera for viser's (both look along OpenCV's axes); None if the numbers make no camera.

    A camera too close to the subject or too far from it is moved along its line to the origin.
    `extent` is half the depth of the sampled volume, world units.
    """
    numbers = (*pose.wxyz, *pose.position, pose.fov)
    if (len(pose.wxyz), len(pose.position)) != (4, 3):
        return None
    if not all(math.isfinite(x) and abs(x) < 1e18 for x in numbers):
        return None
    distance = math.hypot(*pose.position)
    if math.hypot(*pose.wxyz) < 1e-9 or distance < 1e-9:
        return None
    matrix = quaternion_matrix(np.array(pose.wxyz))
    clamped = min(max(distance, _NEAREST * extent), _FARTHEST * extent)
    matrix[:3, 3] = np.array(pose.position) * clamped / distance
    fov = min(max(math.degrees(pose.fov), FOVS[0]), FOVS[1])
    return Camera.from_opencv(torch.from_numpy(matrix)[None].float(), fov=fov)


def viser_pose(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (4,), a quaternion wxyz, and position (3,) of one camera, as viser takes them."""
    matrix = camera.to_opencv()[0].cpu().double().numpy()
    return quaternion_from_matrix(matrix), matrix[:3, 3]


def keyframe(camera: Camera, earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """One camera as `cips3d.trajectories.keyframes` reads it.

    These are yaw, pitch and field of view in degrees, and the radius; the yaw takes the shorter way
    from the last of the `earlier` keyframes. A camera that looks past the origin, or is rolled, is
    given by its 25 numbers ("label").
    """
    yaw, pitch = camera.yaw_pitch()
    radius = camera.position.norm(dim=-1)
    upright = Camera.orbit(yaw, pitch, radius)
    if not torch.allclose(upright.cam_to_world, camera.cam_to_world, atol=1e-3):
        return {"label": camera.to_label()[0].tolist()}
    before = 0.0
    for entry in earlier:
        if "yaw" in entry:
            before = math.radians(entry["yaw"])
        else:  # a label knows no whole turns; it counts as the turn nearest to the keyframe before
            angle = float(Camera.from_label(torch.tensor([entry["label"]])).yaw_pitch()[0])
            before = nearest_turn(angle, before)
    values = {
        "yaw": math.degrees(nearest_turn(float(yaw), before)),
        "pitch": math.degrees(float(pitch)),
        "fov": float(camera.fov),
        "radius": float(radius),
    }
    return {name: round(value, 4) for name, value in values.items()}


def front_camera(poses: PoseDistribution) -> Camera:
    """The camera at the mean of the prior."""
    return poses.at(poses.yaw_mean, poses.pitch_mean)


def prior_cameras(poses: PoseDistribution) -> Camera:
    """Five cameras across the yaws of the prior: to two standard deviations, or to the ends."""
    draws = torch.tensor([(-2.0, 0.0), (-1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 0.0)])
    return poses.camera(draws if poses.kind == "gaussian" else draws / 4 + 0.5)


def overview_camera(poses: PoseDistribution) -> Camera:
    """A camera that sees a mesh and the prior's cameras around it."""
    yaw, pitch, radii, fov = _OVERVIEW
    return Camera.orbit(math.radians(yaw), math.radians(pitch), radii * poses.radius, fov)


def framing_camera(radius: float, aspect: float) -> Camera:
    """A camera from the front and side, in which a ball about the origin fills the window."""
    yaw, pitch, fov = (math.radians(degrees) for degrees in _MESH_VIEW)
    narrower = math.atan(math.tan(fov / 2) * min(1.0, aspect))
    return Camera.orbit(yaw, pitch, radius / math.sin(narrower), _MESH_VIEW[2])


# ---------------------------------------------------------------- limits of yaw and pitch
@dataclass(frozen=True)
class PoseLimits:
    """The middle (`yaw`, `pitch`) and half the width of the trained range, radians.

    A model has only learned the views of its camera prior.
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
