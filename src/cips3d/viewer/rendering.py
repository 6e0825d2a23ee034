"""From views to pixels: a coarse picture as soon as possible, then better ones, in steps that can be broken off."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from cips3d.camera import Camera
from cips3d.export.media import depth_map, to_uint8
from cips3d.models.protocol import RayGenerator
from cips3d.models.rays import as_images
from cips3d.models.types import RenderOutput, Sampling, Styles
from cips3d.viewer.requests import Mode, View, front_camera
from cips3d.viewer.worker import Steps, at_once

Pixels = UInt8[np.ndarray, "height width 3"]

#: Seconds that a coarse picture may take, and a strip of a refined one: the longest that a moving camera waits.
FRAME_SECONDS, STRIP_SECONDS = 0.06, 0.05
#: Fewest rays of a strip: below, the overhead of a call costs more than the rays.
_FEWEST_RAYS = 256
#: Sides of the coarse picture, as divisors of the refined one's.
_DIVISORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
#: Smallest side of a coarse picture, pixels: below, one cannot tell what it shows.
_SMALLEST_SIDE = 24
#: Coarse pictures take this share of the samples.
_PREVIEW_SAMPLES = 0.375
#: Highest picture that a coarse one is enlarged to before it is sent.
_HIGHEST_COARSE = 512


class Pace:
    """How many rays can be rendered in some time, learned from those that were.

    Seconds per ray are averaged geometrically over the last few renderings, for each sampling by itself.
    """

    def __init__(self) -> None:
        self._seconds: dict[Sampling, float] = {}

    def rays_within(self, seconds: float, sampling: Sampling) -> int:
        """Rays that are likely to take this long; of a sampling never seen, 1024."""
        return int(seconds / self._seconds[sampling]) if sampling in self._seconds else 1024

    def record(self, sampling: Sampling, rays: int, seconds: float) -> None:
        """Learns that so many rays took so long."""
        found = max(seconds, 1e-6) / rays
        known = self._seconds.get(sampling, found)
        self._seconds[sampling] = known**0.7 * found**0.3


def warmed_up(generator: RayGenerator) -> Pace:
    """The pace of a generator's coarse pictures, after one that loads and compiles what the first needs longer for."""
    styles, camera = (
        generator.map(generator.sample_latents(1, 0)),
        front_camera(generator.config.poses),
    )
    sampling, pace = preview_sampling(generator.sampling), Pace()
    generator.render(styles, camera, _SMALLEST_SIDE, sampling=sampling)
    at_once(
        strips(generator, styles, camera, (2 * _SMALLEST_SIDE, 2 * _SMALLEST_SIDE), sampling, pace)
    )
    return pace


def preview_sampling(sampling: Sampling) -> Sampling:
    """Fewer samples, for coarse pictures."""
    return Sampling(
        max(4, round(sampling.coarse * _PREVIEW_SAMPLES)), round(sampling.fine * _PREVIEW_SAMPLES)
    )


def preview_side(view: View, pace: Pace, last: int = 0) -> int:
    """Height of the coarse picture: the largest simple fraction of the refined one's that can be rendered in `FRAME_SECONDS`.

    Args:
        last: height of the last coarse picture; a higher one is taken only with some reserve, so that it does not flicker
            between two.
    """
    rays = pace.rays_within(FRAME_SECONDS, preview_sampling(view.sampling))
    least = min(_SMALLEST_SIDE, view.side)
    for divisor in _DIVISORS:
        side = max(least, round(view.side / divisor))
        needed = math.prod(view.size(side))
        if needed * (1.25 if side > last else 1.0) <= rays:
            return side
    return least


def finer_sides(side: int, coarse: int) -> list[int]:
    """Heights of the pictures after the coarse one, each about four times the work of the one before, the last `side`."""
    sides = [side]
    while sides[0] // 2 > coarse:
        sides.insert(0, sides[0] // 2)
    return sides


@torch.inference_mode()
def strips(
    generator: RayGenerator,
    styles: Styles,
    camera: Camera,
    size: tuple[int, int],
    sampling: Sampling,
    pace: Pace,
) -> Steps[RenderOutput]:
    """`Generator.render` a strip of rays at a time, with a pause after each.

    Args:
        size: height and width, pixels.
        pace: decides how many rays a strip has, and learns from it.

    Returns:
        The picture, on the CPU.
    """
    rays = camera.to(generator.shape_mean).rays(*size)
    parts, start = [], 0
    while start < rays.count:
        count = max(_FEWEST_RAYS, pace.rays_within(STRIP_SECONDS, sampling))
        count = min(count, generator.default_chunk(1, sampling), rays.count - start)
        began = time.perf_counter()
        # to the CPU, so that the time is that of the rendering, not of queueing it
        parts.append(
            generator.render_rays(styles, rays[slice(start, start + count)], sampling)
            .stacked()
            .cpu()
        )
        pace.record(sampling, count, time.perf_counter() - began)
        start += count
        yield 0.0
    return as_images(torch.cat(parts, dim=1), *size)


def pixels_of(out: RenderOutput, mode: Mode) -> Pixels:
    """The picture that a mode shows of a rendering of one subject."""
    if mode == "depth":
        return to_uint8(depth_map(out.depth, out.subject_opacity))[0]
    return to_uint8(out.aux_image if mode == "NeRF image" else out.image)[0]


def on_canvas(
    pixels: Pixels, view: View, colour: int
) -> UInt8[np.ndarray, "canvas_height canvas_width 3"]:
    """A picture as it is sent: of one size for all sides up to the view's, so that it stays in place when it is refined.

    Args:
        pixels: as high as the view's picture, or coarser.
        colour: grey level of the canvas to its left and right.
    """
    height, width = view.size(max(pixels.shape[0], min(view.side, _HIGHEST_COARSE)))
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        )
    margin = max(0, round((height * view.canvas_aspect - width) / 2))
    return np.pad(pixels, ((0, 0), (margin, margin), (0, 0)), constant_values=colour)
