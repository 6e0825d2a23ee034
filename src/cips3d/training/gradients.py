"""Which rays of a training picture carry gradients: all, a random subset (paper Section 3.2, Fig. 3), or all in little memory.

Pixels are independent, so a picture can be put together from parts that were rendered in different ways. All functions return
the same picture for the same draws; they differ in the gradients and in the memory that they hold until the backward pass:

- `full`: gradients of all rays; the activations of all rays are held.
- `partial`: the paper's. Gradients of n_r random rays, the activations of these; the other rays are constants.
- `checkpointed`: gradients of all rays; one chunk's activations, for one more forward pass (in the backward pass).
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache

import psutil
import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cips3d.camera import Camera, Rays
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import generator_cost
from cips3d.models.generator import Generator, as_picture
from cips3d.models.types import Latents, RayDraws, RenderOutput, Sampling, Styles
from cips3d.training.draws import FakeDraws, picture_seed
from cips3d.training.recipe import Stage


def for_stage(
    stage: Stage,
    generator: Generator,
    draws: FakeDraws,
    sampling: Sampling,
    key: tuple[int, int],
    memory: int,
) -> RenderOutput:
    """A step's pictures, in the stage's way; without gradients where autograd is off.

    Args:
        key: the run's seed and the step, for the rays that carry partial gradients.
        memory: bytes that the process has, for automatic chunks.
    """
    arguments = (generator, draws.latents, draws.camera, stage.resolution, draws.rays, sampling)
    if stage.gradients == "full":
        return full(*arguments)
    chunk = stage.chunk or automatic_chunk(generator.config, len(draws.latents), sampling, memory)
    if stage.gradients == "checkpointed" or not torch.is_grad_enabled():
        return checkpointed(*arguments, chunk)
    assert stage.gradient_rays is not None  # Stage sees to it
    drawn = torch.Generator().manual_seed(picture_seed(*key, "rays"))
    index = torch.randperm(stage.resolution**2, generator=drawn)[: stage.gradient_rays].to(
        draws.latents.shape.device
    )
    return partial(*arguments, index, chunk)


def full(
    generator: Generator,
    latents: Latents,
    camera: Camera,
    resolution: int,
    draws: RayDraws,
    sampling: Sampling,
) -> RenderOutput:
    """Square pictures whose rays all carry gradients."""
    return generator(latents, camera, resolution, draws, sampling)


def partial(
    generator: Generator,
    latents: Latents,
    camera: Camera,
    resolution: int,
    draws: RayDraws,
    sampling: Sampling,
    index: Int[Tensor, " rays"],
    chunk: int,
) -> RenderOutput:
    """Square pictures in which the rays at `index` carry gradients; main and auxiliary picture in the same way.

    The gradient of a loss is then, in the mean over random subsets, n_r/(H·W) times the full one (to first order: a mapping
    network's gradient is a sum over rays as well); it is not scaled up, as in the paper and the authors' code.

    Args:
        index: n_r different ray numbers, row by row; the same for all pictures of the batch.
        chunk: rays rendered at a time among those without gradients; changes memory only.
    """
    styles, rays = _styles_and_rays(generator, latents, camera, resolution)
    taken = torch.zeros(rays.count, dtype=torch.bool, device=index.device).index_fill_(
        0, index, True
    )
    others = torch.sort(taken, stable=True).indices[: rays.count - len(index)]
    parts = [generator.render_rays(styles, rays[index], sampling, draws[index])]
    with torch.no_grad():
        constant = styles.map(torch.Tensor.detach)
        parts += [
            generator.render_rays(constant, rays[part], sampling, draws[part])
            for part in others.split(chunk)
        ]
    order = torch.argsort(torch.cat([index, others]))
    return as_picture([part.stacked() for part in parts], resolution, resolution, order)


def checkpointed(
    generator: Generator,
    codes: Latents | Styles,
    camera: Camera,
    resolution: int,
    draws: RayDraws | None,
    sampling: Sampling,
    chunk: int,
) -> RenderOutput:
    """Square pictures whose rays all carry gradients, holding the activations of `chunk` rays at a time.

    The gradients are those of `full` up to the order of summation.

    Args:
        codes: latents, or styles that carry gradients themselves.
        draws: of all rays; None: neither jitter nor noise (see `Generator.render_rays`).
        chunk: rays per piece, of every picture of the batch.
    """
    styles, rays = _styles_and_rays(generator, codes, camera, resolution)

    def rendered(part: slice, _: Tensor) -> Tensor:
        return generator.render_rays(
            styles, rays[part], sampling, None if draws is None else draws[part]
        ).stacked()

    parts = []
    for first in range(0, rays.count, chunk):
        # nothing is drawn while rendering, so no random state has to be kept; by the styles it sees which device it is
        arguments = slice(first, first + chunk), styles.shape
        parts.append(
            checkpoint(rendered, *arguments, use_reentrant=False, preserve_rng_state=False)
        )
    return as_picture(parts, resolution, resolution)


def _styles_and_rays(
    generator: Generator, codes: Latents | Styles, camera: Camera, resolution: int
) -> tuple[Styles, Rays]:
    """Styles, of latents without truncation, and the rays of all pixels, row by row."""
    rays = camera.to(generator.shape_mean).rays(
        resolution, resolution, generator.config.corner_aligned
    )
    return codes if isinstance(codes, Styles) else generator.map(codes), rays


def automatic_chunk(config: GeneratorConfig, batch: int, sampling: Sampling, memory: int) -> int:
    """Rays of each of `batch` pictures whose activations fill at most a quarter of a process's memory, in bytes.

    It counts with every sample in density.
    """
    per_ray = _bytes_per_ray(
        replace(config, coarse_samples=sampling.coarse, fine_samples=sampling.fine)
    )
    return max(1, int(memory / 4 / (per_ray * batch)))


def process_memory(accelerator: Accelerator) -> int:
    """Bytes of memory that each process has: its GPU's, or its share of this machine's.

    It is what there is in all rather than what happens to be free, so that a resumed run takes the same chunks and gets the
    same bits.
    """
    here = int(
        os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes
    )  # as torchrun says it on several machines
    return device_memory(accelerator.device, here)


def device_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes of memory that a GPU has, or each of so many processes of this machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // processes


@lru_cache
def _bytes_per_ray(config: GeneratorConfig) -> float:
    side = 8
    return generator_cost(config, side).saved_bytes / side**2
