"""Requests of a client: makes a valid view of whatever its controls and mouse send."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from trimesh.transformations import quaternion_from_matrix, quaternion_matrix

from cips3d.camera import Camera, PoseDistribution
from cips3d.models.config import GeneratorConfig
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Sampling
from cips3d.trajectories import nearest_turn
from cips3d.viewer.limits import PoseLimits

Mode = Literal["image", "NeRF image", "depth", "mesh"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: Bounds of the controls.
LARGEST_SEED = 2**31 - 1
LARGEST_PSI = 1.5
SIDES = (16, 1024)
COARSE_SAMPLES, FINE_SAMPLES = (3, 96), (0, 96)
FOVS = (0.1, 150.0)
#: Longest side of a browser's window, pixels.
LARGEST_CANVAS = 2**14
#: Width over height of a window. In wider or narrower ones the image is stretched.
_ASPECTS = (0.25, 4.0)
#: Distances of the camera from the origin, in half depths of the sampled volume. Closer, rays would
#: start inside the subject.
_NEAREST, _FARTHEST = 1.05, 1000.0
#: Yaw, pitch and field of view of the camera that shows a mesh, degrees.
_MESH_VIEW = (25.0, 10.0, 30.0)


@dataclass(frozen=True)
class Choice:
    """The chosen subject; equal choices share what was computed for them.

    Attributes:
        shape_seed, appearance_seed: seeds of z_s and z_a.
        psi_shape, psi_appearance: truncation.
        mix_seed: seed of the appearance of the blocks from `mix_from` on.
        mix_from: first block with the second appearance; the number of blocks for none.
        blend: weight of the second model.
        inversion: number of the inverted photo that is shown instead of the seeds, or None.
    """

    shape_seed: int = 0
    appearance_seed: int = 0
    psi_shape: float = 1.0
    psi_appearance: float = 1.0
    mix_seed: int = 1
    mix_from: int = 10**6
    blend: float = 0.0
    inversion: int | None = None


@dataclass(frozen=True)
class Pose:
    """A client's camera, as viser sends it.

    Attributes:
        wxyz: quaternion of the rotation from OpenCV camera axes to the world.
        position: position in the world.
        fov: full field of view, radians.
        width, height: size of the browser's canvas, pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """Everything that an image depends on, except the weights.

    Attributes:
        camera: one camera; its field of view spans the image's shorter side.
        aspect, canvas_aspect: width over height, of the image and of the canvas around it.
        side: shorter side of the refined image, pixels.
        canvas_side: shorter side of the browser's canvas, pixels.
        sampling: samples per ray of the refined image.
    """

    mode: Mode
    choice: Choice
    camera: Camera
    aspect: float
    canvas_aspect: float
    side: int
    canvas_side: int
    sampling: Sampling

    def size(self, side: int) -> tuple[int, int]:
        """Height and width of an image whose shorter side has `side` pixels."""
        if self.aspect < 1:
            return max(1, round(side / self.aspect)), side
        return side, max(1, round(side * self.aspect))

    @property
    def rendered_camera(self) -> Camera:
        """The camera with the field of view of the image's height."""
        if self.aspect >= 1:
            return self.camera
        tangent = (self.camera.fov / 2).deg2rad().tan() / self.aspect
        return replace(self.camera, fov=(2 * tangent.atan()).rad2deg())


# ---------------------------------------------------------------- controls
def modes_of(generator: ImageGenerator) -> tuple[Mode, ...]:
    """What can be shown of a generator; one without a radiance field only has images."""
    return MODES if generator.has_density else MODES[:1]


