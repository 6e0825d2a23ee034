"""Videos: subjects seen by a path of cameras, or one subject that turns into the next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.export.media import save_frames
from cips3d.export.strips import Kind, PictureFormat, depth_range, pictures
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, Styles


def save_video(
    path: str | os.PathLike[str],
    generator: ImageGenerator,
    codes: Latents | Styles | Sequence[Latents | Styles],
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    fps: float = 30,
    psi: float | tuple[float, float] = 1.0,
    show: Kind | Sequence[Kind] = "image",
    supersample: int = 1,
) -> None:
    """Writes a video, frame by frame, so that memory does not grow with its length; the file appears whole or not at all.

    Args:
        path: `.mp4` or `.gif`, see `media.save_frames`.
        codes: one subject (a batch of one), or one code for each frame; a list of such stands side by side.
        cameras: one for each frame (see `cips3d.trajectories`), or a single one that stands still.
        resolution: side of a picture, or (height, width), in pixels; by default the training resolution.
        fps: frames per second.
        psi: truncation of latents, one ψ or one each for shape and appearance (see `Generator.map`).
        show: "image", "nerf" (the auxiliary head's image) or "depth", or several: of one subject side by side, of several
            subjects one below the other. The depth's colours span one range through the whole video.
        supersample: n, for n² rays a pixel (see `tiles.picture_strips`).

    Raises:
        UserError: if a value is out of range, the numbers of codes and cameras differ, a camera stands within the sampled
            volume, or the file cannot be written.
    """
    frames = video_frames(
        generator, codes, cameras, resolution, psi=psi, show=show, supersample=supersample
    )
    save_frames(path, frames, fps)


@torch.no_grad()
def video_frames(
    generator: ImageGenerator,
    codes: Latents | Styles | Sequence[Latents | Styles],
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: float | tuple[float, float] = 1.0,
    show: Kind | Sequence[Kind] = "image",
    supersample: int = 1,
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The frames of `save_video`, made one after the other."""
    form = PictureFormat.of(generator, resolution, show, supersample)
    subjects = [codes] if isinstance(codes, Latents | Styles) else list(codes)
    if not subjects:
        raise UserError("video: there is no subject to show; give at least one")
    styles = [one if isinstance(one, Styles) else generator.map(one, psi) for one in subjects]
    count = max(len(cameras), *(len(one) for one in styles))
    for number in (len(cameras), *(len(one) for one in styles)):
        if number not in (1, count):
            raise UserError(
                f"video: {number} codes or cameras for {count} frames; give one or {count} of each (side by side "
                "they are a list: [z[0], z[1]])"
            )
    depths = None
    if "depth" in form.show:
        ranges = [
            found for one in styles if (found := depth_range(generator, one, cameras)) is not None
        ]
        depths = (
            (min(near for near, _ in ranges), max(far for _, far in ranges)) if ranges else None
        )
    for frame in range(count):
        camera = cameras[frame if len(cameras) > 1 else 0]
        views = [
            pictures(generator, one[frame if len(one) > 1 else 0], camera, form, depths)[:, 0]
            for one in styles
        ]
        yield _joined(np.stack(views))


def _joined(
    views: UInt8[np.ndarray, "subjects kinds height width 3"],
) -> UInt8[np.ndarray, "all_height all_width 3"]:
    """One subject's kinds side by side; with several subjects a column for each and a row for each kind."""
    cells = views if len(views) == 1 else views.swapaxes(0, 1)
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def interpolated(styles: Styles, frames: int) -> Styles:
    """Codes of a video in which each subject turns into the next and the last into the first again.

    The way is straight in the space of mapped codes, in which truncation acts, and the speed eases in and out, so that the
    subjects themselves can be recognised. Subject k itself is in the frame nearest to k·frames/count.

    Args:
        styles: the subjects, truncated as wanted (`Generator.map`).
        frames: at least one for each subject.

    Returns:
        One code for each frame.

    Raises:
        UserError: if there are fewer frames than subjects.
    """
    count = len(styles)
    if frames < count or count == 0:
        raise UserError(
            f"interpolation: {frames} frames for {count} subjects; give at least one of each, and as many frames"
        )
    start = torch.round(torch.arange(count + 1) * (frames / count)).long()
    frame = torch.arange(frames)
    subject = torch.searchsorted(start, frame, right=True) - 1
    share = (frame - start[subject]) / (start[subject + 1] - start[subject])
    eased = share**2 * (3 - 2 * share)
    following = (subject + 1) % count
    return styles.map(lambda x: torch.lerp(x[subject], x[following], eased.to(x)[:, None]))
