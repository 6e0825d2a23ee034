"""Which rays carry gradients: the picture never changes; checkpointed ones are the full ones, partial ones add up to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import tiny
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput, Sampling
from cips3d.training import gradients
from cips3d.training.draws import fake_draws

SIDE, SAMPLING = 6, Sampling(4, 5)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR).double()
    with torch.no_grad():
        generator.nerf.density.weight.mul_(40)  # surfaces, empty space and what lies behind
    return generator


@pytest.fixture(scope="module")
def arguments(generator: Generator) -> tuple:
    draws = fake_draws(generator.config, SAMPLING, SIDE, 5.0, (0,), range(3), torch.device("cpu"))
    rays = draws.rays.to(torch.float64)
    return (
        generator,
        draws.latents.to(torch.float64),
        draws.camera.to(torch.float64),
        SIDE,
        rays,
        SAMPLING,
    )


def gradient(
    render: Callable[[], RenderOutput], generator: Generator
) -> tuple[RenderOutput, Tensor]:
    """The picture, and the gradient of a loss that sees INR image and auxiliary image, as one vector."""
    out = render()
    generator.zero_grad()
    weights = torch.linspace(-1, 1, out.image.numel(), dtype=torch.float64).view_as(out.image)
    ((weights * out.image).sum() + (weights * out.aux_image).square().sum()).backward()
    return out, parameters_to_vector([p.grad for p in generator.parameters() if p.grad is not None])


def assert_same_picture(a: RenderOutput, b: RenderOutput) -> None:
    for name in ("image", "aux_image", "depth", "opacity", "last_weight"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [5, 100])
def test_checkpointed_gradients_are_the_full_ones(
    generator: Generator, arguments: tuple, chunk: int
) -> None:
    picture, expected = gradient(lambda: gradients.full(*arguments), generator)
    same, found = gradient(lambda: gradients.checkpointed(*arguments, chunk), generator)
    assert_same_picture(same, picture)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_checkpointing_holds_one_chunk(generator: Generator, arguments: tuple) -> None:
    """Bytes kept until the backward pass, apart from parameters: those of the outputs, not of the activations."""

    def kept(render: Callable[[], RenderOutput]) -> int:
        tensors: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            render()
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    assert kept(lambda: gradients.checkpointed(*arguments, 4)) < 0.2 * kept(
        lambda: gradients.full(*arguments)
    )


def test_partial_gradients_of_all_rays_are_the_full_ones(
    generator: Generator, arguments: tuple
) -> None:
    picture, expected = gradient(lambda: gradients.full(*arguments), generator)
    shuffled = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(1))
    same, found = gradient(lambda: gradients.partial(*arguments, shuffled, 5), generator)
    assert_same_picture(same, picture)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_partial_gradients_of_parts_of_the_rays_add_up_to_the_full_one(
    generator: Generator, arguments: tuple
) -> None:
    picture, expected = gradient(lambda: gradients.full(*arguments), generator)
    total = torch.zeros_like(expected)
    for index in torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(1)).chunk(4):
        same, found = gradient(
            lambda index=index: gradients.partial(*arguments, index, 5), generator
        )
        assert_same_picture(same, picture)
        total += found
    assert float((total - expected).norm() / expected.norm()) < 1e-9


def test_automatic_chunks_shrink_with_batch_and_samples() -> None:
    memory = gradients.process_memory(Accelerator(cpu=True))
    sizes = [
        gradients.automatic_chunk(tiny.GENERATOR, batch, sampling, memory)
        for batch, sampling in ((1, Sampling(4, 4)), (8, Sampling(4, 4)), (8, Sampling(16, 16)))
    ]
    assert sizes[0] // 8 - 1 <= sizes[1] <= sizes[0] // 8 + 1
    assert sizes[2] < sizes[1] / 2


def test_automatic_chunks_do_not_depend_on_where_they_are_asked_for() -> None:
    with torch.no_grad():  # as for the discriminator's fakes, which come first in a run
        gradients._bytes_per_ray.cache_clear()
        before = gradients.automatic_chunk(tiny.GENERATOR, 2, SAMPLING, 2**30)
    gradients._bytes_per_ray.cache_clear()
    assert before == gradients.automatic_chunk(tiny.GENERATOR, 2, SAMPLING, 2**30)
