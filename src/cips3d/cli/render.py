"""`cips3d sample`, `render` and `mesh`: subjects as images, videos and meshes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le
from tyro.conf import arg

import cips3d
from cips3d.cli.options import (
    IMAGES,
    Derived,
    Device,
    ImageSize,
    Kinds,
    Limited,
    Model,
    RandomSubjects,
    Subjects,
    check_output,
    written_as,
)
from cips3d.cli.output import finished, progress, tracked
from cips3d.configuration import Amount, Count, FieldOfView, Seed
from cips3d.errors import UserError

if TYPE_CHECKING:
    from cips3d.models.protocol import ImageGenerator

_PATHS = ("arc", "orbit", "figure-eight", "dolly-zoom")
#: A figure-eight's pitch as a share of its yaw; a dolly zoom's field of view and the yaw to either
#: side where none is given, in degrees.
_RISE, _DOLLY_FOV, _TURN = 1 / 3, 40.0, 45.0


def sample(
    model: Model,
    out: Path,
    /,
    subjects: RandomSubjects,
    size: ImageSize,
    count: Count = 16,
    yaw: Amount | Literal["random"] = "random",
    pitch: Derived[Amount] = None,
    separate: bool = False,
    device: Device = "auto",
) -> None:
    """Generate images of random subjects.

    Writes one grid, or one file per subject with --separate.

    Args:
        out: Image to write (.png or .jpg), or with --separate a folder for 0000.png, 0001.png, …
        count: Number of subjects.
        yaw: Degrees, positive towards the subject's left (+x); random draws yaw and pitch from
            the model's camera prior.
        pitch: Degrees, positive from above; needs --yaw. Default: 0.
        separate: Write one file per subject.

    Examples:
        cips3d sample heads grid.png
        cips3d sample heads faces --count 100 --separate --seed 0 --psi 1
    """
    if yaw == "random" and pitch is not None:
        raise UserError("--pitch needs --yaw, which is random by default; give both")
    if not separate:
        check_output(out, *IMAGES)

    import torch

    from cips3d.cli.loading import latents_of, load_model, size_of
    from cips3d.export import media, sheets, strips

    generator = load_model(model, device)
    seeds, psi = subjects.seeds(model, count), subjects.truncation
    latents = latents_of(generator, seeds)
    resolution = size_of(generator, size.resolution)
    if yaw == "random":
        draws = torch.Generator().manual_seed(subjects.seed or 0)
        cameras = generator.config.poses.sample(count, draws)
    else:
        cameras = sheets.orbit_cameras(generator, [yaw] * count, pitch or 0.0)
    if not separate:
        with progress("sampling") as report:
            grid = sheets.subject_grid(
                generator, latents, cameras, resolution, psi=psi, supersample=size.supersample,
                adaptive=size.adaptive, precision=size.precision,
                labels=[f"seed {seed}" for seed in seeds], progress=report,
            )  # fmt: skip
        media.save_image(out, grid)
    else:
        form = strips.image_format(
            generator, resolution, "image", size.supersample, size.adaptive, size.precision
        )
        for i in tracked(range(count), "sampling", count):
            styles = generator.map(latents[i], psi)
            image = strips.whole_images(generator, styles, cameras[i], form)[0, 0]
            media.save_image(out / f"{i:04d}.png", image)
    wrote = f"{count} images in {out}" if separate else out
    finished(wrote, f"cips3d render {model} turn.mp4 --seed {seeds[0]}")


def render(
    model: Model,
    out: Annotated[Path, written_as(*IMAGES, ".mp4", ".gif")],
    /,
    subjects: Subjects,
    size: ImageSize,
    count: Derived[Count] = None,
    seeds: Annotated[tuple[Seed, ...], arg(metavar="SEED ...", help_behavior_hint="")] = (),
    show: Kinds = (),
    path: Annotated[Derived[str], arg(metavar="|".join((*_PATHS, "FILE.json")))] = None,
    yaw: Derived[Amount] = None,
    pitch: Amount = 0.0,
    fov: Derived[FieldOfView] = None,
    orthographic: bool = False,
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
        orthographic: Parallel rays, without perspective; the subject keeps its size in the image.
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
    is_file = path.lower().endswith(".json")
    if is_grid and seconds is not None:
        raise UserError(f"--seconds: {out} is a grid; leave it out, or write an .mp4 or .gif")
    if path not in _PATHS and not is_file:
        paths = ", ".join(_PATHS)
        raise UserError(f"--path is {path}; choose {paths} or a .json file with keyframes")
    if is_file and (yaw is not None or pitch):
        raise UserError(f"--yaw and --pitch: {path} sets the cameras already; leave them out")
    if orthographic and path == "dolly-zoom":
        raise UserError(
            "--orthographic: a dolly zoom changes the perspective, which there is none of; choose "
            "another --path"
        )
    if is_file and not Path(path).exists():
        raise UserError(f"--path: {path}: no such file; check the path")

    import torch

    from cips3d.cli.loading import latents_of, load_model, size_of, styles_of
    from cips3d.export import media, sheets, video

    generator = load_model(model, device)
    resolution = size_of(generator, size.resolution)
    count = count or (4 if is_grid else 1)
    all_seeds = seeds or subjects.seeds(model, count)
    styles = styles_of(generator, subjects, all_seeds)
    names = [f"seed {seed}" for seed in all_seeds]
    if subjects.subject is not None:
        names = ["image", *names]
    if subjects.subject is not None and seeds:
        others = generator.map(latents_of(generator, seeds), subjects.truncation)
        if not isinstance(styles.appearance, torch.Tensor):  # one appearance per block
            appearances = [others.appearance] * len(styles.appearance)
            others = cips3d.Styles(others.shape, appearances)  # pyright: ignore[reportArgumentType]
        styles = cips3d.Styles.cat([styles, others])
    if is_grid:
        frames = views
    elif is_file and seconds is None:
        frames = None  # as many as the keyframes ask for
    else:
        seconds = seconds or (2.0 * len(styles) if seeds else 4.0)
        frames = max(2, round(min(seconds * fps, cips3d.trajectories.MOST_FRAMES + 1)))
    cameras = _path_cameras(generator, path, frames, fps, yaw, pitch, fov)
    if orthographic:
        cameras = cameras.as_orthographic()
    if is_grid:
        with progress("rendering") as report:
            sheet = sheets.view_sheet(
                generator, styles, cameras, resolution, show=show or ("image", "nerf", "depth"),
                supersample=size.supersample, adaptive=size.adaptive, precision=size.precision,
                progress=report,
                labels=names[: len(styles)] if len(styles) > 1 else True,
            )  # fmt: skip
        media.save_image(out, sheet)
        finished(out, f"cips3d render {model} turn.mp4 --show image depth")
        return
    codes = [video.interpolated(styles, len(cameras))] if seeds else list(styles)
    images = video.video_frames(
        generator, codes, cameras, resolution, show=show or "image", supersample=size.supersample,
        adaptive=size.adaptive,
        precision=size.precision,
    )  # fmt: skip
    media.save_frames(out, tracked(images, "rendering", len(cameras)), fps)
    finished(out, f"cips3d mesh {model} head.glb, or cips3d view {model}")


def _path_cameras(
    generator: ImageGenerator,
    path: str,
    frames: int | None,
    fps: int,
    yaw: float | None,
    pitch: float,
    fov: float | None,
) -> cips3d.Camera:
    """The cameras of a path, by default at the model's radius and field of view.

    Args:
        frames: number of cameras; None for what a file of keyframes asks for.
        yaw, pitch: degrees from the mean of the model's prior. Keyframes use the world's axes.
    """
    paths, poses = cips3d.trajectories, generator.config.poses
    own = {"radius": poses.radius, "fov": fov or poses.fov}
    if frames is None or path.lower().endswith(".json"):
        return paths.keyframes(path, frames, fps, **own)
    if yaw is None:
        yaw = 0.0 if path == "dolly-zoom" or frames == 1 else _TURN
    turn, tilt = math.radians(yaw), math.radians(pitch) + poses.pitch_mean
    if path == "dolly-zoom":
        cameras = paths.dolly_zoom(frames, fov or _DOLLY_FOV, turn, tilt, poses.radius, poses.fov)
    elif path == "arc" or frames == 1:
        cameras = paths.arc(frames, turn, tilt, **own)
    elif path == "orbit":
        cameras = paths.orbit(frames, turn, tilt, **own)
    else:
        cameras = paths.figure_eight(frames, turn, _RISE * turn, tilt, **own)
    return cameras.turned(poses.yaw_mean)


def mesh(
    model: Model,
    out: Annotated[Path, written_as(".ply", ".obj", ".glb")],
    /,
    subjects: Subjects,
    resolution: Annotated[int, Ge(8), Le(1024)] = 256,
    level: Derived[Limited] = None,
    no_colors: bool = False,
    all_parts: bool = False,
    device: Device = "auto",
) -> None:
    """Extract a subject as a triangle mesh with vertex colours.

    The mesh is closed, in world units (an embedded head is about 0.14 high), y up, facing +z.

    Args:
        out: File to write: .ply, .obj or .glb.
        resolution: Points of the density grid along its longest side. 512 takes four times as
            long as 256, and 0.5 GB for the grid.
        level: Density of the surface. Default: estimated, so the surface is where images show it.
        no_colors: Leave out vertex colours.
        all_parts: Keep parts that are not connected to the largest one.

    Examples:
        cips3d mesh heads head.glb
        cips3d mesh found/model.safetensors face.ply --subject found/subject.safetensors
    """
    from cips3d.cli.loading import load_model, styles_of

    generator = load_model(model, device)
    styles = styles_of(generator, subjects, subjects.seeds(model, 1))
    found = cips3d.extract_mesh(
        generator, styles, resolution, level=level, colors=not no_colors, largest=not all_parts
    )
    cips3d.save_mesh(out, found)
    size = " × ".join(f"{side:.3f}" for side in found.extents)
    count = f"{len(found.vertices):,} vertices, {len(found.faces):,} faces"
    closed = "yes" if found.is_watertight else "no; some edges do not join exactly two faces"
    print(f"{count}; {size} world units; level {found.metadata['level']:.4g}")
    print(f"watertight: {closed}")
    finished(out, f"open it in Blender or MeshLab, or cips3d view {model}")
