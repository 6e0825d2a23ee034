"""Videos: subjects along a camera path, or one subject that morphs into the next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.export.media import save_frames
from cips3d.export.strips import Kind, depth_range, image_format, ready, whole_images
from cips3d.models.ops.precision import Precision
from cips3d.models.protocol import ImageGenerator, Prepared
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles


def save_video(
    path: str | os.PathLike[str],
    generator: ImageGenerator,
    codes: Latents | Styles | Sequence[Latents | Styles],
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    fps: float = 30,
    psi: Psi = DEFAULT_PSI,
    show: Kind | Sequence[Kind] = "image",
    supersample: int = 1,
    adaptive: bool = False,
    precision: Precision = "auto",
) -> None:
    """Writes a video frame by frame, in constant memory, whole or not at all.

    Args:
        path: `.mp4` or `.gif`, see `media.save_frames`.
        codes: one subject (a batch of one), or one code per frame. A list shows several subjects
            next to each other.
        cameras: one per frame (see `cips3d.trajectories`), or a single one that stays.
        resolution: side of an image, or (height, width), in pixels; by default the training
            resolution.
        fps: frames per second.
        psi: truncation of latents (see `ImageGenerator.map`).
        show: "image", "nerf" (the auxiliary head's image), "depth", or several of them: side by
            side for one subject, below each other for several. The depth's colours span one range
            throughout the video.
        supersample: n, for n² rays per pixel (see `strips.image_strips`).
        adaptive: whether smooth parts are interpolated (see `cips3d.models.adaptive`).
        precision: of the implicit network (see `cips3d.models.ops.precision`).

    Raises:
        UserError: if a value is out of range, the numbers of codes and cameras differ, a camera is
            inside the sampled volume, or the file cannot be written.
    """
    frames = video_frames(
        generator, codes, cameras, resolution, psi=psi, show=show, supersample=supersample,
        adaptive=adaptive,
        precision=precision,
    )  # fmt: skip
    save_frames(path, frames, fps)


@torch.no_grad()
def video_frames(
    generator: ImageGenerator,
    codes: Latents | Styles | Sequence[Latents | Styles],
    cameras: Camera,
    resolution: int | tuple[int, int] | None = None,
    *,
    psi: Psi = DEFAULT_PSI,
    show: Kind | Sequence[Kind] = "image",
    supersample: int = 1,
    adaptive: bool = False,
    precision: Precision = "auto",
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The frames of `save_video`, one at a time."""
    form = image_format(generator, resolution, show, supersample, adaptive, precision)
    subjects = [codes] if isinstance(codes, Latents | Styles) else list(codes)
    if not subjects:
        raise UserError("video: there is no subject to show; give at least one")
    styles = [one if isinstance(one, Styles) else generator.map(one, psi) for one in subjects]
    lengths = [len(cameras), *(len(one) for one in styles)]
    count = max(lengths)
    for number in lengths:
        if number not in (1, count):
            raise UserError(
                f"video: {number} codes or cameras for {count} frames; give one or {count} of each "
                "(a list shows several subjects side by side: [z[0], z[1]])"
            )
    depths = None
    if "depth" in form.show:
        ranges = [depth_range(generator, one, cameras) for one in styles]
        ends = list(zip(*filter(None, ranges), strict=True))
        depths = (min(ends[0]), max(ends[1])) if ends else None
    shown = [ready(generator, one, form, count) if len(one) == 1 else one for one in styles]
    for frame in range(count):
        camera = cameras[frame if len(cameras) > 1 else 0]
        views = [
            whole_images(generator, _at(one, frame), camera, form, depths)[:, 0] for one in shown
        ]
        # one subject's kinds side by side; several subjects in columns, their kinds in rows
        cells = np.stack(views, axis=0 if len(views) == 1 else 1)
        rows, columns, height, width, _ = cells.shape
        yield cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _at(codes: Styles | Prepared, frame: int) -> Styles | Prepared:
    """The codes of one frame."""
    return codes[frame] if isinstance(codes, Styles) and len(codes) > 1 else codes


def interpolated(styles: Styles, frames: int) -> Styles:
    """Codes of a morph: each subject turns into the next, and the last into the first again.

    The path is straight between mapped codes, where truncation acts. Its speed eases in and out, so
    that each subject is recognisable. Subject k is in the frame nearest to k·frames/count.

    Raises:
        UserError: if there are fewer frames than subjects.
    """
    count = len(styles)
    if frames < count or count == 0:
        raise UserError(
            f"interpolation: {frames} frames for {count} subjects; "
            "give at least one subject, and at least one frame for each"
        )
    start = torch.round(torch.arange(count + 1) * (frames / count)).long()
    frame = torch.arange(frames)
    subject = torch.searchsorted(start, frame, right=True) - 1
    share = (frame - start[subject]) / (start[subject + 1] - start[subject])
    eased = share**2 * (3 - 2 * share)
    following = (subject + 1) % count
    return styles.map(lambda x: torch.lerp(x[subject], x[following], eased.to(x)[:, None]))
