"""Camera paths: an arc, an orbit, a figure-eight, a dolly zoom, and the way through keyframes that a file lists.

Each is a batch of cameras, one for each frame, float32 on the CPU. Orbit, figure-eight and dolly zoom loop: the frame after the
last would be the first again. Angles are radians and fields of view degrees, as everywhere; keyframes have degrees only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cips3d.camera import Camera
from cips3d.configuration import Configuration, from_dict
from cips3d.errors import UserError

#: More frames are a slip of the finger: nine hours at 30 a second.
MOST_FRAMES = 1_000_000
#: Bounds of a keyframe, in world units and seconds: from farther away float32 cannot tell the samples of a ray apart.
FARTHEST, LONGEST = 1000.0, 86400.0


# ---------------------------------------------------------------- paths by name
def arc(
    frames: int = 7,
    yaw: float = math.pi / 4,
    pitch: float = 0.0,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """Evenly spaced cameras from -yaw to +yaw, both included; one alone stands at yaw.

    Args:
        frames: number of cameras.
        yaw, pitch: radians; |pitch| < π/2.
        radius: distance from the origin, world units.
        fov: full field of view, degrees.

    Raises:
        UserError: for a number out of range; so do all paths.
    """
    _check(frames, radius, fov, pitch)
    yaws = (
        torch.linspace(-yaw, yaw, frames, dtype=torch.float64)
        if frames > 1
        else torch.tensor([yaw], dtype=torch.float64)
    )
    return Camera.orbit(yaws, pitch, radius, fov).to(torch.float32)


def orbit(
    frames: int = 120,
    yaw: float = math.pi / 4,
    pitch: float = 0.0,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """A swing from the front to +yaw, to -yaw and back, slowest where it turns round.

    Args:
        frames, pitch, radius, fov: as in `arc`.
        yaw: how far it goes to either side, radians.
    """
    _check(frames, radius, fov, pitch)
    return Camera.orbit(yaw * _phase(frames).sin(), pitch, radius, fov).to(torch.float32)


def figure_eight(
    frames: int = 120,
    yaw: float = math.pi / 4,
    rise: float = math.pi / 12,
    pitch: float = 0.0,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """An eight on its side: yaw·sin φ and pitch + rise·sin 2φ, so that the subject is seen from above and below on both sides.

    Args:
        frames, radius, fov: as in `arc`.
        yaw: how far it goes to either side, radians.
        rise: how far it goes up and down from `pitch`, radians; |pitch| + |rise| < π/2.
    """
    _check(frames, radius, fov, abs(pitch) + abs(rise))
    phase = _phase(frames)
    return Camera.orbit(yaw * phase.sin(), pitch + rise * (2 * phase).sin(), radius, fov).to(
        torch.float32
    )


def dolly_zoom(
    frames: int = 120,
    to_fov: float = 40.0,
    yaw: float = 0.0,
    pitch: float = 0.0,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """The field of view goes from `fov` to `to_fov` and back while the camera moves so that the subject keeps its size.

    radius·tan(fov/2) is constant: what lies in the plane through the origin that faces the camera stays where it is in the
    picture, what is nearer swells. The strength of the perspective, 1/distance, follows a cosine.

    Args:
        frames, yaw, pitch: as in `arc`; the camera stays at yaw.
        to_fov: the other field of view, degrees. The camera comes as close as radius·tan(fov/2)/tan(to_fov/2).
        radius, fov: those of the first frame.
    """
    _check(frames, radius, fov, pitch)
    _check(frames, radius, to_fov, pitch)
    start, end = (math.tan(math.radians(angle) / 2) for angle in (fov, to_fov))
    tangent = start + (end - start) * (1 - _phase(frames).cos()) / 2
    fovs = torch.rad2deg(2 * torch.atan(tangent))
    return Camera.orbit(torch.full_like(fovs, yaw), pitch, radius * start / tangent, fovs).to(
        torch.float32
    )


def _phase(frames: int) -> Float[Tensor, " frames"]:
    """Angles of one turn, without its end."""
    return torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)


def _check(frames: int, radius: float, fov: float, pitch: float) -> None:
    """Raises UserError for numbers that are no path; Camera refuses angles that are not finite."""
    if not 1 <= frames <= MOST_FRAMES:
        raise UserError(f"trajectory: {frames} frames; give 1 to {MOST_FRAMES}")
    if not radius > 0:
        raise UserError(f"trajectory: a radius of {radius}; it must be positive")
    if not 0 < fov < 180:
        raise UserError(f"trajectory: a field of view of {fov} degrees; give one between 0 and 180")
    if not abs(pitch) < math.pi / 2:
        raise UserError(
            f"trajectory: the pitch reaches {math.degrees(pitch):g} degrees; it must stay below 90"
        )


# ---------------------------------------------------------------- keyframes
@dataclass(frozen=True)
class Keyframe(Configuration):
    """One entry of a file of keyframes: a camera on the sphere, by `yaw` and more, or any camera, by its `label`."""

    yaw: float | None = None
    """degrees, as given: from 0 to 360 is a whole turn"""
    pitch: float | None = None
    """degrees between -90 and 90; 0 by default"""
    radius: float | None = None
    """distance from the origin, world units"""
    fov: float | None = None
    """full field of view, degrees"""
    label: tuple[float, ...] | None = None
    """the 25 numbers of `Camera.to_label`, in place of the four above"""
    seconds: float = 1.0
    """how long the way to the next keyframe takes; of the last one, the way back to the first, if the path is a loop"""

    def __post_init__(self) -> None:
        angles = (self.yaw, self.pitch, self.radius, self.fov)
        for number in (*angles, self.seconds, *(self.label or ())):
            if number is not None and not math.isfinite(number):
                raise UserError(f"{number} is no number to reckon with; give finite ones")
        if (self.label is None) == (angles == (None,) * 4):
            raise UserError(
                "give either yaw (and pitch, radius, fov) in degrees, or a label of 25 numbers"
            )
        if self.label is not None and len(self.label) != 25:
            raise UserError(
                f"the label has {len(self.label)} numbers; it must have 25 (16 of the pose, 9 of the intrinsics)"
            )
        if self.pitch is not None and not abs(self.pitch) < 90:
            raise UserError(f"pitch is {self.pitch:g}; it must lie between -90 and 90 degrees")
        if self.radius is not None and not 0 < self.radius <= FARTHEST:
            raise UserError(
                f"radius is {self.radius:g}; it must be positive and at most {FARTHEST:g}"
            )
        if self.fov is not None and not 0 < self.fov < 180:
            raise UserError(f"fov is {self.fov:g}; it must lie between 0 and 180 degrees")
        if not 0 < self.seconds <= LONGEST:
            raise UserError(
                f"seconds is {self.seconds:g}; it must be positive and at most {LONGEST:g} (a day)"
            )

    def camera(self, radius: float, fov: float) -> Camera:
        """The camera in double precision, with this radius and field of view where the keyframe has none."""
        if self.label is not None:
            return Camera.from_label(torch.tensor([self.label], dtype=torch.float64))
        yaw, pitch = (
            torch.tensor([math.radians(angle or 0.0)], dtype=torch.float64)
            for angle in (self.yaw, self.pitch)
        )
        return Camera.orbit(
            yaw,
            pitch,
            radius if self.radius is None else self.radius,
            fov if self.fov is None else self.fov,
        )


def keyframes(
    source: str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any],
    frames: int | None = None,
    fps: float = 30.0,
    *,
    radius: float = 1.0,
    fov: float = 12.0,
) -> Camera:
    """A smooth path through cameras that a file lists; each keyframe is the camera of one of the frames exactly.

    The path is interpolated on the sphere: yaw, pitch and the logarithms of distance and of the picture's half width at unit
    distance, and the rotation against the camera that would look at the origin from there. So cameras that look at the origin
    do so all the way, upright. Monotone cubic pieces (PCHIP, Fritsch and Carlson 1980): the velocity is continuous (of the
    rotation, the speed) and no number goes beyond those of the keyframes on its two sides.

    Args:
        source: a JSON file, or what would stand in it: a list of keyframes, or {"loop": true, "keyframes": [...]} for a path
            that goes back to its first one. A keyframe is an object with the fields of `Keyframe` (degrees), or a list of 25
            numbers, its label.
        frames: number of cameras, at least one for each keyframe; the times between keyframes keep their proportions, rounded
            to whole frames. Default: what the keyframes' seconds make.
        fps: frames per second, for that.
        radius, fov: of keyframes that give none; world units, degrees.

    Raises:
        UserError: if the file cannot be read, a keyframe is no camera (naming file and keyframe), or there are fewer frames
            than keyframes.
    """
    name, entries, loop = _listed(source)
    keys = [
        _keyframe(entry, f"{name}: keyframe {number}") for number, entry in enumerate(entries, 1)
    ]
    places = np.stack(
        [_place(key, f"{name}: keyframe {i}", radius, fov) for i, key in enumerate(keys, 1)]
    )
    for before, (key, place) in zip(
        places[:-1], zip(keys[1:], places[1:], strict=True), strict=True
    ):
        place[0] = place[0] if key.label is None else nearest_turn(place[0], before[0])
    if not 0 < fps <= MOST_FRAMES:
        raise UserError(f"fps: {fps} is no frame rate; give a positive number")
    seconds = [key.seconds for key in keys]
    legs = seconds if loop or len(keys) == 1 else seconds[:-1]
    if frames is None:
        counted = sum(legs) * fps + (0 if loop else 1)
        frames = max(len(keys), round(min(counted, 2.0 * MOST_FRAMES)))
    _check(frames, 1.0, 90.0, 0.0)
    if frames < len(keys):
        raise UserError(
            f"{name}: {len(keys)} keyframes do not fit into {frames} frames; give at least as many frames (cips3d render: by "
            "--views of a grid, --seconds or --fps of a video)"
        )
    if len(keys) == 1:
        return _cameras(places.repeat(frames, axis=0))
    knots = _whole_frames(np.cumsum([0.0, *legs]), frames if loop else frames - 1)
    turn = (
        np.array([nearest_turn(places[0, 0], places[-1, 0]) - places[0, 0], 0.0, 0.0, 0.0])
        if loop
        else None
    )
    path = np.concatenate(
        [_through(places[:, :4], knots, turn), _turned(places[:, 4:], knots, loop)], axis=1
    )
    return _cameras(path[:frames])


def _listed(
    source: str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any],
) -> tuple[str, list[Any], bool]:
    """What to call the source in an error line, its keyframes, and whether the path is a loop."""
    name, content = "keyframes", source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name} is not a JSON file ({str(error).splitlines()[0]}); give a list of keyframes"
            ) from None
    loop = False
    if isinstance(content, Mapping):
        unknown = [key for key in content if key not in ("loop", "keyframes")]
        loop, listed = content.get("loop", False), content.get("keyframes")
        if unknown or not isinstance(loop, bool):
            fault = (
                f"{unknown[0]!r} has no meaning there"
                if unknown
                else f"loop is {loop!r}, neither true nor false"
            )
            raise UserError(
                f'{name}: {fault}; give {{"loop": true, "keyframes": [...]}}, or the list alone'
            )
        content = listed
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise UserError(f"{name}: holds no list of keyframes; give one with at least one keyframe")
    return name, list(content), loop


def _keyframe(entry: Any, source: str) -> Keyframe:
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        entry = {"label": list(entry)}
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{source}: {entry!r:.40} is neither an object nor a list of 25 numbers; give one of them"
        )
    return from_dict(Keyframe, dict(entry), source)


# ---------------------------------------------------------------- between keyframes
def _place(key: Keyframe, source: str, radius: float, fov: float) -> Float[np.ndarray, " 7"]:
    """What is interpolated: yaw, pitch, log distance, log tan(fov/2), and a rotation vector, by which the camera is turned
    against one that looks at the origin from there.
    """
    from scipy.spatial.transform import (
        Rotation,
    )  # with the splines half a second of loading, which only keyframes need

    try:
        camera = key.camera(radius, fov)
        yaw, pitch = camera.yaw_pitch()
        distance = camera.position.norm(dim=-1)
        if not 1e-6 < float(distance) <= FARTHEST:
            raise UserError(
                f"its camera is {float(distance):g} from the origin; it must be away from it, at most {FARTHEST:g}"
            )
        towards_origin = Camera.orbit(yaw, pitch).cam_to_world[0, :3, :3]
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    turned = towards_origin.mT @ camera.cam_to_world[0, :3, :3]
    scale = torch.stack([distance, torch.tan(torch.deg2rad(camera.fov) / 2)]).log()
    first = math.radians(key.yaw or 0.0) if key.label is None else yaw.item()
    return np.array(
        [
            first,
            pitch.item(),
            *scale.flatten().tolist(),
            *Rotation.from_matrix(turned.numpy()).as_rotvec(),
        ]
    )


def _cameras(places: Float[np.ndarray, "frames 7"]) -> Camera:
    """The inverse of `_place`."""
    from scipy.spatial.transform import Rotation

    yaw, pitch, distance, tangent = torch.from_numpy(places[:, :4].copy()).unbind(-1)
    camera = Camera.orbit(yaw, pitch, distance.exp(), torch.rad2deg(2 * torch.atan(tangent.exp())))
    pose = camera.cam_to_world.clone()
    pose[:, :3, :3] = pose[:, :3, :3] @ torch.from_numpy(
        Rotation.from_rotvec(places[:, 4:]).as_matrix()
    )
    return Camera(pose, camera.fov).to(torch.float32)


def nearest_turn(angle: float, to: float) -> float:
    """The angle, whole turns added, that is nearest to another one; radians."""
    return angle + 2 * math.pi * round((to - angle) / (2 * math.pi))


def _whole_frames(times: Float[np.ndarray, " knots"], last: int) -> Int[np.ndarray, " knots"]:
    """Frame numbers from 0 to `last` in proportion to the times, no two the same; `last` ≥ the number of intervals."""
    order = np.arange(len(times))
    frame = np.rint(times / times[-1] * last).astype(int)
    frame = np.maximum.accumulate(frame - order) + order  # each after the one before it
    return np.minimum(frame, last - order[::-1])  # room for those behind it


def _through(
    values: Float[np.ndarray, "keys n"],
    knots: Int[np.ndarray, " knots"],
    turn: Float[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "frames n"]:
    """The values at every whole number from the first to the last knot, by monotone cubic pieces.

    Args:
        turn: of a loop, what a round adds to the values; it has one more knot, where it is closed.
    """
    from scipy.interpolate import PchipInterpolator

    frames = np.arange(knots[-1] + 1)
    if turn is None:
        return PchipInterpolator(knots, values)(frames)
    # one turn before and one after: slopes depend on the neighbours only, so that they are the same at both ends
    around = [-1, 0, 1]
    times = np.concatenate([knots[:-1] + k * knots[-1] for k in around] + [[2 * knots[-1]]])
    rounds = np.concatenate([values + k * turn for k in around] + [values[:1] + 2 * turn])
    return PchipInterpolator(times, rounds)(frames)


def _turned(
    vectors: Float[np.ndarray, "keys 3"], knots: Int[np.ndarray, " knots"], loop: bool
) -> Float[np.ndarray, "frames 3"]:
    """The rotations at those numbers: from each to the next about one axis, the shorter way, with a continuous speed."""
    from scipy.spatial.transform import Rotation, Slerp

    keys = Rotation.from_rotvec(np.concatenate([vectors, vectors[:1]]) if loop else vectors)
    sizes = np.maximum(
        (keys[:-1].inv() * keys[1:]).magnitude(), 1e-9
    )  # Slerp wants each key behind the one before it
    angles = np.concatenate([[0.0], np.cumsum(sizes)])
    gone = _through(
        (angles[:-1] if loop else angles)[:, None], knots, angles[-1:] if loop else None
    )[:, 0]
    return Slerp(angles, keys)(gone.clip(0, angles[-1])).as_rotvec()
