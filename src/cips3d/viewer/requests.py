"""Requests of a client: makes a valid view of whatever its controls and mouse send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from cips3d.camera import Camera
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import Sampling, Styles
from cips3d.viewer.cameras import Pose, PoseLimits, camera_from_viser

Mode = Literal["image", "NeRF image", "depth", "mesh"]
Number = TypeVar("Number", int, float)
MODES: tuple[Mode, ...] = get_args(Mode)

SEEDS = (0, 2**31 - 1)
#: Bounds of the controls, by the names of `Choice`'s fields, and of the refined image.
BOUNDS: dict[str, tuple[Any, Any]] = {
    "shape_seed": SEEDS,
    "appearance_seed": SEEDS,
    "psi_shape": (0.0, 1.5),
    "psi_appearance": (0.0, 1.5),
    "mix_seed": SEEDS,
    "blend": (0.0, 1.0),
    "side": (16, 1024),
    "coarse": (3, 96),
    "fine": (0, 96),
}
#: Sides of a browser's window, pixels.
CANVAS_SIDES = (1, 2**14)
#: Width over height of a window. In wider or narrower ones the image is stretched.
_ASPECTS = (0.25, 4.0)


@dataclass(frozen=True, eq=False)
class PhotoSubject:
    """What was found in a photo; its generator may be tuned to it."""

    generator: RayGenerator
    styles: Styles


@dataclass(frozen=True)
class Choice:
    """The chosen subject; equal choices share what was computed for them.

    Attributes:
        mix_seed: seed of the appearance of the blocks from `mix_from` on.
        mix_from: first block with the second appearance; the number of blocks for none.
        blend: weight of the second model.
        photo: shown instead of the seeds' subject.
    """

    shape_seed: int = 0
    appearance_seed: int = 0
    psi_shape: float = 1.0
    psi_appearance: float = 1.0
    mix_seed: int = 1
    mix_from: int = 10**6
    blend: float = 0.0
    photo: PhotoSubject | None = None


@dataclass(frozen=True)
class View:
    """Everything that an image depends on, except the weights.

    Attributes:
        camera: one camera; its field of view spans the image's shorter side.
        aspect, canvas_aspect: width over height, of the image and of the canvas around it.
        side, canvas_side: shorter sides of the refined image and of the canvas, pixels.
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


def within(value: Any, bounds: tuple[Number, Number], otherwise: Number) -> Number:
    """`value`, or `otherwise` if it is not a number, clamped to the bounds and of their type."""
    is_number = isinstance(value, int | float) and value == value
    low, high = bounds
    return type(low)(min(max(value if is_number else otherwise, low), high))


def view_from(
    controls: Mapping[str, Any],
    pose: Pose,
    generator: ImageGenerator,
    limits: PoseLimits | None = None,
) -> View | None:
    """The view of controls and camera; None for an unusable camera.

    Clamps values out of range, and takes the default for values that are missing or no numbers.
    `controls` has values by the names of `BOUNDS`, and "mix_from", "mode" and "photo".
    """
    config, blocks = generator.config, generator.style_blocks
    camera = camera_from_viser(pose, config.networks.extent)
    if camera is None:
        return None
    defaults = vars(Choice()) | vars(config.sampling) | {"side": config.resolution}
    bounds = BOUNDS | {"mix_from": (0, blocks)}
    values = {name: within(controls.get(name), bounds[name], defaults[name]) for name in bounds}
    side, sampling = values.pop("side"), Sampling(values.pop("coarse"), values.pop("fine"))
    width, height = (within(side, CANVAS_SIDES, 1) for side in (pose.width, pose.height))
    canvas_aspect = within(width / height, _ASPECTS, 1.0)
    # Models are trained on square images. A background of its own continues beyond the square;
    # other models would make things up there.
    is_separate = config.networks.background in ("plain", "white", "field")
    mode = controls.get("mode")
    return View(
        mode=mode if mode in MODES else MODES[0],
        choice=Choice(**values, photo=controls.get("photo")),
        camera=camera if limits is None else limits.limited(camera),
        aspect=canvas_aspect if is_separate else 1.0,
        canvas_aspect=canvas_aspect,
        side=side,
        canvas_side=min(width, height),
        sampling=sampling,
    )
