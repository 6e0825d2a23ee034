"""Rendering against the plain implementation of baseline.py: the same weights, rays and pixels.

Two threads; medians of functions called in turns. "dense" is a new paper-size generator, whose
volume is fog that every ray meets; "half empty" has a body in empty space, which half of the rays
miss. The baseline renders parts of 4096 rays, which suits it best. Three forms of ours:

- float32: `Generator.render(precision="auto")`.
- bfloat16: the same with precision="bfloat16".
- prepared: what `Generator.prepare` returns, in either precision.

The last tables are the time of a pixel at growing resolutions with the peak memory of the process,
and the bundled model: video frames, one large image, a mesh, and the memory of each.

    python benchmarks/rendering.py        (about twelve minutes)
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from baseline import implicit_network, rendered_features
from measuring import in_process, medians, peak
from torch import Tensor

import cips3d
from cips3d.camera import Camera, Rays
from cips3d.export.media import save_image
from cips3d.export.strips import ImageFormat, whole_images
from cips3d.models.config import Cips3dNetworks, GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws, Styles
from cips3d.training.allocator import keep_freed_memory

THREADS, REPEATS, SIDE, PART = 2, 5, 256, 4096
BODY = {"density_gain": 160.0, "density_blob": 240.0, "background": "plain"}
#: Name, networks and field of view, which makes half of the rays miss the body.
SCENES = {"dense": ({}, 12.0), "half empty": (BODY, 8.6)}


def generator_of(scene: str) -> tuple[Generator, Styles, Camera]:
    """A paper-size generator with random weights, a subject of it and a camera."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    keep_freed_memory()
    networks, fov = SCENES[scene]
    generator = Generator(GeneratorConfig(Cips3dNetworks(**networks))).eval()
    styles = generator.map(generator.sample_latents(1, seed=0), psi=1.0)
    return generator, styles, Camera.orbit(0.3, 0.1, fov=fov)


def baseline(generator: Generator, styles: Styles, camera: Camera, side: int) -> Tensor:
    """The image as rows of colours, by the plain implementation."""
    rays, sampling, parts = camera.rays(side, side), generator.sampling, []
    assert isinstance(styles.appearance, Tensor)
    for start in range(0, rays.count, PART):
        some: Rays = rays[start : start + PART]
        even = (torch.arange(sampling.fine) + 0.5) / sampling.fine
        jitter = torch.full((1, some.count, sampling.coarse), 0.5)
        draws = RayDraws(jitter, even.expand(1, some.count, -1))
        feature = rendered_features(generator, styles.shape, some, sampling, draws)
        torch.tanh(generator.aux_head(feature))
        parts.append(implicit_network(generator.inr, feature, styles.appearance))
    return torch.cat(parts, dim=1)[0]


def matrix_rate(dtype: torch.dtype, precision: str) -> float:
    """GFLOP/s of products of the implicit network's size."""
    torch.set_float32_matmul_precision(precision)
    a, b = torch.randn(PART, 512).to(dtype), torch.randn(512, 512).to(dtype)
    (seconds,) = medians([lambda: [a @ b for _ in range(8)]], 3 * REPEATS)
    torch.set_float32_matmul_precision("highest")
    return 8 * 2 * PART * 512**2 / seconds / 1e9


def operations(generator: Generator) -> int:
    """Operations of the products of one dense image (2 per multiply-add), each sample once."""
    nerf, inr, sampling = generator.nerf, generator.inr, generator.sampling
    per_sample = [nerf.density, *(layer.linear for layer in [*nerf.layers, nerf.feature_layer])]
    per_ray = [nerf.feature, generator.aux_head, *inr.to_rgb]
    per_ray += [layer for block in inr.blocks for layer in (block.first, block.second)]
    counts = [sum(layer.weight.numel() for layer in layers) for layers in (per_sample, per_ray)]
    return 2 * SIDE**2 * (counts[0] * (sampling.coarse + sampling.fine) + counts[1])


