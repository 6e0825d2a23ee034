"""Rendering with the paper-size generator: time, share of the matrix-product rate, peak memory.

Float32, two threads, deterministic rendering by `Generator.render`. Counts the operations of the
matrix products that the image needs (features only where there is density), and compares their rate
with the best that torch reaches here on plain products of the same sizes. baseline.py, the plain
implementation, renders the same image in turns with ours. Peak memory is each process's own.

    python benchmarks/rendering_speed.py        (about two minutes)
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
from baseline import generate
from measuring import in_process, medians, peak
from torch.utils.flop_counter import FlopCounterMode

from cips3d.camera import Camera
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import generator_cost
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.draws import FakeDraws

THREADS, REPEATS, SIDE = 2, 9, 64
COLUMNS = (
    "GFLOP", "seconds", "GFLOP/s", "mm", "bmm", "share", "baseline", "ratio", "difference",
)  # fmt: skip


def product_rates() -> tuple[float, float]:
    """GFLOP/s of one large product and of a batch of four, at the implicit network's sizes."""
    a, b, c = torch.randn(49152, 512), torch.randn(512, 512), torch.randn(49152, 512)
    x, w, y = torch.randn(4, 4096, 512), torch.randn(4, 512, 512), torch.randn(4, 4096, 512)
    products = [lambda: torch.mm(a, b, out=c), lambda: torch.bmm(x, w, out=y)]
    mm, bmm = medians(products, REPEATS)
    return 2 * 49152 * 512**2 / mm / 1e9, 2 * 4 * 4096 * 512**2 / bmm / 1e9


def even_draws(generator: Generator, resolution: int) -> RayDraws:
    """The draws with which the baseline renders what ours renders without any."""
    s, rays = generator.sampling, resolution * resolution
    even = (torch.arange(s.fine) + 0.5) / s.fine
    return RayDraws(torch.full((1, rays, s.coarse), 0.5), even.expand(1, rays, -1))


def prepared(precision: str) -> Generator:
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision(precision)
    torch.manual_seed(0)
    keep_freed_memory()
    return Generator(GeneratorConfig()).eval()


@torch.no_grad()
def speed(precision: str, connection: Connection) -> None:
    """A process: operations, seconds of ours and of the baseline, difference, product rates."""
    generator = prepared(precision)
    latents, camera = generator.sample_latents(1, seed=0), Camera.orbit(0.3, 0.1)
    draws = FakeDraws(latents, camera, even_draws(generator, SIDE))

    def ours() -> torch.Tensor:
        return generator.render(latents, camera, SIDE, psi=1.0).image

    def plain() -> torch.Tensor:
        return generate(generator, draws, SIDE, generator.sampling)[0]

    expected = plain()
    difference = float((expected - ours()).abs().max() / expected.abs().max())
    seconds = medians([ours, plain], REPEATS)
    with FlopCounterMode(display=False) as counter:
        ours()
    connection.send((counter.get_total_flops(), *seconds, difference, *product_rates()))


@torch.no_grad()
def memory(resolution: int, connection: Connection) -> None:
    """A process: seconds of an image, peak MB after it and before."""
    generator = prepared("highest")
    latents, camera = generator.sample_latents(1, seed=0), Camera.orbit(0.3, 0.1)
    before = peak()
    (seconds,) = medians(
        [lambda: generator.render(latents, camera, resolution, psi=1.0)], repeats=2
    )
    connection.send((seconds, peak(), before))


def main() -> None:
    parameters = generator_cost(GeneratorConfig(), SIDE).parameters / 1e6
    print(
        f"paper-size generator ({parameters:.2f} M parameters), float32, {THREADS} threads: one "
        f"image of {SIDE}²"
    )
    print(f"{'matmul precision':18}" + "".join(f"{column:>11}" for column in COLUMNS))
    for precision in ("highest", "medium"):
        flops, ours, plain, difference, mm, bmm = in_process(speed, precision)
        rate = flops / ours / 1e9
        row = f"{flops / 1e9:11.1f}{ours:11.3f}{rate:11.0f}{mm:11.0f}{bmm:11.0f}"
        row += f"{rate / max(mm, bmm):11.0%}{plain:11.3f}{plain / ours:11.2f}{difference:11.0e}"
        print(f"{precision:18}{row}")
    print("\npeak memory of a process that renders one image (precision highest)")
    print(f"{'':18}{'seconds':>11}{'MB':>11}{'MB before':>11}")
    for resolution in (64, 128, 256):
        seconds, after, before = in_process(memory, resolution)
        print(f"{f'{resolution}²':18}{seconds:11.2f}{after:11.0f}{before:11.0f}")


if __name__ == "__main__":
    main()
