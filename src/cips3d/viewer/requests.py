"""What a client wants to see: controls and a mouse may say anything, this makes values of it that can be rendered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from trimesh.transformations import quaternion_from_matrix, quaternion_matrix

from cips3d.camera import Camera, PoseDistribution
from cips3d.models.config import GeneratorConfig
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Sampling
from cips3d.trajectories import nearest_turn

Mode = Literal["image", "NeRF image", "depth", "mesh"]
MODES: tuple[Mode, ...] = get_args(Mode)

#: Bounds of the controls.
LARGEST_SEED = 2**31 - 1
LARGEST_PSI = 1.5
SIDES = (16, 1024)
COARSE_SAMPLES, FINE_SAMPLES = (3, 96), (0, 96)
FOVS = (0.1, 150.0)
#: Largest side of a browser's window, pixels.
LARGEST_CANVAS = 2**14
#: Its width over height: of wider or narrower ones the picture is stretched.
_ASPECTS = (0.25, 4.0)
#: How far from the subject the camera may be, in half extents of the volume: inside it rays would start in the subject.
_NEAREST, _FARTHEST = 1.05, 1000.0


@dataclass(frozen=True)
class Choice:
    """Which subject is chosen; equal for equal ones, so that what was made for it can be kept.

    Attributes:
        shape_seed, appearance_seed: of z_s and z_a.
        psi_shape, psi_appearance: truncation.
        mix_seed: of the appearance of the blocks from `mix_from` on.
        mix_from: the first block with the other appearance; the number of blocks for none.
        blend: amount of the second model.
        inversion: number of the inverted picture that is shown instead of seeds; None for seeds.
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
    """A viewer's camera as viser tells it.

    Attributes:
        wxyz: rotation from OpenCV camera axes to the world, a quaternion.
        position: in the world.
        fov: full vertical field of view, radians.
        width, height: of the browser's canvas, pixels.
    """

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """Everything that a picture depends on but for the weights.

    Attributes:
        camera: one camera.
        aspect, canvas_aspect: width over height, of the picture and of the canvas, as high, on which it is centred.
        side: height of the refined picture, pixels.
        sampling: of the refined picture.
    """

    mode: Mode
    choice: Choice
    camera: Camera
    aspect: float
    canvas_aspect: float
    side: int
    sampling: Sampling

    def size(self, side: int) -> tuple[int, int]:
        """Height and width of a picture that is `side` pixels high."""
        return side, max(1, round(side * self.aspect))


# ---------------------------------------------------------------- what the controls say
def modes_of(generator: ImageGenerator) -> tuple[Mode, ...]:
    """What can be shown of a generator; one without a radiance field has pictures only."""
    return MODES if generator.has_density else MODES[:1]


def within(value: Any, low: float, high: float, otherwise: float) -> float:
    """`value`, or `otherwise` if it is no number, clamped to [low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return min(max(value if is_number else otherwise, low), high)


def whole(value: Any, low: int, high: int, otherwise: int) -> int:
    """As `within`, a whole number."""
    return int(within(value, low, high, otherwise))


def choice_from(controls: Mapping[str, Any], blocks: int) -> Choice:
    """The subject that controls ask for; what is missing, out of range or no number at all is clamped or passed over.

    Args:
        controls: values by the names of Choice's fields.
        blocks: of the implicit network.
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


def view_from(controls: Mapping[str, Any], pose: Pose, generator: ImageGenerator) -> View | None:
    """The view that controls and camera ask for, every value in range; None if the camera is garbage.

    Args:
        controls: values by the names of Choice's fields, and "mode", "side", "coarse", "fine".
    """
    config = generator.config
    camera = camera_from_viser(pose, config.networks.extent)
    if camera is None:
        return None
    width, height = (whole(x, 0, LARGEST_CANVAS, 0) for x in (pose.width, pose.height))
    aspect = within(width / height, *_ASPECTS, 1.0) if width and height else 1.0
    mode = controls.get("mode")
    coarse = whole(controls.get("coarse"), *COARSE_SAMPLES, config.sampling.coarse)
    fine = whole(controls.get("fine"), *FINE_SAMPLES, config.sampling.fine)
    return View(
        mode=mode if mode in MODES else MODES[0],
        choice=choice_from(controls, generator.style_blocks),
        camera=camera,
        aspect=min(aspect, widest(config)),
        canvas_aspect=aspect,
        side=whole(controls.get("side"), *SIDES, config.resolution),
        sampling=Sampling(coarse, fine),
    )


