"""Peak memory and time of the three ways of gradients (cips3d.training.gradients) for the paper-size generator.

Generator forward and backward on one picture, float32, two threads, discriminators apart; the loss is the sum of squares of
the picture and the auxiliary one. Each figure comes from a process of its own. Memory is its peak above what it held before,
with a C library that gives every freed block of 64 KiB or more back at once, which is slow; times are with its own ways. n_r
is a quarter of the rays; checkpointed and partial gradients take 4,096 rays at a time.

    python benchmarks/gradients.py        (about eight minutes and 10 GB of memory on an idle machine)
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch
from memory import give_back_at_once, peak

from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput
from cips3d.training import gradients
from cips3d.training.draws import fake_draws

THREADS, CHUNK = 2, 4096
WAYS = ("full", "partial", "checkpointed")
RESOLUTIONS = (64, 128, 256)


def measure(way: str, resolution: int, memory: bool, pipe: Connection) -> None:
    """A process: seconds of the second of two passes, or peak MB above the start."""
    if memory:
        give_back_at_once()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig())
    draws = fake_draws(
        generator.config, generator.sampling, resolution, 0.0, (0,), range(1), torch.device("cpu")
    )
    arguments = (generator, draws.latents, draws.camera, resolution, draws.rays, generator.sampling)
    for parameter in generator.parameters():  # the gradients themselves are no activations
        parameter.grad = torch.zeros_like(parameter)
    before = peak()

    def render() -> RenderOutput:
        if way == "partial":
            index = torch.randperm(resolution**2, generator=torch.Generator().manual_seed(0))[
                : resolution**2 // 4
            ]
            return gradients.partial(*arguments, index, CHUNK)
        return (
            gradients.full(*arguments)
            if way == "full"
            else gradients.checkpointed(*arguments, CHUNK)
        )

    seconds = 0.0
    for _ in range(1 if memory else 2):
        start = time.perf_counter()
        out = render()
        (out.image.square().sum() + out.aux_image.square().sum()).backward()
        seconds = time.perf_counter() - start
        del out
    pipe.send(peak() - before if memory else seconds)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    print(
        f"paper-size generator, forward and backward of one picture, {THREADS} threads, {CHUNK} rays at a time"
    )
    print(f"{'':16}" + "".join(f"{f'{side}² s':>12}{f'{side}² MB':>12}" for side in RESOLUTIONS))
    for way in WAYS:
        row = ""
        for resolution in RESOLUTIONS:
            figures = []
            for memory in (False, True):
                here, there = context.Pipe()
                process = context.Process(target=measure, args=(way, resolution, memory, there))
                process.start()
                there.close()  # so that a process that dies is noticed
                figures.append(here.recv())
                process.join()
            row += f"{figures[0]:12.2f}{figures[1]:12.0f}"
        print(f"{way:16}{row}", flush=True)


if __name__ == "__main__":
    main()
