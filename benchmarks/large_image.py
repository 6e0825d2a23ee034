"""Peak memory and time of one head at 2048², strip by strip, and crops rendered on their own.

The bundled model renders the whole image. With four rays per pixel, and with the paper-size
generator, whose strips are single rows, only the first strips are rendered, of an image of the face
alone: the others need no more memory. Each process has one thread and reports its own peak, torch
included.

    python benchmarks/large_image.py      (about six minutes)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from multiprocessing.connection import Connection

import numpy as np
import torch
from measuring import in_process, peak

import cips3d
from cips3d.export.media import to_uint8
from cips3d.export.strips import ImageFormat, fill, image_strips, whole_images

SIDE, LIMIT, STRIPS = 2048, 1.5 * 1024**3 / 1e6, 32
CROPS = (np.s_[900:1100, 700:1000], np.s_[:1, :], np.s_[2047:, 2047:], np.s_[512:1024, 31:32])


def subject(generator: cips3d.Generator) -> cips3d.Styles:
    return generator.map(generator.sample_latents(1, seed=0), psi=0.7)


def camera(**options: float) -> cips3d.Camera:
    return cips3d.Camera.orbit(0.3, 0.1, **options)


def measured(function: Callable[[], np.ndarray | cips3d.RenderOutput]):
    """What a function returns, and its seconds, the peak MB before and after."""
    before, start = peak(), time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start, before, peak())


def prepare() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@torch.no_grad()
def by_strips(connection: Connection) -> None:
    """A process: the whole image by the bundled model; counts crops' 8-bit values that differ."""
    prepare()
    generator = cips3d.load("heads")
    styles = subject(generator)
    form = ImageFormat(SIDE, SIDE)
    images, figures = measured(lambda: whole_images(generator, styles, camera(), form))
    count = differing = 0
    for window in CROPS:
        crop = to_uint8(generator.render(styles, camera(), SIDE, window=window).image)[0]
        count += crop.size
        differing += int((crop != images[0, 0][window]).sum())
    connection.send((*figures, count, differing))


@torch.no_grad()
def at_once(connection: Connection) -> None:
    """A process: `Generator.render` of the whole image; how far crops are off before rounding."""
    prepare()
    generator = cips3d.load("heads")
    styles = subject(generator)
    out, figures = measured(lambda: generator.render(styles, camera(), SIDE))
    worst = 0.0
    for window in CROPS:
        crop = generator.render(styles, camera(), SIDE, window=window)
        for ours, whole in ((crop.image, out.image), (crop.depth, out.depth)):
            worst = max(worst, float((ours - whole[..., window[0], window[1]]).abs().max()))
    connection.send((*figures, worst))


@torch.no_grad()
def some_strips(name: str, supersample: int, connection: Connection) -> None:
    """A process: `STRIPS` strips by the bundled model or the paper-size generator."""
    prepare()
    bundled = name == "bundled"
    generator = cips3d.load("heads") if bundled else cips3d.Generator(cips3d.GeneratorConfig())
    styles = subject(generator.eval())
    form = ImageFormat(SIDE, SIDE, supersample=supersample)
    image = np.ones((1, 1, SIDE, SIDE, 3), dtype=np.uint8)
    strips = islice(image_strips(generator, styles, camera(fov=4.0), form), STRIPS)
    _, figures = measured(lambda: fill(image, strips))
    connection.send(figures)


def report(name: str, function: Callable[..., None], *args: object) -> tuple[float, ...]:
    """Prints a line of the table; returns what the process found besides."""
    seconds, before, after, *rest = in_process(function, *args)
    verdict = "below" if after < LIMIT else "ABOVE"
    print(f"{name:52}{seconds:9.0f}{before:9.0f}{after:9.0f}{verdict:>9}", flush=True)
    return tuple(rest)


def main() -> None:
    print(f"one head at {SIDE}², one thread; the limit is {LIMIT:.0f} MB (1.5 GiB)")
    print(f"{'':52}{'seconds':>9}{'start MB':>9}{'peak MB':>9}{'limit':>9}")
    count, differing = report("bundled model, by strips", by_strips)
    (worst,) = report("bundled model, Generator.render at once", at_once)
    report(f"bundled model, 4 rays per pixel, {STRIPS} strips", some_strips, "bundled", 2)
    report(f"paper-size generator, {STRIPS} strips", some_strips, "paper size", 1)
    print(f"crops on their own: {differing} of {count} 8-bit values differ from the strips;")
    print(f"image and depth before rounding are within {worst:.1e} of the image rendered at once")


if __name__ == "__main__":
    main()
