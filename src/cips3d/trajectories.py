"""Camera paths: arc, orbit, figure-eight, dolly zoom, and paths through the keyframes of a file.

Each is a batch of pinhole cameras, float32 on the CPU (`Camera.as_orthographic` takes
their perspective away). Orbit, figure-eight and dolly zoom loop: the frame after the last would be
the first again. Angles are radians and fields of view degrees; keyframes use degrees only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float, Int
from pydantic import AllowInfNan, ConfigDict
from torch import Tensor

from cips3d.camera import Camera
from cips3d.configuration import FieldOfView, Finite, Positive, from_dict, validated
from cips3d.errors import UserError, first_line

#: More frames are a typo: nine hours at 30 per second.
MOST_FRAMES = 1_000_000
#: Bounds of a keyframe: from farther away the rounding of float32 poses shifts the image by more
#: than a thousandth of its height (world units); a day (seconds).
FARTHEST, LONGEST = 1000.0, 86400.0
Frames = Annotated[int, Ge(1), Le(MOST_FRAMES)]
Radius = Annotated[float, AllowInfNan(False), Gt(0), Le(FARTHEST)]
Seconds = Annotated[float, AllowInfNan(False), Gt(0), Le(LONGEST)]
FrameRate = Annotated[float, AllowInfNan(False), Gt(0), Le(MOST_FRAMES)]
#: Keyframes: a JSON file, or its content.
Source = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any]


# ---------------------------------------------------------------- paths by name
def arc(
    frames: int = 7, yaw: float = pi / 4, pitch: float = 0, radius: float = 1, fov: float = 12
) -> Camera:
    """Evenly spaced cameras from -yaw to yaw, both included; a single one is at yaw.

    Args:
        frames: number of cameras.
        yaw, pitch: radians; |pitch| < π/2.
        radius: distance from the origin, world units.
        fov: full field of view, degrees.

    Raises:
        UserError: for a number out of range, as in all paths.
    """
    _check(frames, radius, fov, pitch)
    yaws = torch.linspace(-yaw if frames > 1 else yaw, yaw, frames, dtype=torch.float64)
    return Camera.orbit(yaws, pitch, radius, fov).to(torch.float32)


def orbit(
    frames: int = 120, yaw: float = pi / 4, pitch: float = 0, radius: float = 1, fov: float = 12
) -> Camera:
    """A swing from the front to yaw, to -yaw and back, slowest at the turning points.

    Arguments as in `arc`.
    """
    return figure_eight(frames, yaw, 0, pitch, radius, fov)


def figure_eight(
    frames: int = 120,
    yaw: float = pi / 4,
    rise: float = pi / 12,
    pitch: float = 0,
    radius: float = 1,
    fov: float = 12,
) -> Camera:
    """An eight on its side, yaw·sin φ and pitch + rise·sin 2φ: from above and below on both sides.

    Args:
        frames, radius, fov: as in `arc`.
        yaw: largest yaw on either side, radians.
        rise: largest distance from `pitch`, radians; |pitch| + |rise| < π/2.
    """
    _check(frames, radius, fov, abs(pitch) + abs(rise))
    phase = _phase(frames)
    pitches = pitch + rise * (2 * phase).sin()
    return Camera.orbit(yaw * phase.sin(), pitches, radius, fov).to(torch.float32)


def dolly_zoom(
    frames: int = 120,
    to_fov: float = 40,
    yaw: float = 0,
    pitch: float = 0,
    radius: float = 1,
    fov: float = 12,
) -> Camera:
    """The field of view widens to `to_fov` and back while the subject keeps its size.

    radius·tan(fov/2) is constant: the plane through the origin that faces the camera stays in place
    in the image, and nearer things swell. The strength of the perspective, 1/distance, follows a
    cosine.

    Args:
        frames, yaw, pitch: as in `arc`; the camera stays at yaw.
        to_fov: the other field of view, degrees. The camera comes as close as
            radius·tan(fov/2)/tan(to_fov/2).
        radius, fov: of the first frame.
    """
    _check(frames, radius, fov, pitch)
    _check(frames, radius, to_fov, pitch)
    start, end = (math.tan(math.radians(angle) / 2) for angle in (fov, to_fov))
    tangent = start + (end - start) * (1 - _phase(frames).cos()) / 2
    fovs = torch.rad2deg(2 * torch.atan(tangent))
    yaws = torch.full_like(fovs, yaw)
    return Camera.orbit(yaws, pitch, radius * start / tangent, fovs).to(torch.float32)


def _phase(frames: int) -> Float[Tensor, " frames"]:
    """Angles of one turn, without its end."""
    return torch.arange(frames, dtype=torch.float64) * (2 * pi / frames)


def _check(frames: int, radius: float, fov: float, pitch: float) -> None:
    """Raises UserError for numbers out of range; `Camera` rejects yaws that are not finite."""
    validated(Frames, frames, "trajectory: frames")
    validated(Positive, radius, "trajectory: radius")
    validated(FieldOfView, fov, "trajectory: fov")
    if not abs(pitch) < pi / 2:
        raise UserError(
            f"trajectory: the pitch reaches {math.degrees(pitch):g} degrees; it must stay below 90"
        )


# ---------------------------------------------------------------- keyframes
@dataclass(frozen=True)
class Keyframe:
    """A keyframe: a camera on the sphere (by `yaw` and more), or any camera (by its `label`)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    yaw: Finite | None = None
    """degrees, as given: from 0 to 360 is a whole turn"""
    pitch: Annotated[float, AllowInfNan(False), Gt(-90), Lt(90)] | None = None
    """degrees; 0 by default"""
    radius: Radius | None = None
    """distance from the origin, world units"""
    fov: FieldOfView | None = None
    """full field of view, degrees"""
    label: tuple[Finite, ...] | None = None
    """the 25 numbers of `Camera.to_label`, in place of the four fields above"""
    seconds: Seconds = 1.0
    """duration until the next keyframe; of the last one, until the first again if the path loops"""

    def __post_init__(self) -> None:
        has_angles = (self.yaw, self.pitch, self.radius, self.fov) != (None,) * 4
        if (self.label is not None) == has_angles:
            raise UserError("give either yaw (and pitch, radius, fov), or a label of 25 numbers")
        if self.label is not None and len(self.label) != 25:
            raise UserError(
                f"the label has {len(self.label)} numbers; it must have 25 "
                "(16 of the pose, 9 of the intrinsics)"
            )

    def camera(self, radius: float, fov: float) -> Camera:
        """The camera in double precision; `radius` and `fov` fill in for missing fields."""
        if self.label is not None:
            return Camera.from_label(torch.tensor([self.label], dtype=torch.float64))
        yaw = torch.tensor([math.radians(self.yaw or 0.0)], dtype=torch.float64)
        pitch = math.radians(self.pitch or 0.0)
        return Camera.orbit(yaw, pitch, self.radius or radius, self.fov or fov)


