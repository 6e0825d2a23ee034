"""`cips3d render`: subjects from many sides, as a grid of images or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from cips3d.cli.options import (
    IMAGES,
    Count,
    Degrees,
    Derived,
    Device,
    FieldOfView,
    ImageSize,
    Kinds,
    Limited,
    Model,
    Seed,
    Subjects,
    written_as,
)
from cips3d.cli.output import finished, progress, tracked
from cips3d.errors import UserError
from cips3d.files import check_writable

_PATHS = ("arc", "orbit", "figure-eight", "dolly-zoom")


def render(
    model: Model,
    out: Annotated[Path, written_as(*IMAGES, ".mp4", ".gif")],
    /,
    subjects: OmitArgPrefixes[Subjects],
    size: OmitArgPrefixes[ImageSize],
    count: Derived[Count] = None,
    seeds: Annotated[tuple[Seed, ...], arg(metavar="SEED ...", help_behavior_hint="")] = (),
    show: Kinds = (),
    path: Annotated[
        str | None, arg(metavar="|".join((*_PATHS, "FILE.json")), help_behavior_hint="")
    ] = None,
    yaw: Derived[Degrees] = None,
    pitch: Degrees = 0.0,
    fov: Derived[FieldOfView] = None,
    views: Count = 7,
    seconds: Derived[Limited] = None,
    fps: Count = 30,
    device: Device = "auto",
) -> None:
    """Render subjects from many sides, as a grid or a video.

    The suffix of OUT decides: an image (.png or .jpg) is a grid of views, .mp4 and .gif are
    videos.

    Args:
        out: File to write: .png, .jpg, .mp4 or .gif.
        count: Number of subjects. Default: 4 in a grid, 1 in a video.
        seeds: Single subjects, instead of --count and --seed. A grid has a row for each; a video
            morphs from one to the next and back to the first.
        show: Which images to show: the image, the NeRF's image, the depth map (near is bright).
            Default: all in a grid, the image in a video.
        path: Camera path. arc: from left to right; orbit: to both sides and back; figure-eight:
            up and down as well; dolly-zoom: closer with a wider view; or a file of keyframes
            (docs/rendering.md). Default: arc for a grid, orbit for a video.
        yaw: Degrees to either side; the camera's yaw for a single view and for a dolly zoom.
            Default: 45, and 0 for a single view and for a dolly zoom.
        pitch: Degrees, positive from above.
        fov: Field of view in degrees; for a dolly zoom the one at its end. Default: the model's,
            and 40 for a dolly zoom.
        views: Columns of the grid.
        seconds: Length of the video. Default: 4; 2 per subject with --seeds; that of the
            keyframes.
        fps: Frames per second of the video.

    Examples:
        cips3d render heads views.png
        cips3d render heads turn.mp4 --path figure-eight --show image depth
        cips3d render heads big.png --count 1 --views 1 --show image --resolution 2048
    """
    is_grid = out.suffix.lower() in IMAGES
    path = path or ("arc" if is_grid else "orbit")
    if is_grid and seconds is not None:
        raise UserError(f"--seconds: {out} is a grid; leave it out, or write an .mp4 or .gif")
    if path not in _PATHS and not path.lower().endswith(".json"):
        choices = ", ".join(_PATHS)
        raise UserError(f"--path is {path}; choose {choices} or a .json file with keyframes")
    if path not in _PATHS and (yaw is not None or pitch):
        raise UserError(f"--yaw and --pitch: {path} has the cameras already; leave them out")
    if path not in _PATHS and not Path(path).exists():
        raise UserError(f"--path: {path}: no such file; check the path")
    check_writable(out)

    from cips3d.cli.camera_paths import frame_count, path_cameras
    from cips3d.cli.loading import joined, latents_of, load_model, resolution_of, styles_of
    from cips3d.export.media import save_frames, save_image
    from cips3d.export.sheets import view_sheet
    from cips3d.export.video import interpolated, video_frames

    generator = load_model(model, device)
    resolution = resolution_of(generator, size.resolution)
    in_turn = len(seeds) + (subjects.subject is not None) if seeds else 0
    frames = views if is_grid else frame_count(path, seconds, fps, in_turn)
    cameras = path_cameras(generator, path, frames, fps, yaw, pitch, fov)
    count = count or (4 if is_grid else 1)
    if seeds:
        styles = generator.map(latents_of(generator, list(seeds)), subjects.truncation)
        if subjects.subject is not None:
            styles = joined(styles_of(generator, subjects, model, 1), styles)
    else:
        styles = styles_of(generator, subjects, model, count)
    names = ["image"] * (subjects.subject is not None) + [
        f"seed {seed}" for seed in seeds or subjects.seeds(model, count)
    ]
    if is_grid:
        labels = names[: len(styles)] if len(styles) > 1 else True
        with progress("rendering") as report:
            sheet = view_sheet(
                generator, styles, cameras, resolution, show=show or ("image", "nerf", "depth"),
                supersample=size.supersample, progress=report,
                labels=False if len(styles) * len(cameras) * len(show or "all") == 1 else labels,
            )  # fmt: skip
        save_image(out, sheet)
        finished(out, f"cips3d render {model} turn.mp4 --show image depth")
        return
    each = [styles[i] for i in range(len(styles))]
    codes = [interpolated(styles, len(cameras))] if seeds else each
    made = video_frames(
        generator, codes, cameras, resolution, show=show or "image", supersample=size.supersample
    )
    save_frames(out, tracked(made, "rendering", len(cameras)), fps)
    finished(out, f"cips3d mesh {model} head.glb, or cips3d view {model}")
