"""`cips3d render`: the same subjects from many sides, as a picture and as a video."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from tqdm import tqdm
from tyro.conf import arg

from cips3d import pretrained, trajectories
from cips3d.camera import Camera
from cips3d.cli.options import (
    RANDOM_PSI,
    Derived,
    Resolution,
    SubjectPsi,
    at_least,
    check_finite,
    check_seed,
    chosen,
    positive,
    share_bar,
    to_device,
)
from cips3d.errors import UserError
from cips3d.export.media import save_frames, save_image
from cips3d.export.sheets import view_sheet
from cips3d.export.strips import KINDS, Kind
from cips3d.export.video import interpolated, video_frames
from cips3d.files import check_writable
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, Styles

_PATHS = ("arc", "orbit", "figure-eight", "dolly-zoom")
_RISE = 1 / 3  # of a figure-eight, as a share of how far it goes to the side


def render(
    model: str,
    out: Path,
    /,
    count: int = 4,
    seed: int = 0,
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED ...", help_behavior_hint="")] = (),
    subject: Derived[Path] = None,
    psi: SubjectPsi = None,
    show: Annotated[
        tuple[Kind, ...], arg(metavar="image|nerf|depth ...", help_behavior_hint="")
    ] = (),
    resolution: Resolution = None,
    supersample: int = 1,
    path: Annotated[
        str | None, arg(metavar="|".join((*_PATHS, "FILE.json")), help_behavior_hint="")
    ] = None,
    yaw: Derived[float] = None,
    pitch: float = 0.0,
    fov: Derived[float] = None,
    views: int = 7,
    seconds: Derived[float] = None,
    fps: int = 30,
    device: str = "auto",
) -> None:
    """Show invented subjects from many sides: a .png gives a grid of views, an .mp4 or .gif a video.

    One large picture: --count 1 --views 1 --show image --resolution 2048.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        out: what to write; its ending decides: .png, .mp4 or .gif.
        count: number of subjects.
        seed: of the latents.
        seeds: subjects one by one, in place of --count and --seed: a row each in a grid; in a video the first turns into the
            second and so on, and the last into the first again.
        subject: the subject of a picture, a file of `cips3d invert`, in place of random ones; with --seeds it is the first.
        psi: truncation: 1 is the full variety, 0 the mean subject. Two numbers: of the shape, of the appearance.
            Default: 0.7, and 1 for a picture's subject.
        show: the picture, the NeRF's picture, the depth (bright is near), beside or below each other. Default: all in a grid,
            the picture in a video.
        resolution: size of a picture in pixels, any. Default: the model's training resolution.
        supersample: rays along each side of a pixel: 2 gives smoother edges in four times the time.
        path: of the camera. arc: from left to right; orbit: to both sides and back; figure-eight: up and down too; dolly-zoom:
            nearer with a wider view; or a file of keyframes (docs/rendering.md). Default: arc in a grid, orbit in a video.
        yaw: how far to turn to either side, degrees; with a single view, and for a dolly-zoom, where the camera stands.
            Default: 45, and 0 where it stands.
        pitch: degrees, positive from above.
        fov: field of view, degrees: less shows less, larger. The one that a dolly-zoom goes to, and that of keyframes which
            have none. Default: the model's own; 40.
        views: columns of the grid.
        seconds: length of the video. Default: 4; with --seeds 2 for each; that of the keyframes.
        fps: frames per second of the video.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    at_least(1, count=count, views=views, fps=fps, supersample=supersample, resolution=resolution)
    check_finite(psi=psi, pitch=pitch, yaw=yaw, fov=fov)
    positive(seconds=seconds)
    check_seed(seed)
    check_seed(*seeds, option="--seeds")
    is_grid = out.suffix.lower() == ".png"
    if not is_grid and out.suffix.lower() not in (".mp4", ".gif"):
        raise UserError(f"{out}: the name must end in .png (a grid), .mp4 or .gif (a video)")
    if is_grid and seconds is not None:
        raise UserError(
            f"--seconds: is the length of a video, and {out} is a grid; leave it out, or write an .mp4 or .gif"
        )
    path = path or ("arc" if is_grid else "orbit")
    if path not in _PATHS and not path.lower().endswith(".json"):
        raise UserError(
            f"--path: {path} is no path; give {', '.join(_PATHS)}, or the name of a .json file with keyframes"
        )
    if path not in _PATHS and (yaw is not None or pitch):
        raise UserError(
            f"--yaw and --pitch: the keyframes in {path} say where the camera is; leave them out"
        )
    check_writable(out)
    generator = to_device(pretrained.load(model), device)
    in_turn = len(seeds) + (subject is not None) if seeds else 0
    frames = views if is_grid else _video_length(path, seconds, fps, in_turn)
    cameras = _cameras(generator, path, frames, fps, yaw, pitch, fov)
    if not seeds:
        styles = chosen(generator, subject, count, seed, psi)
    else:
        styles = generator.map(_by_seeds(generator, seeds), RANDOM_PSI if psi is None else psi)
        if subject is not None:
            styles = _before(chosen(generator, subject, 1, seed, psi), styles)
    if is_grid:
        with share_bar("views") as bar:
            sheet = view_sheet(
                generator,
                styles,
                cameras,
                resolution,
                show=show or KINDS,
                supersample=supersample,
                progress=bar,
            )
        save_image(out, sheet)
    else:
        subjects = (
            [interpolated(styles, len(cameras))]
            if seeds
            else [styles[i] for i in range(len(styles))]
        )
        made = video_frames(
            generator, subjects, cameras, resolution, show=show or "image", supersample=supersample
        )
        save_frames(out, iter(tqdm(made, "video", total=len(cameras), unit="frame", delay=1)), fps)
    print(out)


