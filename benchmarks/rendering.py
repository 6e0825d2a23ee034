"""Rendering with the paper-size generator: time, share of this machine's matrix-product rate, and peak memory.

Float32, two threads, deterministic rendering by `Generator.render`. The operations counted are those of the matrix products
that this picture took (features only where there is density); the rate they are held against is the best that torch reaches
here on plain products of the network's own sizes. The same picture by baseline.py, the plain way, is timed in turns with ours.
Peak memory is each process's own.

    python benchmarks/rendering.py        (about two minutes)
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from baseline import generate
from memory import peak
from torch.utils.flop_counter import FlopCounterMode

from cips3d.camera import Camera
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import generator_cost
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.draws import FakeDraws

THREADS, REPEATS = 2, 9


def medians(functions: list[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Median seconds of each, called in turns."""
    took: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, list_ in zip(functions, took, strict=True):
            start = time.perf_counter()
            function()
            if turn > 0:  # the first warms up
                list_.append(time.perf_counter() - start)
    return [statistics.median(list_) for list_ in took]


def product_rates() -> tuple[float, float]:
    """GFLOP/s of one large product and of a batch of four, at the implicit network's sizes."""
    a, b, c = torch.randn(49152, 512), torch.randn(512, 512), torch.randn(49152, 512)
    x, w, y = torch.randn(4, 4096, 512), torch.randn(4, 512, 512), torch.randn(4, 4096, 512)
    mm, bmm = medians([lambda: torch.mm(a, b, out=c), lambda: torch.bmm(x, w, out=y)])
    return 2 * 49152 * 512**2 / mm / 1e9, 2 * 4 * 4096 * 512**2 / bmm / 1e9


def even_draws(generator: Generator, resolution: int) -> RayDraws:
    """The draws with which the plain implementation renders what ours renders without any."""
    s, rays = generator.sampling, resolution * resolution
    even = (torch.arange(s.fine) + 0.5) / s.fine
    return RayDraws(torch.full((1, rays, s.coarse), 0.5), even.expand(1, rays, -1))


@torch.no_grad()
def speed(precision: str, pipe: Connection) -> None:
    """A process: times ours and the plain way at 64², and matrix products."""
    prepare(precision)
    generator = Generator(GeneratorConfig()).eval()
    latents, camera = generator.sample_latents(1, seed=0), Camera.orbit(0.3, 0.1)
    draws = FakeDraws(latents, camera, even_draws(generator, 64))
    plain = generate(generator, draws, 64, generator.sampling)[0]
    difference = float(
        (plain - generator.render(latents, camera, 64).image).abs().max() / plain.abs().max()
    )
    ours, theirs = medians(
        [
            lambda: generator.render(latents, camera, 64),
            lambda: generate(generator, draws, 64, generator.sampling),
        ]
    )
    with FlopCounterMode(display=False) as counter:
        generator.render(latents, camera, 64)
    pipe.send((counter.get_total_flops(), ours, theirs, difference, *product_rates()))


@torch.no_grad()
def memory(resolution: int, pipe: Connection) -> None:
    """A process: renders at `resolution` and reports time and peak memory."""
    prepare("highest")
    generator = Generator(GeneratorConfig()).eval()
    latents, camera = generator.sample_latents(1, seed=0), Camera.orbit(0.3, 0.1)
    before = peak()
    (seconds,) = medians([lambda: generator.render(latents, camera, resolution)], repeats=2)
    pipe.send((seconds, before, peak()))


def prepare(precision: str) -> None:
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision(precision)
    torch.manual_seed(0)
    keep_freed_memory()


def in_process(function: Callable[..., None], argument: object) -> tuple[float, ...]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=function, args=(argument, there))
    process.start()
    there.close()  # so that a process that dies is noticed
    result = here.recv()
    process.join()
    return result


def main() -> None:
    parameters = generator_cost(GeneratorConfig(), 64).parameters
    print(
        f"paper-size generator ({parameters / 1e6:.2f} M parameters), float32, {THREADS} threads: one picture of 64²"
    )
    columns = (
        "GFLOP",
        "seconds",
        "GFLOP/s",
        "mm",
        "bmm",
        "share",
        "plain way",
        "ratio",
        "difference",
    )
    print(f"{'matmul precision':18}" + "".join(f"{column:>11}" for column in columns))
    for precision in ("highest", "medium"):
        flops, ours, theirs, difference, mm, bmm = in_process(speed, precision)
        rate = flops / ours / 1e9
        share = rate / max(mm, bmm)
        print(
            f"{precision:18}{flops / 1e9:11.1f}{ours:11.3f}{rate:11.0f}{mm:11.0f}{bmm:11.0f}{share:11.0%}{theirs:11.3f}"
            f"{theirs / ours:11.2f}{difference:11.0e}"
        )
    print("\npeak memory of a process that renders one picture (precision highest)")
    print(f"{'':18}{'seconds':>11}{'MB':>11}{'MB before':>11}")
    for resolution in (64, 128, 256):
        seconds, before, after = in_process(memory, resolution)
        print(f"{f'{resolution}²':18}{seconds:11.2f}{after:11.0f}{before:11.0f}")


if __name__ == "__main__":
    main()