def keyframes(
    source: Source,
    frames: int | None = None,
    fps: float = 30.0,
    *,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """A smooth path through the cameras of a file; every keyframe is one of the frames exactly.

    Interpolates on the sphere: yaw, pitch, the logarithms of distance and of the image's half width
    at unit distance, and the rotation relative to a camera there that looks at the origin. So
    cameras that look at the origin do so all the way, upright. The pieces are monotone cubics
    (PCHIP, Fritsch and Carlson 1980): velocity (of the rotation, speed) is continuous, and no value
    leaves the range of the two keyframes around it.

    Args:
        source: a JSON file or its content: a list of keyframes, or {"loop": true, "keyframes":
            [...]} for a path that returns to its start. A keyframe is an object with the fields of
            `Keyframe` (degrees), or a label of 25 numbers.
        frames: number of cameras, at least one per keyframe. Times between keyframes keep their
            proportions, rounded to whole frames. Default: the sum of the keyframes' seconds.
        fps: frames per second, for that default.
        radius, fov: for keyframes without their own; world units, degrees.

    Raises:
        UserError: if the file cannot be read, a keyframe is not a camera (the line names file and
            keyframe), or there are fewer frames than keyframes.
    """
    name, entries, loop = _listed(source)
    sources = [f"{name}: keyframe {number}" for number in range(1, len(entries) + 1)]
    keys = [_keyframe(*entry) for entry in zip(entries, sources, strict=True)]
    places = np.stack([_place(*key, radius, fov) for key in zip(keys, sources, strict=True)])
    for i in range(1, len(keys)):
        if keys[i].label is not None:  # whose yaw is known up to whole turns
            places[i, 0] = nearest_turn(places[i, 0], places[i - 1, 0])
    validated(FrameRate, fps, "trajectory: fps")
    seconds = [key.seconds for key in keys]
    legs = seconds if loop or len(keys) == 1 else seconds[:-1]
    if frames is None:
        counted = sum(legs) * fps + (0 if loop else 1)
        frames = max(len(keys), round(min(counted, 2.0 * MOST_FRAMES)))
    validated(Frames, frames, "trajectory: frames")
    if frames < len(keys):
        raise UserError(
            f"{name}: {len(keys)} keyframes do not fit into {frames} frames; use more frames "
            "(cips3d render: --views for a grid, --seconds or --fps for a video)"
        )
    if len(keys) == 1:
        return _cameras(places.repeat(frames, axis=0))
    knots = _whole_frames(np.cumsum([0.0, *legs]), frames if loop else frames - 1)
    around = nearest_turn(places[0, 0], places[-1, 0]) - places[0, 0]
    turn = np.array([around, 0.0, 0.0, 0.0]) if loop else None
    parts = [_through(places[:, :4], knots, turn), _turned(places[:, 4:], knots, loop)]
    return _cameras(np.concatenate(parts, axis=1)[:frames])


def _listed(source: Source) -> tuple[str, list[Any], bool]:
    """The source's name for error lines, its keyframes, and whether the path loops."""
    name, content = "keyframes", source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(f"cannot read {name}: {first_line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name} is not a JSON file ({first_line(error)}); give a list of keyframes"
            ) from None
    loop = False
    if isinstance(content, Mapping):
        loop = content.get("loop", False)
        faults = [f"{key!r} is unknown" for key in content if key not in ("loop", "keyframes")]
        if not isinstance(loop, bool):
            faults.append(f"loop is {loop!r}, neither true nor false")
        if faults:
            raise UserError(
                f'{name}: {faults[0]}; give {{"loop": true, "keyframes": [...]}}, or the list alone'
            )
        content = content.get("keyframes")
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise UserError(f"{name}: no list of keyframes; give one with at least one keyframe")
    return name, list(content), loop


def _keyframe(entry: Any, source: str) -> Keyframe:
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        entry = {"label": list(entry)}
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{source}: {entry!r:.40} is neither an object nor a list of 25 numbers; give either"
        )
    return from_dict(Keyframe, dict(entry), source)


