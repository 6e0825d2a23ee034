"""Peak memory and time of one head at 2048², strip by strip, and the same pixels rendered as a crop alone.

The bundled model paints the whole picture. With four rays a pixel, and with the paper-size generator, whose strips are single
rows, it is the first strips of a picture of the face alone: the others would need no more memory. Each process reports its own
peak, torch and all; one thread.

    python benchmarks/big_picture.py      (about six minutes)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from multiprocessing.connection import Connection

import numpy as np
import torch
from rendering import in_process, peak

import cips3d
from cips3d.export.media import to_uint8
from cips3d.export.strips import PictureFormat, fill, picture_strips, pictures

SIDE, LIMIT, STRIPS = 2048, 1.5 * 1024**3 / 1e6, 32
CROPS = (np.s_[900:1100, 700:1000], np.s_[:1, :], np.s_[2047:, 2047:], np.s_[512:1024, 31:32])


def prepare() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def setting(generator: cips3d.Generator) -> tuple[cips3d.Styles, cips3d.Camera]:
    return generator.map(generator.sample_latents(1, seed=0), psi=0.7), cips3d.Camera.orbit(
        0.3, 0.1
    )


@torch.no_grad()
def by_strips(_: int, pipe: Connection) -> None:
    """A process: the whole picture by the bundled model, and how many of the 8-bit values of crops differ from it."""
    prepare()
    generator = cips3d.load("heads")
    styles, camera = setting(generator)
    before, start = peak(), time.perf_counter()
    picture = pictures(generator, styles, camera, PictureFormat(SIDE, SIDE))[0, 0]
    seconds, after = time.perf_counter() - start, peak()
    crops = [
        to_uint8(generator.render(styles, camera, SIDE, window=window).image)[0] for window in CROPS
    ]
    differing = sum(
        int((crop != picture[window]).sum()) for crop, window in zip(crops, CROPS, strict=True)
    )
    pipe.send((seconds, before, after, sum(crop.size for crop in crops), differing))


@torch.no_grad()
def at_once(_: int, pipe: Connection) -> None:
    """A process: `Generator.render` of the whole picture, and how far crops are from it before rounding to 8 bits."""
    prepare()
    generator = cips3d.load("heads")
    styles, camera = setting(generator)
    before, start = peak(), time.perf_counter()
    out = generator.render(styles, camera, SIDE)
    seconds, after = time.perf_counter() - start, peak()
    worst = 0.0
    for window in CROPS:
        crop = generator.render(styles, camera, SIDE, window=window)
        for name in ("image", "depth"):
            worst = max(
                worst,
                float(
                    (getattr(crop, name) - getattr(out, name)[..., window[0], window[1]])
                    .abs()
                    .max()
                ),
            )
    pipe.send((seconds, before, after, worst))


@torch.no_grad()
def some_strips(supersample: int, pipe: Connection) -> None:
    """A process: `STRIPS` strips by the paper-size generator, or by the bundled model where there is supersampling."""
    prepare()
    generator = (
        cips3d.load("heads")
        if supersample > 1
        else cips3d.Generator(cips3d.GeneratorConfig()).eval()
    )
    styles, _ = setting(generator)
    before, start = peak(), time.perf_counter()
    picture = np.ones((1, 1, SIDE, SIDE, 3), dtype=np.uint8)
    form = PictureFormat(SIDE, SIDE, supersample=supersample)
    strips = islice(
        picture_strips(generator, styles, cips3d.Camera.orbit(0.3, 0.1, fov=4.0), form), STRIPS
    )
    fill(picture, strips)
    pipe.send((time.perf_counter() - start, before, peak()))


def report(name: str, function: Callable[..., None], argument: int) -> tuple[float, ...]:
    seconds, before, after, *rest = in_process(function, argument)
    print(
        f"{name:52}{seconds:9.0f}{before:9.0f}{after:9.0f}{'below' if after < LIMIT else 'ABOVE':>9}",
        flush=True,
    )
    return tuple(rest)


def main() -> None:
    print(f"one head at {SIDE}², one thread; the limit is {LIMIT:.0f} MB (1.5 GiB)")
    print(f"{'':52}{'seconds':>9}{'MB then':>9}{'peak MB':>9}{'limit':>9}")
    values, differing = report("bundled model, by strips", by_strips, 1)
    (worst,) = report("bundled model, Generator.render at once", at_once, 0)
    report(f"bundled model, 4 rays a pixel, {STRIPS} strips", some_strips, 2)
    report(f"paper-size generator, {STRIPS} strips", some_strips, 1)
    print(
        f"crops rendered alone: {differing} of {values} 8-bit values differ from the picture by strips;"
    )
    print(f"image and depth before rounding are within {worst:.1e} of the picture rendered at once")


if __name__ == "__main__":
    main()
