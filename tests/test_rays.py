"""Choices of rays: the image never changes; checkpointed gradients are the full ones, partial ones
add up to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import tiny
from cips3d.models import cost, rays
from cips3d.models.config import Sampling
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws, RenderOutput

SIDE, SAMPLING = 6, Sampling(4, 5)
#: Renders square images when called.
Render = Callable[[], RenderOutput]


@pytest.fixture(scope="module", params=["plain", "field"])
def generator(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    generator = Generator(tiny.generator(background=request.param)).double()
    with torch.no_grad():
        generator.nerf.density.weight.mul_(40)  # surfaces, empty space and background
    return generator


@pytest.fixture(scope="module")
def render(generator: Generator) -> Callable[..., Render]:
    """Renders the same three images, with the rays chosen by one of the functions of `rays`."""
    draw = torch.Generator().manual_seed(0)
    latents = generator.sample_latents(3, draw)
    pixels = generator.config.poses.sample(3, draw).to(torch.float64).rays(SIDE, SIDE)
    draws = RayDraws.sample(3, SIDE * SIDE, SAMPLING, 5.0, draw).to(torch.float64)

    def images(choose: Callable[..., Tensor], *choice: Tensor | int) -> RenderOutput:
        styles = generator.map(latents)
        stacked = choose(generator.render_rays, styles, pixels, SAMPLING, draws, *choice)
        return rays.as_images(stacked, SIDE, SIDE)

    return lambda *arguments: partial(images, *arguments)


def gradient(render: Render, generator: Generator) -> tuple[RenderOutput, Tensor]:
    """The images, and the gradient of a loss of main and auxiliary images, as one vector."""
    out = render()
    generator.zero_grad()
    weights = torch.linspace(-1, 1, out.image.numel(), dtype=torch.float64).view_as(out.image)
    ((weights * out.image).sum() + (weights * out.aux_image).square().sum()).backward()
    return out, parameters_to_vector([p.grad for p in generator.parameters() if p.grad is not None])


def assert_same_images(a: RenderOutput, b: RenderOutput) -> None:
    for name in ("image", "aux_image", "depth", "opacity", "last_weight"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [5, 100])
def test_checkpointed_gradients_are_the_full_ones(
    generator: Generator, render: Callable[..., Render], chunk: int
) -> None:
    images, expected = gradient(render(rays.full), generator)
    same, found = gradient(render(rays.checkpointed, chunk), generator)
    assert_same_images(same, images)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_checkpointing_holds_one_chunk(render: Callable[..., Render]) -> None:
    """Bytes kept until the backward pass are those of the outputs, not of the activations."""

    def kept(render: Render) -> int:
        tensors: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            render()
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    assert kept(render(rays.checkpointed, 4)) < 0.2 * kept(render(rays.full))


def test_partial_gradients_of_all_rays_are_the_full_ones(
    generator: Generator, render: Callable[..., Render]
) -> None:
    images, expected = gradient(render(rays.full), generator)
    shuffled = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(1))
    same, found = gradient(render(rays.partial, shuffled[None], 5), generator)
    assert_same_images(same, images)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_partial_gradients_of_parts_of_the_rays_add_up_to_the_full_one(
    generator: Generator, render: Callable[..., Render]
) -> None:
    images, expected = gradient(render(rays.full), generator)
    total = torch.zeros_like(expected)
    for index in torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(1)).chunk(4):
        same, found = gradient(render(rays.partial, index[None], 5), generator)
        assert_same_images(same, images)
        total += found
    assert float((total - expected).norm() / expected.norm()) < 1e-9


def test_automatic_chunks_shrink_with_batch_and_samples() -> None:
    memory = cost.device_memory(torch.device("cpu"))
    sizes = [
        cost.automatic_chunk(tiny.GENERATOR, batch, sampling, memory)
        for batch, sampling in ((1, Sampling(4, 4)), (8, Sampling(4, 4)), (8, Sampling(16, 16)))
    ]
    assert sizes[0] // 8 - 1 <= sizes[1] <= sizes[0] // 8 + 1
    assert sizes[2] < sizes[1] / 2


def test_automatic_chunks_do_not_depend_on_where_they_are_asked_for() -> None:
    with torch.no_grad():  # as for the fakes of the discriminator, which come first in a run
        cost._bytes_per_ray.cache_clear()
        before = cost.automatic_chunk(tiny.GENERATOR, 2, SAMPLING, 2**30)
    cost._bytes_per_ray.cache_clear()
    assert before == cost.automatic_chunk(tiny.GENERATOR, 2, SAMPLING, 2**30)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (3, 0, [1, 1, 1]), (0, 4, [0])],
)
def test_chunks_cover_everything_once(count: int, size: int, sizes: list[int]) -> None:
    items = list(range(count))
    parts = [items[part] for part in rays.chunks(count, size)]
    assert [item for part in parts for item in part] == items and [
        len(part) for part in parts
    ] == sizes


@pytest.mark.parametrize("chunk", [1, 5, 36, 100])
def test_chunks_of_rays_give_the_same_images(render: Callable[..., Render], chunk: int) -> None:
    with torch.no_grad():
        assert_same_images(render(rays.in_chunks, chunk)(), render(rays.full)())
