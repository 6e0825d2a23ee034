"""Pinhole and orthographic cameras: making them, their rays, projection, conversions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from cips3d.camera.labels import Label, intrinsics, is_centred, is_rigid
from cips3d.camera.rays import Rays
from cips3d.errors import UserError
from cips3d.records import TensorRecord, has_values

#: One number for all cameras, or one for each.
Numbers = float | np.number | Num[Tensor, ""] | Num[Tensor, " batch"]
#: Rows and columns of an image, as `numpy.s_[top:bottom, left:right]` makes them.
Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))
#: Turns OpenGL camera axes into OpenCV's (x right, y down, z forward) and back.
_OPENGL_TO_OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)

Positions = Float[Tensor, "batch 3"]
Angles = Float[Tensor, " batch"]
Poses = Float[Tensor, "batch 4 4"]


@dataclass(frozen=True)
class Camera(TensorRecord):
    """A batch of pinhole cameras, or of orthographic ones, whose rays are parallel."""

    cam_to_world: Poses
    """rigid transforms from camera to world coordinates"""
    fov: Angles
    """full fields of view across the image's height, degrees; 0 for orthographic cameras"""
    span: Angles | None = None
    """heights of the images of orthographic cameras, world units; None for pinhole cameras"""

    def __post_init__(self) -> None:
        # reading values would wait for another device
        if self.cam_to_world.device.type != "cpu" or not has_values(self.cam_to_world):
            return
        _check_finite(self.cam_to_world, self.fov)
        if self.span is not None:
            _check_finite(self.span)
            if not bool(((self.span > 0) & (self.fov == 0)).all()):
                raise UserError("camera: an orthographic camera has a span above 0, and 0 as fov")
        elif not bool(((self.fov > 0) & (self.fov < 180)).all()):
            raise UserError("camera: the field of view must lie strictly between 0 and 180 degrees")

    @classmethod
    def cat(cls, parts: Sequence[Camera]) -> Camera:
        """All cameras in one batch; UserError if pinhole and orthographic ones are mixed."""
        if len({part.span is None for part in parts}) > 1:
            raise UserError("cameras: pinhole and orthographic ones do not go in one batch")
        return super().cat(parts)  # pyright: ignore[reportArgumentType]

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
        checks = has_values(position)
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
        position, fov = _on_sphere(yaw, pitch, radius, fov)
        return Camera.look_at(position, fov=fov)

    @staticmethod
    def orthographic(
        yaw: Numbers, pitch: Numbers = 0.0, radius: Numbers = 1.0, span: Numbers = 0.21
    ) -> Camera:
        """Orthographic cameras that look at the origin; arguments as in `orbit`.

        Args:
            radius: where depth is measured from, world units; the image does not depend on it.
            span: height of the image, world units. The default frames like `orbit`'s.
        """
        position, span = _on_sphere(yaw, pitch, radius, span)
        return replace(Camera.look_at(position), fov=torch.zeros_like(span), span=span)

    def as_orthographic(self) -> Camera:
        """Orthographic cameras with the same poses and the same framing of what is at the origin.

        They are the limit of a dolly zoom away from the subject.

        Raises:
            UserError: if the origin is not in front of a camera.
        """
        if self.span is not None:
            return self
        ahead = -self._world_origin()[:, 2]
        if has_values(ahead) and not bool((ahead > 0).all()):
            raise UserError("camera: the origin is behind it; turn it towards the subject")
        span = 2 * ahead * torch.tan(torch.deg2rad(self.fov) / 2)
        return replace(self, fov=torch.zeros_like(span), span=span)

    def turned(self, yaw: float) -> Camera:
        """The same cameras, rotated about the world's y axis by `yaw` radians towards +x."""
        turn = Camera.orbit(self.cam_to_world.new_tensor(yaw)).cam_to_world[:, :3, :3]
        moved = self.cam_to_world.clone()
        moved[:, :3] = turn @ self.cam_to_world[:, :3]
        return replace(self, cam_to_world=moved)

    def from_corner_grid(self, height: int) -> Camera:
        """The wider cameras whose rays at pixel centres are these cameras' at pixel corners.

        In the authors' grid the outermost rays of an image, here of `height` pixels, lie on the
        edge of the field of view.
        """
        if height < 2:
            return self
        if self.span is not None:
            return replace(self, span=self.span * height / (height - 1))
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
        plane = torch.stack([grid_x.flatten(), grid_y.flatten()], dim=-1)
        right_up, backward = self.cam_to_world[:, :3, :2], self.cam_to_world[:, :3, 2]
        tangent = torch.tan(torch.deg2rad(self.fov) / 2)

        def across(places: Float[Tensor, "batch pixels 2"]) -> Float[Tensor, "batch pixels 3"]:
            # not a matrix product, which autocast would compute in 16 bits
            return (places[:, :, None] * right_up[:, None]).sum(dim=-1)

        slopes = across(tangent[:, None, None] * plane)
        directions = F.normalize(slopes - backward[:, None], dim=-1)
        # where rays cross the plane through the world's origin, from there: short vectors, which
        # sums of the position and a long way along a direction are not
        origin = self._world_origin()
        half = -origin[:, 2] * tangent if self.span is None else self.span / 2
        points = across(half[:, None, None] * plane - origin[:, None, :2])
        nearest = points - (points * directions).sum(dim=-1, keepdim=True) * directions
        if self.span is not None:
            origins = self.position[:, None] + across(self.span[:, None, None] / 2 * plane)
            return Rays(origins, directions, nearest)
        # as far from the camera as the world's origin: |o| (1 − cos) beyond the nearest point
        away = F.normalize(self.position, dim=-1)[:, None]
        distance = self.position.norm(dim=-1)[:, None, None]
        beyond = distance / 2 * (directions + away).square().sum(dim=-1, keepdim=True)
        origins = self.position[:, None].expand_as(directions)
        return Rays(origins, directions, torch.addcmul(nearest, beyond, directions))

    def _world_origin(self) -> Positions:
        """The world's origin in the cameras' coordinates.

        By Cramer's rule: the transpose is the inverse only up to the rounding of a pose.
        """
        right, up, backward = self.cam_to_world[:, :3, :3].unbind(dim=-1)
        pairs = (up, backward), (backward, right), (right, up)
        minors = torch.stack([torch.linalg.cross(*pair) for pair in pairs], dim=-1)
        products = (self.position[:, :, None] * minors).sum(dim=1)
        return -products / (right * minors[..., 0]).sum(dim=-1, keepdim=True)

    def project(
        self, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points 2"], Float[Tensor, "batch points"]]:
        """Where world points appear in the image, and their distance; the inverse of `rays`.

        Returns:
            Image coordinates x (right) and y (down) from the image's centre in units of half its
            height, infinite or NaN for points in a pinhole camera's own plane; and the distance
            along the ray, negative behind the camera.
        """
        offset = points - self.position[:, None]
        # not a matrix product, which autocast would compute in 16 bits
        local = (offset[..., None] * self.cam_to_world[:, None, :3, :3]).sum(dim=-2)
        forward = -local[..., 2]
        plane = local[..., :2] * local.new_tensor([1.0, -1.0])
        if self.span is not None:
            return plane / (self.span / 2)[:, None, None], forward
        focal = 1 / torch.tan(torch.deg2rad(self.fov) / 2)
        places = plane * (focal[:, None] / forward)[..., None]
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
        """The labels of tri-plane GANs: 16 OpenCV camera-to-world entries, then 9 intrinsics.

        Raises:
            UserError: for orthographic cameras, which have no focal length.
        """
        if self.span is not None:
            raise UserError(
                "camera label: an orthographic camera has no focal length, which a label needs; "
                "use a pinhole camera from far away"
            )
        focal = 0.5 / torch.tan(torch.deg2rad(self.fov) / 2)
        return torch.cat([self.to_opencv().flatten(1), intrinsics(focal)], dim=-1)

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


def _on_sphere(
    yaw: Numbers, pitch: Numbers, radius: Numbers, size: Numbers
) -> tuple[Positions, Angles]:
    """Positions of cameras around the origin, and their fields of view or spans, as one batch."""
    given = yaw, pitch, radius, size
    tensors = [x for x in given if torch.is_tensor(x) and x.is_floating_point()]
    first = tensors[0] if tensors else torch.empty(0)
    like = {"dtype": first.dtype, "device": first.device}
    parts = [torch.atleast_1d(torch.as_tensor(x, **like)) for x in given]
    yaw_t, pitch_t, radius_t, size_t = torch.broadcast_tensors(*parts)
    if has_values(pitch_t) and bool((pitch_t.abs() > math.pi / 2).any()):
        steepest = float(pitch_t.abs().max())
        raise UserError(
            f"camera: a pitch of {steepest:.4g} radians lies beyond the pole; give angles in "
            "radians, |pitch| < π/2 (math.radians converts degrees)"
        )
    x, z = yaw_t.sin() * pitch_t.cos(), yaw_t.cos() * pitch_t.cos()
    return radius_t[:, None] * torch.stack([x, pitch_t.sin(), z], dim=-1), size_t.clone()


def _as_batch(value: Numbers, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(len(like)).clone()


def _check_finite(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise UserError(
            "camera: a position, angle or field of view is NaN or infinite; give finite numbers"
        )
