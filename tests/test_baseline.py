"""The benchmarks' baseline computes the same images, losses and gradients, in float64."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from cips3d.models.config import Sampling
from cips3d.models.generator import Generator
from cips3d.training.draws import FakeDraws, StepDraws
from cips3d.training.networks import Networks
from cips3d.training.objective import R1, Objective
from cips3d.training.recipe import TrainConfig
from cips3d.training.step import Batch, StepContext, discriminator_step, generator_step

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import baseline

SAMPLING, R1_WEIGHT = Sampling(5, 6), 3.0
CPU = torch.device("cpu")


@pytest.fixture
def config() -> TrainConfig:
    generator = tiny.generator(
        nerf_layers=2, density_gain=40.0, density_blob=30.0, inr_blocks=3, rgb_from_block=1
    )
    objective = Objective(r1=R1(weight=2 * R1_WEIGHT))
    return tiny.config(generator=generator, sampling=SAMPLING, objective=objective)


@pytest.fixture
def networks(config: TrainConfig) -> Networks:
    networks = Networks(config, CPU)
    for module in networks.modules.values():
        module.double()
    with torch.no_grad():  # biases start at zero
        for parameter in networks.discriminators.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1
            )
    return networks


def draws(config: TrainConfig, seed: int) -> FakeDraws:
    poses = config.generator.poses
    step = StepDraws(config.generator, SAMPLING, 8, 0.7, (seed, 0), CPU, poses)
    drawn = step.fakes(range(4), "D")
    return FakeDraws(
        drawn.latents.to(torch.float64),
        drawn.camera.to(torch.float64),
        drawn.rays.to(torch.float64),
    )


def context(config: TrainConfig) -> StepContext:
    stage = replace(config.stages[-1], auxiliary=True, fade_kimg=0.0)
    return StepContext(stage, 0, 1.0, False, True, 0, nullcontext, lambda _: True)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients of all parameters that have one; they are reset."""
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - theirs[name]).norm() <= 1e-8 * gradient.norm(), name


@pytest.mark.parametrize("background", ["plain", "endless"])
def test_images(config: TrainConfig, background: str) -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.generator(config.generator, background=background)).double()
    drawn = draws(config, 0)
    ours = generator(drawn.latents, drawn.camera, 8, drawn.rays, SAMPLING)
    image, aux_image = baseline.generate(generator, drawn, 8, SAMPLING)
    assert (
        ours.image.std() > 1e-2 and ours.aux_image.std() > 1e-2 and 0.1 < ours.opacity.mean() < 0.9
    )
    torch.testing.assert_close(image, ours.image, rtol=0, atol=1e-9)
    torch.testing.assert_close(aux_image, ours.aux_image, rtol=0, atol=1e-9)


@pytest.mark.parametrize("r1_weight", [0.0, R1_WEIGHT])
def test_discriminator_step(config: TrainConfig, networks: Networks, r1_weight: float) -> None:
    drawn = draws(config, 1)
    real = (
        torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
        - 1
    )
    with torch.no_grad():
        ours = networks.generator(drawn.latents, drawn.camera, 8, drawn.rays, SAMPLING)
        image, aux_image = baseline.generate(networks.generator, drawn, 8, SAMPLING)
    objective = config.objective if r1_weight else replace(config.objective, r1=None)
    batch = Batch(range(4), real)
    figures = discriminator_step(networks, batch, ours, drawn, objective, context(config))
    our_gradients = gradients(networks.discriminators)
    loss = baseline.discriminator_loss(networks.discriminators, real, image, aux_image, r1_weight)
    loss.backward()
    torch.testing.assert_close(loss, figures["d_loss"], rtol=1e-9, atol=0)
    assert_same(our_gradients, gradients(networks.discriminators))


def test_generator_step(config: TrainConfig, networks: Networks) -> None:
    drawn = draws(config, 3)
    ours = networks.generator(drawn.latents, drawn.camera, 8, drawn.rays, SAMPLING)
    batch = Batch(range(4), torch.zeros(4, 3, 8, 8, dtype=torch.float64))
    figures = generator_step(networks, batch, ours, drawn, config.objective, context(config))
    our_gradients = gradients(networks.generator)
    assert not gradients(networks.discriminators), "this step does not train them"
    assert len(our_gradients) == len(list(networks.generator.parameters()))
    loss = baseline.generator_loss(
        networks.discriminators, *baseline.generate(networks.generator, drawn, 8, SAMPLING)
    )
    loss.backward()
    torch.testing.assert_close(loss, figures["g_loss"], rtol=1e-9, atol=0)
    assert_same(our_gradients, gradients(networks.generator))


def test_whole_steps(config: TrainConfig) -> None:
    networks = Networks(config, CPU)
    steps = baseline.Baseline(
        config, config.stages[-1], networks.generator, networks.discriminators
    )
    before = [p.clone() for p in steps.average.parameters()]
    for _ in range(2):  # one with R1, one without
        steps.step(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))
    assert all(bool(torch.isfinite(p).all()) for p in networks.generator.parameters())
    assert any(
        not torch.equal(a, b) for a, b in zip(before, steps.average.parameters(), strict=True)
    )
