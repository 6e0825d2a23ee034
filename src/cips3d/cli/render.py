"""`cips3d render`: the same subjects from many sides, as a picture and as a video."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import Derived, at_least, check_finite, check_seed, to_device
from cips3d.errors import UserError
from cips3d.export.media import save_frames, save_image
from cips3d.export.sheets import frames, swing_cameras, turntable_sheet


def render(
    model: str,
    out: Path,
    /,
    count: int = 4,
    seed: int = 0,
    psi: float = 0.7,
    resolution: Derived[int] = None,
    yaw: float = 45.0,
    pitch: float = 0.0,
    views: int = 7,
    seconds: float = 4.0,
    fps: int = 30,
    device: str = "auto",
) -> None:
    """Render invented subjects from many yaws: a .png gives a grid, an .mp4 or .gif an orbit video.

    The grid has three rows per subject: the INR image, the NeRF image and the depth (bright is near).

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        out: what to write; its ending decides: .png, .mp4 or .gif.
        count: number of subjects.
        seed: of the latents.
        psi: truncation: 1 is the full variety, 0 the mean subject.
        resolution: side of a picture in pixels. Default: the model's training resolution.
        yaw: how far to turn to either side, degrees.
        pitch: degrees, positive from above.
        views: columns of the grid.
        seconds: length of the video.
        fps: frames per second of the video.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    at_least(1, count=count, views=views, fps=fps)
    check_finite(psi=psi, yaw=yaw, pitch=pitch, seconds=seconds)
    check_seed(seed)
    suffix = out.suffix.lower()
    if suffix not in (".png", ".mp4", ".gif"):
        raise UserError(f"{out}: the name must end in .png (a grid), .mp4 or .gif (a video)")
    if seconds <= 0:
        raise UserError(f"--seconds: {seconds}; give a positive number")
    generator = to_device(pretrained.load(model), device)
    side = generator.config.resolution if resolution is None else resolution
    at_least(1, resolution=side)
    latents = generator.sample_latents(count, seed)
    if suffix == ".png":
        yaws = [yaw * (2 * i / (views - 1) - 1) if views > 1 else 0.0 for i in range(views)]
        save_image(out, turntable_sheet(generator, latents, yaws, side, psi=psi, pitch=pitch))
    else:
        cameras = swing_cameras(generator, max(2, round(seconds * fps)), yaw, pitch)
        save_frames(out, frames(generator, latents, cameras, side, psi=psi), fps)
    print(out)