def _video_length(path: str, seconds: float | None, fps: int, seeds: int) -> int | None:
    """Number of frames; None for what a file of keyframes says."""
    if seconds is None and path not in _PATHS:
        return None
    seconds = (2.0 * seeds or 4.0) if seconds is None else seconds
    return max(2, round(min(seconds * fps, trajectories.MOST_FRAMES + 1)))


def _cameras(
    generator: ImageGenerator,
    path: str,
    frames: int | None,
    fps: int,
    yaw: float | None,
    pitch: float,
    fov: float | None,
) -> Camera:
    """The path's cameras, with the model's own radius and field of view where nothing else is asked for.

    Angles are degrees from the middle of the model's prior, those of keyframes from the world's axes.
    """
    poses = generator.config.poses
    own = {"radius": poses.radius, "fov": poses.fov if fov is None else fov}
    if frames is None or path not in _PATHS:
        return trajectories.keyframes(path, frames, fps, **own)
    stands = path == "dolly-zoom" or frames == 1
    turn, tilt = (
        math.radians((0.0 if stands else 45.0) if yaw is None else yaw),
        math.radians(pitch) + poses.pitch_mean,
    )
    if path == "dolly-zoom":
        cameras = trajectories.dolly_zoom(
            frames, 40.0 if fov is None else fov, turn, tilt, poses.radius, poses.fov
        )
    elif path == "arc" or frames == 1:
        cameras = trajectories.arc(frames, turn, tilt, **own)
    elif path == "orbit":
        cameras = trajectories.orbit(frames, turn, tilt, **own)
    else:
        cameras = trajectories.figure_eight(frames, turn, _RISE * turn, tilt, **own)
    return cameras.turned(poses.yaw_mean)


def _before(first: Styles, others: Styles) -> Styles:
    """A subject, which may have an appearance for each block, and others behind it, which have one for all of them."""
    shape, appearance = torch.cat([first.shape, others.shape]), others.appearance
    assert isinstance(appearance, torch.Tensor)
    if isinstance(first.appearance, torch.Tensor):
        return Styles(shape, torch.cat([first.appearance, appearance]))
    return Styles(shape, [torch.cat([w, appearance]) for w in first.appearance])


def _by_seeds(generator: ImageGenerator, seeds: tuple[int, ...]) -> Latents:
    """The first subject of each seed."""
    each = [generator.sample_latents(1, seed) for seed in seeds]
    return Latents(torch.cat([z.shape for z in each]), torch.cat([z.appearance for z in each]))