# ---------------------------------------------------------------- between keyframes
def _place(key: Keyframe, source: str, radius: float, fov: float) -> Float[np.ndarray, " 7"]:
    """What is interpolated: yaw, pitch, log distance, log tan(fov/2), and a rotation vector.

    The rotation is relative to a camera in the same place that looks at the origin.
    """
    # takes half a second to import, with the splines, and only keyframes need it
    from scipy.spatial.transform import Rotation

    try:
        camera = key.camera(radius, fov)
        yaw, pitch = camera.yaw_pitch()
        distance = camera.position.norm(dim=-1)
        if not 1e-6 < float(distance) <= FARTHEST:
            raise UserError(
                f"its camera is {float(distance):g} from the origin; "
                f"the distance must be above 0 and at most {FARTHEST:g}"
            )
        towards_origin = Camera.orbit(yaw, pitch).cam_to_world[0, :3, :3]
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    turned = towards_origin.mT @ camera.cam_to_world[0, :3, :3]
    scale = torch.stack([distance, torch.tan(torch.deg2rad(camera.fov) / 2)]).log()
    first = math.radians(key.yaw or 0.0) if key.label is None else yaw.item()
    rotation = Rotation.from_matrix(turned.numpy(force=True)).as_rotvec()
    return np.array([first, pitch.item(), *scale.flatten().tolist(), *rotation])


def _cameras(places: Float[np.ndarray, "frames 7"]) -> Camera:
    """The inverse of `_place`."""
    from scipy.spatial.transform import Rotation

    yaw, pitch, distance, tangent = torch.from_numpy(places[:, :4].copy()).unbind(-1)
    camera = Camera.orbit(yaw, pitch, distance.exp(), torch.rad2deg(2 * torch.atan(tangent.exp())))
    turned = torch.from_numpy(Rotation.from_rotvec(places[:, 4:]).as_matrix())
    pose = camera.cam_to_world.clone()
    pose[:, :3, :3] = pose[:, :3, :3] @ turned
    return Camera(pose, camera.fov).to(torch.float32)


def nearest_turn(angle: float, to: float) -> float:
    """The angle plus the whole turns that bring it nearest to another one; radians."""
    return angle + 2 * pi * round((to - angle) / (2 * pi))


def _whole_frames(times: Float[np.ndarray, " knots"], last: int) -> Int[np.ndarray, " knots"]:
    """Different frame numbers from 0 to `last` (at least the intervals) proportional to times."""
    order = np.arange(len(times))
    frame = np.rint(times / times[-1] * last).astype(int)
    frame = np.maximum.accumulate(frame - order) + order  # each after the one before
    return np.minimum(frame, last - order[::-1])  # with room for those after it


def _through(
    values: Float[np.ndarray, "keys n"],
    knots: Int[np.ndarray, " knots"],
    turn: Float[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "frames n"]:
    """The values at every frame from the first to the last knot, by monotone cubic pieces.

    A loop has one more knot, which closes it, and each round adds `turn` to its values.
    """
    from scipy.interpolate import PchipInterpolator

    frames = np.arange(knots[-1] + 1)
    if turn is None:
        return PchipInterpolator(knots, values)(frames)
    # one round before and one after: slopes depend on the neighbours only, so both ends agree
    around = [-1, 0, 1]
    times = np.concatenate([knots[:-1] + k * knots[-1] for k in around] + [[2 * knots[-1]]])
    rounds = np.concatenate([values + k * turn for k in around] + [values[:1] + 2 * turn])
    return PchipInterpolator(times, rounds)(frames)


def _turned(
    vectors: Float[np.ndarray, "keys 3"], knots: Int[np.ndarray, " knots"], loop: bool
) -> Float[np.ndarray, "frames 3"]:
    """The rotations at every frame: each leg about one axis, the shorter way, without jolts."""
    from scipy.spatial.transform import Rotation, Slerp

    keys = Rotation.from_rotvec(np.concatenate([vectors, vectors[:1]]) if loop else vectors)
    # above 0, since Slerp needs increasing times
    sizes = np.maximum((keys[:-1].inv() * keys[1:]).magnitude(), 1e-9)
    angles = np.concatenate([[0.0], np.cumsum(sizes)])
    known, turn = (angles[:-1], angles[-1:]) if loop else (angles, None)
    passed = _through(known[:, None], knots, turn)[:, 0]
    return Slerp(angles, keys)(passed.clip(0, angles[-1])).as_rotvec()
