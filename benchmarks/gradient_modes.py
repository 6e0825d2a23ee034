"""Peak memory and time of full, partial and checkpointed gradients for the paper-size generator.

Forward and backward pass of one image without discriminators, float32, two threads. The loss is the
sum of squares of both images. n_r is a quarter of the rays; checkpointed and partial gradients take
4,096 rays at a time.

Each figure comes from a process of its own. Memory is the peak above the start, with a C library
that returns freed blocks at once, which is slow; times are with its default.

    python benchmarks/gradient_modes.py     (eight minutes and 10 GB of memory on an idle machine)
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import torch
from measuring import in_process, peak, return_freed_memory
from torch import Tensor

from cips3d.models import rays as ray_choices
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.training.draws import FakeDraws, StepDraws

THREADS, CHUNK = 2, 4096
MODES = ("full", "partial", "checkpointed")
RESOLUTIONS = (64, 128, 256)


def rendered(mode: str, generator: Generator, fakes: FakeDraws, resolution: int) -> Tensor:
    """All outputs of all rays of one image."""
    rays, styles = fakes.camera.rays(resolution, resolution), generator.map(fakes.latents)
    arguments = (generator.render_rays, styles, rays, generator.sampling, fakes.rays)
    if mode == "full":
        return ray_choices.full(*arguments)
    if mode == "checkpointed":
        return ray_choices.checkpointed(*arguments, CHUNK)
    order = torch.randperm(resolution**2, generator=torch.Generator().manual_seed(0))
    return ray_choices.partial(*arguments, order[None, : resolution**2 // 4], CHUNK)


def measure(mode: str, resolution: int, memory: bool, connection: Connection) -> None:
    """A process: seconds of the second of two passes, or peak MB above the start."""
    if memory:
        return_freed_memory()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig())
    config, cpu = generator.config, torch.device("cpu")
    draws = StepDraws(config, config.sampling, resolution, 0.0, (0, 0), cpu, config.poses)
    fakes = draws.fakes(range(1), "G")
    for parameter in generator.parameters():  # the gradients themselves are not activations
        parameter.grad = torch.zeros_like(parameter)
    before, seconds = peak(), 0.0
    for _ in range(1 if memory else 2):
        start = time.perf_counter()
        images = rendered(mode, generator, fakes, resolution)[..., :6]  # image and auxiliary image
        images.square().sum().backward()
        seconds = time.perf_counter() - start
        del images
    connection.send(peak() - before if memory else seconds)


def main() -> None:
    print(
        f"paper-size generator, forward and backward pass of one image, {THREADS} threads, "
        f"{CHUNK} rays at a time"
    )
    print(f"{'':16}" + "".join(f"{f'{side}² s':>12}{f'{side}² MB':>12}" for side in RESOLUTIONS))
    for mode in MODES:
        row = ""
        for resolution in RESOLUTIONS:
            seconds, memory = (in_process(measure, mode, resolution, x) for x in (False, True))
            row += f"{seconds:12.2f}{memory:12.0f}"
        print(f"{mode:16}{row}", flush=True)


if __name__ == "__main__":
    main()
