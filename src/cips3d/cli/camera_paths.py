"""Camera paths by name, for `cips3d render`."""

from __future__ import annotations

import math

from cips3d import trajectories
from cips3d.camera import Camera
from cips3d.models.protocol import ImageGenerator

#: A figure-eight's pitch as a share of its yaw; a dolly zoom's field of view in degrees.
_RISE, _DOLLY_FOV = 1 / 3, 40.0
#: Yaw to either side in degrees where none is given.
_TURN = 45.0


def path_cameras(
    generator: ImageGenerator,
    path: str,
    frames: int | None,
    fps: int,
    yaw: float | None,
    pitch: float,
    fov: float | None,
) -> Camera:
    """The cameras of a path, by default at the model's radius and field of view.

    Args:
        path: "arc", "orbit", "figure-eight", "dolly-zoom" or a file of keyframes.
        frames: number of cameras; None for what the keyframes ask for.
        yaw, pitch: degrees from the mean of the model's prior. Keyframes use the world's axes.
    """
    poses = generator.config.poses
    own = {"radius": poses.radius, "fov": poses.fov if fov is None else fov}
    if frames is None or path.lower().endswith(".json"):
        return trajectories.keyframes(path, frames, fps, **own)
    is_fixed = path == "dolly-zoom" or frames == 1
    turn = math.radians((0.0 if is_fixed else _TURN) if yaw is None else yaw)
    tilt = math.radians(pitch) + poses.pitch_mean
    if path == "dolly-zoom":
        end = _DOLLY_FOV if fov is None else fov
        cameras = trajectories.dolly_zoom(frames, end, turn, tilt, poses.radius, poses.fov)
    elif path == "arc" or frames == 1:
        cameras = trajectories.arc(frames, turn, tilt, **own)
    elif path == "orbit":
        cameras = trajectories.orbit(frames, turn, tilt, **own)
    else:
        cameras = trajectories.figure_eight(frames, turn, _RISE * turn, tilt, **own)
    return cameras.turned(poses.yaw_mean)


def frame_count(path: str, seconds: float | None, fps: int, subjects: int) -> int | None:
    """Frames of a video; None for what a file of keyframes asks for.

    Args:
        subjects: that follow each other, 2 seconds each; 0 for a video of 4 seconds.
    """
    if seconds is None and path.lower().endswith(".json"):
        return None
    seconds = (2.0 * subjects or 4.0) if seconds is None else seconds
    return max(2, round(min(seconds * fps, trajectories.MOST_FRAMES + 1)))