def within(value: Any, low: float, high: float, otherwise: float) -> float:
    """`value`, or `otherwise` if it is not a number, clamped to [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return min(max(value if is_number else otherwise, low), high)


def whole(value: Any, low: int, high: int, otherwise: int) -> int:
    """As `within`, as an integer."""
    return int(within(value, low, high, otherwise))


def choice_from(controls: Mapping[str, Any], blocks: int) -> Choice:
    """The subject that the controls choose.

    Clamps values out of range, and takes the default for values that are missing or no numbers.

    Args:
        controls: values by the names of Choice's fields.
        blocks: number of blocks of the implicit network.
    """
    default = Choice()

    def seed(name: str) -> int:
        return whole(controls.get(name), 0, LARGEST_SEED, getattr(default, name))

    return Choice(
        seed("shape_seed"),
        seed("appearance_seed"),
        psi_shape=within(controls.get("psi_shape"), 0.0, LARGEST_PSI, default.psi_shape),
        psi_appearance=within(
            controls.get("psi_appearance"), 0.0, LARGEST_PSI, default.psi_appearance
        ),
        mix_seed=seed("mix_seed"),
        mix_from=whole(controls.get("mix_from"), 0, blocks, blocks),
        blend=within(controls.get("blend"), 0.0, 1.0, default.blend),
        inversion=controls.get("inversion"),
    )


def view_from(
    controls: Mapping[str, Any],
    pose: Pose,
    generator: ImageGenerator,
    limits: PoseLimits | None = None,
) -> View | None:
    """The view of controls and camera, every value in range; None for an unusable camera.

    Args:
        controls: values by the names of Choice's fields, and "mode", "side", "coarse", "fine".
        limits: where the camera may be; None for anywhere.
    """
    config = generator.config
    camera = camera_from_viser(pose, config.networks.extent)
    if camera is None:
        return None
    width, height = (whole(x, 0, LARGEST_CANVAS, 0) for x in (pose.width, pose.height))
    canvas_aspect = within(width / height, *_ASPECTS, 1.0) if width and height else 1.0
    widest = _widest(config)
    aspect = within(canvas_aspect, 1 / widest, widest, 1.0)
    mode = controls.get("mode")
    coarse = whole(controls.get("coarse"), *COARSE_SAMPLES, config.sampling.coarse)
    fine = whole(controls.get("fine"), *FINE_SAMPLES, config.sampling.fine)
    return View(
        mode=mode if mode in MODES else MODES[0],
        choice=choice_from(controls, generator.style_blocks),
        camera=camera if limits is None else limits.limited(camera),
        aspect=aspect,
        canvas_aspect=canvas_aspect,
        side=whole(controls.get("side"), *SIDES, config.resolution),
        canvas_side=min(width, height),
        sampling=Sampling(coarse, fine),
    )


def _widest(config: GeneratorConfig) -> float:
    """Largest aspect of an image, and the inverse of the smallest.

    Models are trained on square images. A separate background continues beside the square; other
    models would make things up there.
    """
    return _ASPECTS[1] if config.networks.background in ("plain", "white") else 1.0


# ---------------------------------------------------------------- cameras, ours and viser's
def camera_from_viser(pose: Pose, extent: float) -> Camera | None:
    """Our camera for viser's (both look along OpenCV's axes); None if the numbers make no camera.

    A camera too close to the subject or too far from it is moved along its line to the origin.

    Args:
        extent: half depth of the sampled volume, world units.
    """
    numbers = (*pose.wxyz, *pose.position, pose.fov)
    if len(pose.wxyz) != 4 or len(pose.position) != 3:
        return None
    if not all(math.isfinite(x) and abs(x) < 1e18 for x in numbers):
        return None
    distance = math.hypot(*pose.position)
    if math.hypot(*pose.wxyz) < 1e-9 or distance < 1e-9:
        return None
    matrix = quaternion_matrix(np.array(pose.wxyz))
    clamped = within(distance, _NEAREST * extent, _FARTHEST * extent, 1.0)
    matrix[:3, 3] = np.array(pose.position) * clamped / distance
    fov = within(math.degrees(pose.fov), *FOVS, FOVS[0])
    return Camera.from_opencv(torch.from_numpy(matrix)[None].float(), fov=fov)


def viser_pose(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (4,), a quaternion wxyz, and position (3,) of one camera, as viser takes them."""
    matrix = camera.to_opencv()[0].cpu().double().numpy()
    return quaternion_from_matrix(matrix), matrix[:3, 3]


def keyframe(camera: Camera, earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """One camera as `cips3d.trajectories.keyframes` reads it.

    These are yaw, pitch and field of view in degrees, and the radius. A camera that looks past the
    origin, or is rolled, is given by its 25 numbers ("label").

    Args:
        earlier: keyframes before it. The yaw takes the shorter way from the last of them.
    """
    yaw, pitch = camera.yaw_pitch()
    radius = camera.position.norm(dim=-1)
    upright = Camera.orbit(yaw, pitch, radius)
    if not torch.allclose(upright.cam_to_world, camera.cam_to_world, atol=1e-3):
        return {"label": camera.to_label()[0].tolist()}
    before = 0.0
    for entry in earlier:
        # a label knows no whole turns, so it counts as the turn nearest to the keyframe before
        if "yaw" in entry:
            before = math.radians(entry["yaw"])
        else:
            before = nearest_turn(_label_yaw(entry["label"]), before)
    turned = nearest_turn(float(yaw), before) if earlier else float(yaw)
    values = {"yaw": math.degrees(turned), "pitch": math.degrees(float(pitch))}
    values |= {"fov": float(camera.fov), "radius": float(radius)}
    return {name: round(value, 4) for name, value in values.items()}


def _label_yaw(label: Sequence[float]) -> float:
    return float(Camera.from_label(torch.tensor([label])).yaw_pitch()[0])


def front_camera(poses: PoseDistribution) -> Camera:
    """The camera at the mean of the prior."""
    return poses.at(poses.yaw_mean, poses.pitch_mean)


def prior_cameras(poses: PoseDistribution) -> Camera:
    """Five cameras across the yaws of the prior.

    The outermost are at two standard deviations of a Gaussian, or at the ends.
    """
    draws = torch.tensor([(-2.0, 0.0), (-1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 0.0)])
    return poses.camera(draws if poses.kind == "gaussian" else draws / 4 + 0.5)


def framing_camera(radius: float, aspect: float) -> Camera:
    """A camera from the front and side, in which a ball about the origin fills the window.

    Args:
        radius: radius of the ball, world units.
        aspect: the window's width over its height.
    """
    yaw, pitch, fov = (math.radians(degrees) for degrees in _MESH_VIEW)
    narrower = math.atan(math.tan(fov / 2) * min(1.0, aspect))
    return Camera.orbit(yaw, pitch, radius / math.sin(narrower), _MESH_VIEW[2])
