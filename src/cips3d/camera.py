"""Cameras, rays and the camera prior (paper Sections 3.1 and 4.1).

World: right-handed, y up, subject at the origin. A camera on a sphere looks at the origin. At
yaw = pitch = 0 it is frontal, at +z; its position is
r·(sin yaw·cos pitch, sin pitch, cos yaw·cos pitch). Angles are radians. Fields of view are full
angles in degrees across the image's height. Camera axes are OpenGL's: x right, y up, -z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from cips3d.configuration import Configuration, FieldOfView, Finite, NonNegative, Positive
from cips3d.errors import UserError
from cips3d.records import TensorRecord

#: One number for all cameras, or one for each.
Numbers = float | np.number | Num[Tensor, ""] | Num[Tensor, " batch"]
#: Rows and columns of an image, as `numpy.s_[top:bottom, left:right]` makes them.
Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))
#: Turns OpenGL camera axes into OpenCV's (x right, y down, z forward) and back.
_OPENGL_TO_OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
#: Radians between the steepest camera and the pole, over which a camera has no defined up.
_FROM_POLE = 1e-3

Positions = Float[Tensor, "batch 3"]
Angles = Float[Tensor, " batch"]
Poses = Float[Tensor, "batch 4 4"]
Label = Float[Tensor, "batch 25"]


@dataclass(frozen=True)
class Rays(TensorRecord):
    """A batch of rays `origin + t·direction`; indexing selects rays of every batch entry."""

    axis: ClassVar[int] = 1

    origins: Float[Tensor, "batch rays 3"]
    """world positions"""
    directions: Float[Tensor, "batch rays 3"]
    """unit vectors"""

    def at(self, t: Float[Tensor, "batch rays samples"]) -> Float[Tensor, "batch rays samples 3"]:
        """The points origins + t·directions."""
        return torch.addcmul(self.origins[:, :, None], t[..., None], self.directions[:, :, None])

    @property
    def count(self) -> int:
        """Rays per batch entry, N."""
        return self.origins.shape[1]


@dataclass(frozen=True)
class Camera(TensorRecord):
    """A batch of pinhole cameras."""

    cam_to_world: Poses
    """rigid transforms from camera to world coordinates"""
    fov: Angles
    """full fields of view across the image's height, degrees"""

    def __post_init__(self) -> None:
        if self.cam_to_world.device.type != "cpu":  # reading values would wait for the device
            return
        _check_finite(self.cam_to_world, self.fov)
        if not bool(((self.fov > 0) & (self.fov < 180)).all()):
            raise UserError("camera: the field of view must lie strictly between 0 and 180 degrees")

    # ---------------------------------------------------------------- making cameras
    @staticmethod
    def look_at(
        position: Positions,
        target: Positions | None = None,
        up: Positions | None = None,
        fov: Numbers = 12.0,
    ) -> Camera:
        """Cameras at `position` that look at `target` (the origin), with `up` (+y) upward.

        Raises:
            UserError: if a camera is at its target, or looks along `up`.
        """
        checks = not position.is_meta  # which has no values
        if checks:
            _check_finite(position)
        target = torch.zeros_like(position) if target is None else target.to(position)
        up = position.new_tensor([0.0, 1.0, 0.0]) if up is None else up.to(position)
        backward = position - target.expand_as(position)
        if checks and bool((backward.norm(dim=-1) < 1e-8).any()):
            raise UserError("camera: the position equals the point it looks at; move one of them")
        backward = F.normalize(backward, dim=-1)
        right = torch.linalg.cross(up.expand_as(backward), backward)
        if checks and bool((right.norm(dim=-1) < 1e-6).any()):
            raise UserError(
                "camera: it looks straight along its up vector; "
                "keep |pitch| below 90 degrees or give another up"
            )
        right = F.normalize(right, dim=-1)
        true_up = torch.linalg.cross(backward, right)
        rows = torch.stack([right, true_up, backward, position], dim=-1)
        last_row = position.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(position), 1, 4)
        return Camera(torch.cat([rows, last_row], dim=1), _as_batch(fov, position))

    @staticmethod
    def orbit(
        yaw: Numbers, pitch: Numbers = 0.0, radius: Numbers = 1.0, fov: Numbers = 12.0
    ) -> Camera:
        """Cameras on a sphere around the origin, which they look at.

        Scalars and (B,) tensors broadcast. The dtype is that of the first tensor of floats.

        Args:
            yaw: radians; positive moves the camera towards +x.
            pitch: radians, |pitch| < π/2 (a UserError otherwise); positive moves the camera up.
            radius: distance from the origin, world units, > 0.
            fov: full field of view, degrees.
        """
        given = yaw, pitch, radius, fov
        tensors = [x for x in given if torch.is_tensor(x) and x.is_floating_point()]
        first = tensors[0] if tensors else torch.empty(0)
        like = {"dtype": first.dtype, "device": first.device}
        parts = [torch.atleast_1d(torch.as_tensor(x, **like)) for x in given]
        yaw_t, pitch_t, radius_t, fov_t = torch.broadcast_tensors(*parts)
        if not pitch_t.is_meta and bool((pitch_t.abs() > math.pi / 2).any()):
            steepest = float(pitch_t.abs().max())
            raise UserError(
                f"camera: a pitch of {steepest:.4g} radians lies beyond the pole; give angles in "
                "radians, |pitch| < π/2 (math.radians converts degrees)"
            )
        position = radius_t[:, None] * torch.stack(
            [yaw_t.sin() * pitch_t.cos(), pitch_t.sin(), yaw_t.cos() * pitch_t.cos()], dim=-1
        )
        return Camera.look_at(position, fov=fov_t)

    def turned(self, yaw: float) -> Camera:
        """The same cameras, rotated about the world's y axis by `yaw` radians towards +x."""
        turn = Camera.orbit(self.cam_to_world.new_tensor(yaw)).cam_to_world[:, :3, :3]
        moved = self.cam_to_world.clone()
        moved[:, :3] = turn @ self.cam_to_world[:, :3]
        return Camera(moved, self.fov)

    def from_corner_grid(self, height: int) -> Camera:
        """The wider cameras whose rays at pixel centres are these cameras' at pixel corners.

        In the authors' grid the outermost rays of an image, here of `height` pixels, lie on the
        edge of the field of view.
        """
        if height < 2:
            return self
        widened = (torch.deg2rad(self.fov / 2).tan() * height / (height - 1)).atan()
        return replace(self, fov=torch.rad2deg(2 * widened))

    # ---------------------------------------------------------------- reading cameras
    @property
    def position(self) -> Positions:
        """World positions."""
        return self.cam_to_world[:, :3, 3]

    def yaw_pitch(self) -> tuple[Angles, Angles]:
        """Yaw and pitch of the positions in radians, the inverse of `orbit`."""
        x, y, z = self.position.unbind(-1)
        return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))

    def rays(self, height: int, width: int, window: Window = WHOLE) -> Rays:
        """One ray per pixel centre of an image or of a window of it, row by row from the top left.

        Pixels are square; the field of view spans the height.

        Raises:
            UserError: if a size is below 1 or no pixel lies in the window.
        """
        if height < 1 or width < 1:
            raise UserError(
                f"resolution: {height}x{width} has no pixels; both sides must be at least 1"
            )
        like = {"dtype": self.cam_to_world.dtype, "device": self.cam_to_world.device}
        x = (torch.arange(width, **like) * 2 + 1 - width) / height
        y = -(torch.arange(height, **like) * 2 + 1 - height) / height
        y, x = y[window[0]], x[window[1]]
        if y.numel() == 0 or x.numel() == 0:
            raise UserError(
                f"window: no pixel of {height}x{width} lies in it; give rows and columns inside"
            )
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        depth = -1.0 / torch.tan(torch.deg2rad(self.fov) / 2)
        plane = torch.stack([grid_x.flatten(), grid_y.flatten()], dim=-1).expand(len(self), -1, -1)
        local = torch.cat([plane, depth[:, None, None].expand(-1, plane.shape[1], 1)], dim=-1)
        local = F.normalize(local, dim=-1)
        # not a matrix product, which autocast would compute in 16 bits
        directions = (local[:, :, None] * self.cam_to_world[:, None, :3, :3]).sum(dim=-1)
        return Rays(self.position[:, None].expand_as(directions), directions)

    def project(
        self, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points 2"], Float[Tensor, "batch points"]]:
        """Where world points appear in the image, and their distance; the inverse of `rays`.

        Returns:
            Image coordinates x (right) and y (down) from the image's centre in units of half its
            height, infinite or NaN for points in the camera's own plane; and the distance, negative
            behind the camera.
        """
        offset = points - self.position[:, None]
        # not a matrix product, which autocast would compute in 16 bits
        local = (offset[..., None] * self.cam_to_world[:, None, :3, :3]).sum(dim=-2)
        focal = 1 / torch.tan(torch.deg2rad(self.fov) / 2)
        forward = -local[..., 2]
        signs = local.new_tensor([1.0, -1.0])
        places = local[..., :2] * signs * (focal[:, None] / forward)[..., None]
        return places, offset.norm(dim=-1) * forward.sign()

    # ---------------------------------------------------------------- conversions
    def to_opencv(self) -> Poses:
        """Camera-to-world transforms with OpenCV's camera axes (x right, y down, z forward)."""
        return self.cam_to_world * _OPENGL_TO_OPENCV.to(self.cam_to_world)

    @staticmethod
    def from_opencv(cam_to_world: Poses, fov: Numbers = 12.0) -> Camera:
        """Cameras from OpenCV camera-to-world transforms; exact inverse of `to_opencv`."""
        pose = cam_to_world * _OPENGL_TO_OPENCV.to(cam_to_world)
        return Camera(pose, _as_batch(fov, cam_to_world))

    def to_label(self) -> Label:
        """The labels of tri-plane GANs: 16 OpenCV camera-to-world entries, then 9 intrinsics."""
        focal = 0.5 / torch.tan(torch.deg2rad(self.fov) / 2)
        return torch.cat([self.to_opencv().flatten(1), _intrinsics(focal)], dim=-1)

    @staticmethod
    def from_label(label: Label) -> Camera:
        """Cameras from 25-number labels; inverse of `to_label`.

        Raises:
            UserError: unless all labels are `is_rigid` and `is_centred`.
        """
        if not bool(is_rigid(label).all()):
            raise UserError(
                "camera label: its first 16 numbers are not a rotation and a position; "
                "give a camera-to-world transform"
            )
        if not bool(is_centred(label).all()):
            raise UserError("camera label: give centred intrinsics with equal focal lengths")
        fov = torch.rad2deg(2 * torch.atan(0.5 / label[:, 20]))
        return Camera.from_opencv(label[:, :16].reshape(-1, 4, 4), fov)


def _intrinsics(focal: Angles) -> Float[Tensor, "batch 9"]:
    """Normalised intrinsics of centred pinhole cameras, row by row."""
    matrix = focal.new_tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 1]]).repeat(len(focal), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    return matrix.flatten(1)


def is_centred(label: Label) -> Bool[Tensor, " batch"]:
    """Whether each label's intrinsics are those of a pinhole camera with a centred axis."""
    return torch.isclose(label[:, 16:], _intrinsics(label[:, 20]), atol=1e-5).all(dim=1)


def is_rigid(label: Label) -> Bool[Tensor, " batch"]:
    """Whether each label's pose is a rotation and a position."""
    pose = label[:, :16].view(-1, 4, 4).cpu()  # small determinants are no work for an accelerator
    rotation = pose[:, :3, :3]
    # not a matrix product, which autocast would compute in 16 bits
    products = (rotation[:, :, None] * rotation[:, None]).sum(dim=-1)
    identity = torch.eye(3, dtype=pose.dtype)
    orthogonal = torch.isclose(products, identity, atol=1e-3).flatten(1).all(dim=1)
    homogeneous = torch.isclose(pose[:, 3], pose.new_tensor([0.0, 0.0, 0.0, 1.0])).all(dim=1)
    finite = pose.isfinite().flatten(1).all(dim=1)
    return (orthogonal & homogeneous & (torch.det(rotation) > 0) & finite).to(label.device)


def mirrored_label(label: Label) -> Label:
    """Labels of the mirrored images: yaw, roll and the principal point's x change sides."""
    signs = label.new_tensor([-1.0, 1.0, 1.0, 1.0])
    pose = label[:, :16].view(-1, 4, 4) * torch.outer(signs, signs)
    intrinsics = label[:, 16:].clone()
    intrinsics[:, 2] = 1 - intrinsics[:, 2]
    return torch.cat([pose.flatten(1), intrinsics], dim=-1)


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


def _as_batch(value: Numbers, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(len(like)).clone()


def _check_finite(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise UserError(
            "camera: a position, angle or field of view is NaN or infinite; give finite numbers"
        )