@torch.no_grad()
def ratios(scene: str, connection: Connection) -> None:
    """A process: seconds of every form, its PSNR to the baseline, empty rays, matrix rates."""
    generator, styles, camera = generator_of(scene)
    rates = [matrix_rate(torch.float32, "medium"), matrix_rate(torch.bfloat16, "highest")]
    ready = {name: generator.prepare(styles, name) for name in ("auto", "bfloat16")}

    def plain(precision: str) -> Callable[[], cips3d.RenderOutput]:
        return lambda: generator.render(styles, camera, SIDE, precision=precision)  # pyright: ignore

    forms = {
        "float32": plain("auto"),
        "bfloat16": plain("bfloat16"),
        "prepared float32": lambda: generator.render(ready["auto"], camera, SIDE),
        "prepared bfloat16": lambda: generator.render(ready["bfloat16"], camera, SIDE),
    }
    exact = baseline(generator, styles, camera, SIDE)
    quality, empty = {}, 0.0
    for name, form in forms.items():
        out = form()
        rows = out.image[0].flatten(1).t()
        error = float((rows - exact).square().mean() / exact.square().mean())
        quality[name] = 10 * math.log10(1 / max(error, 1e-20))
        empty = float((out.opacity == 0).float().mean())
    seconds = medians([lambda: baseline(generator, styles, camera, SIDE), *forms.values()], REPEATS)
    taken = dict(zip(["baseline", *forms], seconds, strict=True))
    connection.send((taken, quality, empty, rates, operations(generator)))


@torch.no_grad()
def pixel_time(side: int, connection: Connection) -> None:
    """A process: seconds of an image of the dense scene, peak MB after it and before."""
    generator, styles, camera = generator_of("dense")
    before = peak()
    repeats = max(1, min(REPEATS, 256**2 // side**2))
    form = lambda: generator.render(styles, camera, side, precision="auto")  # noqa: E731
    (seconds,) = medians([form], repeats)
    connection.send((seconds, peak(), before))


def bundled(task: str, connection: Connection) -> None:
    """A process: seconds of a task with the bundled model, and its peak MB."""
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    generator = cips3d.load("heads")
    assert isinstance(generator, Generator)
    styles = generator.map(generator.sample_latents(1, seed=0), psi=0.7)
    folder = Path(tempfile.mkdtemp())
    camera = Camera.orbit(0.3, 0.1)
    tasks: dict[str, Callable[[], object]] = {
        "60 frames of 256²": lambda: cips3d.save_video(
            folder / "turn.mp4", generator, styles, cips3d.trajectories.orbit(60), resolution=256
        ),
        "an image of 2048²": lambda: save_image(
            folder / "large.png",
            whole_images(generator, styles, camera, ImageFormat(2048, 2048))[0, 0],
        ),
        "a mesh of 256": lambda: cips3d.extract_mesh(generator, styles, 256).export(
            folder / "head.glb"
        ),
    }
    generator.render(generator.prepare(styles), camera, 32)  # compiled loops are loaded
    start = time.perf_counter()
    tasks[task]()
    connection.send((time.perf_counter() - start, peak()))


def main() -> None:
    print(
        f"one image of {SIDE}², {THREADS} threads; share: of the measured rate of matrix products"
    )
    print(f"{'':28}{'seconds':>9}{'ratio':>8}{'dB':>8}{'share':>8}")
    for scene in SCENES:
        seconds, quality, empty, rates, flops = in_process(ratios, scene)
        print(f"{scene}, {empty:.0%} of the rays meet nothing")
        for name, taken in seconds.items():
            row = f"  {name:26}{taken:9.3f}{seconds['baseline'] / taken:8.2f}"
            if name in quality:
                rate = rates["bfloat16" in name]
                row += f"{quality[name]:8.1f}{flops * (1 - empty) / taken / 1e9 / rate:8.0%}"
            print(row, flush=True)
    print(f"\n{'dense, float32':28}{'seconds':>9}{'µs/pixel':>9}{'MB':>8}{'before':>8}")
    for side in (64, 128, 256, 512, 1024):
        taken, after, before = in_process(pixel_time, side)
        row = f"{taken:9.2f}{taken / side**2 * 1e6:9.1f}{after:8.0f}{before:8.0f}"
        print(f"  {f'{side}²':26}{row}", flush=True)
    print(f"\n{'bundled model':28}{'seconds':>9}{'MB':>8}")
    for task in ("60 frames of 256²", "an image of 2048²", "a mesh of 256"):
        taken, after = in_process(bundled, task)
        print(f"  {task:26}{taken:9.2f}{after:8.0f}", flush=True)


if __name__ == "__main__":
    main()
