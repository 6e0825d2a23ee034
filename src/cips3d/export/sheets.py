"""Pictures that show a generator: heads from several yaws, INR image above NeRF image above depth; frames of an orbit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from cips3d.camera import Camera
from cips3d.export.media import depth_picture, image_grid, to_uint8
from cips3d.models.generator import Generator
from cips3d.models.records import Latents


@torch.no_grad()
def turntable_sheet(
    generator: Generator, latents: Latents, yaws: Sequence[float], resolution: int, *, psi: float = 1.0, pitch: float = 0.0
) -> UInt8[np.ndarray, "height width 3"]:
    """Three rows per head (INR image, NeRF image, depth), one column per yaw.

    Args:
        latents: the heads.
        yaws: degrees.
        resolution: side of each picture, pixels.
        psi: truncation.
        pitch: degrees.
    """
    rows = []
    camera = orbit_cameras(generator, yaws, pitch)
    for head in range(len(latents)):
        out = generator.render(latents[head], camera, resolution, psi=psi)
        rows += [out.image, out.aux_image, depth_picture(out.depth, out.opacity).to(out.image)]
    return image_grid(torch.cat(rows), columns=len(yaws))


def orbit_cameras(generator: Generator, yaws: Sequence[float], pitch: float = 0.0, fov: float | None = None) -> Camera:
    """Cameras at the generator's own radius and field of view (unless `fov`, degrees, is given); yaws and pitch in degrees."""
    poses = generator.config.poses
    yaw = torch.deg2rad(torch.tensor(list(yaws)))
    pitches = torch.deg2rad(torch.full_like(yaw, pitch))
    return Camera.orbit(yaw, pitches, poses.radius, poses.fov if fov is None else fov)


def swing_cameras(generator: Generator, count: int, yaw: float, pitch: float = 0.0) -> Camera:
    """`count` cameras that swing once from the front to +yaw, to -yaw and back (degrees), so that a video loops smoothly."""
    phase = torch.arange(count) * (2 * math.pi / count)
    return orbit_cameras(generator, (yaw * phase.sin()).tolist(), pitch)


@torch.no_grad()
def frames(
    generator: Generator, latents: Latents, cameras: Camera, resolution: int | tuple[int, int], *, psi: float = 1.0
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """One INR picture per camera, all heads side by side; made one after the other, so any number fits in memory."""
    for i in range(len(cameras)):
        out = generator.render(latents, cameras[i], resolution, psi=psi)
        yield np.concatenate(list(to_uint8(out.image)), axis=1)
