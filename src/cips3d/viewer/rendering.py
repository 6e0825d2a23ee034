"""From views to pixels: a coarse image at once, then finer ones, in interruptible steps."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from cips3d.camera import Camera
from cips3d.export.media import depth_map, to_uint8
from cips3d.models.protocol import Prepared, RayGenerator
from cips3d.models.rays import as_images, full
from cips3d.models.types import RenderOutput, Sampling, Styles
from cips3d.viewer.cameras import front_camera
from cips3d.viewer.requests import Mode, View
from cips3d.viewer.worker import Steps

Pixels = UInt8[np.ndarray, "height width 3"]

#: Seconds for a coarse image, and for a strip of a finer one: the longest wait of a moving camera.
FRAME_SECONDS, STRIP_SECONDS = 0.06, 0.05
#: Fewest rays of a strip. With fewer, the overhead of a call costs more than the rays.
_FEWEST_RAYS = 256
#: Rays of a strip before any has been timed.
_FIRST_RAYS = 1024
#: Sides of the coarse image, as divisors of the refined image's.
_DIVISORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
#: Shortest side of a coarse image, pixels. A smaller one cannot be recognised.
_SMALLEST_SIDE = 24
#: Share of the samples per ray that coarse images take.
_PREVIEW_SAMPLES = 0.375
#: Longest shorter side that a coarse image is enlarged to before it is sent, pixels.
_LARGEST_COARSE = 512
#: Tolerance of coarse images (`cips3d.models.adaptive`): 50 dB, above what their JPEGs have. It is
#: used above a side from which it saves time.
_PREVIEW_TOLERANCE, _LARGE_SIDE = 0.2, 160


class RenderSpeed:
    """Predicts how many rays can be rendered in a given time, for each sampling.

    Keeps a running geometric mean of the seconds per ray.
    """

    def __init__(self) -> None:
        self._seconds: dict[Sampling, float] = {}

    def rays_within(self, seconds: float, sampling: Sampling) -> int:
        """Rays that should take this long."""
        if sampling not in self._seconds:
            return _FIRST_RAYS
        return int(seconds / self._seconds[sampling])

    def record(self, sampling: Sampling, rays: int, seconds: float) -> None:
        """Updates the mean with a rendering's time."""
        measured = max(seconds, 1e-6) / rays
        mean = self._seconds.get(sampling, measured)
        self._seconds[sampling] = mean**0.7 * measured**0.3


def measured_speed(generator: RayGenerator) -> RenderSpeed:
    """The speed of coarse images, after a first one that loads and compiles what it needs."""
    styles = generator.map(generator.sample_latents(1, 0))
    camera, sampling = front_camera(generator.config.poses), preview_sampling(generator.sampling)
    speed = RenderSpeed()
    generator.render(styles, camera, _SMALLEST_SIDE, sampling=sampling)
    preview(generator, styles, camera, (48, 48), sampling, speed)
    return speed


def preview_sampling(sampling: Sampling) -> Sampling:
    """Fewer samples per ray, for coarse images."""
    coarse, fine = (round(n * _PREVIEW_SAMPLES) for n in (sampling.coarse, sampling.fine))
    return Sampling(max(4, coarse), fine)


@torch.inference_mode()
def preview(
    generator: RayGenerator,
    subject: Styles | Prepared,
    camera: Camera,
    size: tuple[int, int],
    sampling: Sampling,
    speed: RenderSpeed,
) -> RenderOutput:
    """A coarse image on the CPU, with interpolated parts if it is large; `speed` learns from it.

    Not in steps: a camera that never rests would see nothing if it could be interrupted.
    """
    began = time.perf_counter()
    tolerance = _PREVIEW_TOLERANCE if min(size) >= _LARGE_SIDE else 0.0
    out = generator.render(subject, camera, size, sampling=sampling, tolerance=tolerance)
    out = out.to("cpu")
    speed.record(sampling, math.prod(size), time.perf_counter() - began)
    return out


def preview_side(view: View, speed: RenderSpeed, last: int = 0) -> int:
    """Shorter side of the coarse image: a simple fraction of the refined one's.

    It is the largest that fits in `FRAME_SECONDS`. A side above the `last` one needs some reserve,
    so that it does not alternate between two values.
    """
    rays = speed.rays_within(FRAME_SECONDS, preview_sampling(view.sampling))
    least = min(_SMALLEST_SIDE, view.side)
    for divisor in _DIVISORS:
        side = max(least, round(view.side / divisor))
        needed = math.prod(view.size(side))
        if needed * (1.25 if side > last else 1.0) <= rays:
            return side
    return least


def finer_sides(side: int, coarse: int) -> list[int]:
    """Sides of the images after the coarse one, each about four times the work of the last."""
    sides = [side]
    while sides[0] // 2 > coarse:
        sides.insert(0, sides[0] // 2)
    return sides


@torch.inference_mode()
def strips(
    generator: RayGenerator,
    subject: Styles | Prepared,
    camera: Camera,
    size: tuple[int, int],
    sampling: Sampling,
    speed: RenderSpeed,
) -> Steps[RenderOutput]:
    """`RayGenerator.render` on the CPU, one strip of rays a step; `size` is (height, width).

    `speed` decides how many rays a strip has, and learns from it.
    """
    rays = camera.to(generator.like).rays(*size)
    render_rays, styles = generator.renderer(subject)
    parts, start = [], 0
    while start < rays.count:
        count = max(_FEWEST_RAYS, speed.rays_within(STRIP_SECONDS, sampling))
        count = min(count, generator.default_chunk(1, sampling), rays.count - start)
        strip = rays[slice(start, start + count)]
        began = time.perf_counter()
        # copied to the CPU, so that the time includes the rendering and not only its launch
        parts.append(full(render_rays, styles, strip, sampling, None).cpu())
        speed.record(sampling, count, time.perf_counter() - began)
        start += count
        yield 0.0
    return as_images(torch.cat(parts, dim=1), *size)


def pixels_of(out: RenderOutput, mode: Mode) -> Pixels:
    """What a mode shows of a rendering of one subject."""
    if mode == "depth":
        return to_uint8(depth_map(out.depth, out.subject_opacity))[0]
    return to_uint8(out.aux_image if mode == "NeRF image" else out.image)[0]


def on_canvas(
    pixels: Pixels, view: View, grey: int = 255
) -> UInt8[np.ndarray, "canvas_height canvas_width 3"]:
    """The view's image, or a coarser one, centred on a grey canvas of the window's shape.

    The canvas has one size for all sides up to the view's, so the image stays in place while it is
    refined.
    """
    height, width = view.size(max(min(pixels.shape[:2]), min(view.side, _LARGEST_COARSE)))
    # a copy if it has this size
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    across = max(0, round((height * view.canvas_aspect - width) / 2))
    above = max(0, round((width / view.canvas_aspect - height) / 2))
    return np.pad(
        np.asarray(image), ((above, above), (across, across), (0, 0)), constant_values=grey
    )