# ---------------------------------------------------------------- cameras, ours and viser's
def camera_from_viser(pose: Pose, extent: float) -> Camera | None:
    """Our camera for viser's (both look along OpenCV's axes); None if no camera can be made of it.

    A camera that is too close to the subject is moved away from it along the line to the origin, and one too far away nearer.

    Args:
        extent: half depth of the sampled volume, world units.
    """
    numbers = (*pose.wxyz, *pose.position, pose.fov)
    if (
        len(pose.wxyz) != 4
        or len(pose.position) != 3
        or not all(math.isfinite(x) and abs(x) < 1e18 for x in numbers)
    ):
        return None
    distance = math.hypot(*pose.position)
    if math.hypot(*pose.wxyz) < 1e-9 or distance < 1e-9:
        return None
    matrix = quaternion_matrix(np.array(pose.wxyz))
    matrix[:3, 3] = (
        np.array(pose.position)
        * within(distance, _NEAREST * extent, _FARTHEST * extent, 1.0)
        / distance
    )
    return Camera.from_opencv(
        torch.from_numpy(matrix)[None].float(), fov=within(math.degrees(pose.fov), *FOVS, FOVS[0])
    )


def viser_pose(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (4,), a quaternion wxyz, and position (3,) of one camera, as viser wants them."""
    matrix = camera.to_opencv()[0].cpu().double().numpy()
    return quaternion_from_matrix(matrix), matrix[:3, 3]


def keyframe(camera: Camera, earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """One camera as `cips3d.trajectories.keyframes` reads it: yaw, pitch and field of view in degrees, and the radius.

    A camera that does not look at the origin, or is not upright, is given by its 25 numbers ("label").

    Args:
        earlier: keyframes before it; the yaw is given such that the shorter way leads here from the last of them.
    """
    yaw, pitch = camera.yaw_pitch()
    radius = camera.position.norm(dim=-1)
    if not torch.allclose(
        Camera.orbit(yaw, pitch, radius).cam_to_world, camera.cam_to_world, atol=1e-3
    ):
        return {"label": camera.to_label()[0].tolist()}
    before = 0.0
    for entry in (
        earlier
    ):  # a label has no whole turns of its own: it is where it is nearest to the one before it
        before = (
            math.radians(entry["yaw"])
            if "yaw" in entry
            else nearest_turn(_label_yaw(entry["label"]), before)
        )
    turned = nearest_turn(float(yaw), before) if earlier else float(yaw)
    angles = {"yaw": math.degrees(turned), "pitch": math.degrees(float(pitch))}
    return {
        name: round(value, 4)
        for name, value in (angles | {"fov": float(camera.fov), "radius": float(radius)}).items()
    }


def _label_yaw(label: Sequence[float]) -> float:
    return float(Camera.from_label(torch.tensor([label])).yaw_pitch()[0])


def front_camera(poses: PoseDistribution) -> Camera:
    """The camera in the middle of the prior."""
    return poses.at(poses.yaw_mean, poses.pitch_mean)


def prior_cameras(poses: PoseDistribution) -> Camera:
    """Five cameras from side to side of the prior, the outermost at two standard deviations (of a uniform one at its ends)."""
    draws = torch.tensor([(-2.0, 0.0), (-1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (2.0, 0.0)])
    return poses.camera(draws if poses.kind == "gaussian" else draws / 4 + 0.5)


def widest(config: GeneratorConfig) -> float:
    """The widest picture, width over height, that fills its canvas.

    Models have seen square pictures only. Beside them, one that paints its background apart has more of that, others invent.
    """
    return _ASPECTS[1] if config.networks.background in ("plain", "white") else 1.0
