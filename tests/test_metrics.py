"""The geometry report sees flat, hollow and shuffled geometry; the cost counts agree with arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d.camera import Camera
from cips3d.heads import SyntheticHeads
from cips3d.metrics.geometry import (
    YAWS,
    GeometryReport,
    correlation,
    detail,
    geometry_report,
    speckle,
)
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import discriminator_cost, generator_cost
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput

HEADS = 8


# ---------------------------------------------------------------- parts of the report
def test_correlation() -> None:
    a = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert correlation(a, 3 * a + 5) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(
        3 / math.sqrt(4 * 28.75)
    )
    assert correlation(a, torch.full((4,), 0.3)) == 0  # a constant side
    assert correlation(a[:2], a[:2]) == 0  # too few pairs
    # a tiny relief on a large offset
    assert correlation(
        1 + 1e-3 * torch.linspace(0, 1, 50), torch.linspace(0, 1, 50)
    ) == pytest.approx(1, abs=1e-3)


def test_speckle_counts_isolated_pixels_but_no_edges() -> None:
    images = SyntheticHeads(resolution=32).render(range(HEADS)).images.float() / 127.5 - 1
    flat = torch.zeros(2, 3, 32, 32)
    edge = flat.clone()
    edge[..., 16:] = 1
    assert speckle(flat) == 0
    assert speckle(edge) == 0
    values = []
    for share in (0.0, 0.02, 0.1):
        salt = torch.rand(HEADS, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < share
        values.append(speckle(torch.where(salt, 1.0, images)))
    assert values[1] > 1.2 * values[0]
    assert values[2] > 2 * values[0]


def test_a_blurred_picture_has_less_detail() -> None:
    images = SyntheticHeads(resolution=32).render(range(HEADS)).images.float() / 127.5 - 1
    assert detail(torch.nn.functional.avg_pool2d(images, 3, 1, 1)) < 0.8 * detail(images)
    assert detail(torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2)) == 0.5


# ---------------------------------------------------------------- constructed geometries
class TrueHeads(Generator):
    """Renders the embedded heads themselves, as `change` alters them."""

    change: Callable[[RenderOutput, int], RenderOutput]
    #: Turns the yaw that is asked for into the one that is shown.
    turned: Callable[[Tensor], Tensor]

    def render(self, codes: Any, camera: Camera, resolution: Any = None, **_: Any) -> RenderOutput:
        poses = self.config.poses
        yaw, pitch = camera.yaw_pitch()
        shown = Camera.orbit(self.turned(yaw), pitch, poses.radius, poses.fov)
        truth = SyntheticHeads(resolution=resolution, poses=poses).render(range(len(codes)), shown)
        image = truth.images.float() / 127.5 - 1
        opacity = truth.mask.float()
        return self.change(
            RenderOutput(image, image, truth.depth, opacity, torch.zeros_like(opacity))
        )


def report(
    change: Callable[[RenderOutput], RenderOutput] = lambda out: out,
    turned: Callable[[Tensor], Tensor] = lambda yaw: yaw,
) -> GeometryReport:
    generator = TrueHeads(tiny.GENERATOR)
    generator.change, generator.turned = change, turned
    return geometry_report(generator, count=HEADS)


@pytest.fixture(scope="module")
def truth() -> GeometryReport:
    return report()


def test_true_heads_pass(truth: GeometryReport) -> None:
    assert truth.view_agreement > 0.95
    assert truth.shape_correlation.keys() == set(YAWS)
    assert min(truth.shape_correlation.values()) > 0.8
    assert truth.relief == pytest.approx(truth.true_relief) and truth.relief > 0.01
    assert truth.speckle == pytest.approx(truth.true_speckle)
    assert truth.last_sample_share == 0
    assert len(truth.lines()) == 5


def test_a_plane_has_no_relief() -> None:
    flat = report(lambda out: replace(out, depth=torch.where(out.opacity > 0.5, 1.0, 1.12)))
    assert flat.relief < 1e-6
    assert all(abs(value) < 1e-6 for value in flat.shape_correlation.values())
    assert abs(flat.view_agreement) < 0.8


def test_heads_that_do_not_turn_disagree_between_views(truth: GeometryReport) -> None:
    still = report(turned=torch.zeros_like)
    assert still.shape_correlation[0.0] == pytest.approx(truth.shape_correlation[0.0])
    assert still.view_agreement < truth.view_agreement - 0.05
    assert still.shape_correlation[30.0] < truth.shape_correlation[30.0] - 0.1


def test_heads_that_turn_the_other_way_disagree_more(truth: GeometryReport) -> None:
    mirrored = report(turned=torch.neg)
    still = report(turned=torch.zeros_like)
    assert mirrored.view_agreement < still.view_agreement - 0.1
    assert mirrored.shape_correlation[30.0] < truth.shape_correlation[30.0] - 0.1


def test_depth_turned_inside_out_is_no_head() -> None:
    hollow = report(lambda out: replace(out, depth=2 - out.depth))
    assert max(hollow.shape_correlation.values()) < -0.8


def test_depth_of_another_pixel_is_no_head() -> None:
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
    shuffle = lambda x: x.flatten(2)[..., order].view_as(x)  # noqa: E731
    shuffled = report(lambda out: replace(out, depth=shuffle(out.depth)))
    assert all(abs(value) < 0.2 for value in shuffled.shape_correlation.values())
    assert abs(shuffled.view_agreement) < 0.3


def test_salt_in_the_pictures_is_speckle(truth: GeometryReport) -> None:
    salt = torch.rand(HEADS, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.05
    salted = report(lambda out: replace(out, image=torch.where(salt, 1.0, out.image)))
    assert salted.speckle > 1.5 * salted.true_speckle
    assert salted.relief == truth.relief


def test_learned_cameras_may_have_drifted(truth: GeometryReport) -> None:
    """Which way a generator's subjects look is nobody's fault, as long as its cameras know."""
    poses = replace(tiny.GENERATOR.poses, yaw_mean=0.3)
    generator = TrueHeads(replace(tiny.GENERATOR, poses=poses))
    generator.change, generator.turned = lambda out: out, lambda yaw: yaw - 0.3
    drifted = geometry_report(generator, count=HEADS)
    assert drifted.shape_correlation == pytest.approx(truth.shape_correlation, abs=1e-3)


def test_a_picture_on_the_far_plane_lies_on_the_last_sample() -> None:
    torch.manual_seed(0)
    generator = Generator(replace(tiny.GENERATOR, background="last"))
    with torch.no_grad():  # no density anywhere, so that the last sample takes all
        generator.nerf.density.weight.zero_()
        generator.nerf.density.bias.fill_(-1.0)
    painted = geometry_report(generator, count=4)
    assert painted.last_sample_share > 0.99
    assert painted.relief == 0  # the background is no subject


def test_an_empty_volume_gives_zeros_instead_of_an_error() -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR)
    with torch.no_grad():
        generator.nerf.density.weight.zero_()
        generator.nerf.density.bias.fill_(-1.0)
    empty = geometry_report(generator, count=2)
    assert empty.relief == empty.view_agreement == 0
    assert all(
        math.isfinite(value)
        for value in (empty.last_sample_share, *empty.shape_correlation.values())
    )


# ---------------------------------------------------------------- cost
def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters() -> None:
    assert generator_cost(tiny.GENERATOR, 8).parameters == parameters(Generator(tiny.GENERATOR))
    config = DiscriminatorConfig({4: 8, 8: 8, 16: 4})
    assert discriminator_cost(config, 16).parameters == parameters(ProgressiveDiscriminator(config))


def test_work_grows_with_the_pixels() -> None:
    costs = {side: generator_cost(tiny.GENERATOR, side) for side in (8, 16, 32)}
    # what does not depend on the pixels (modulating the weights) is small and drops out of differences
    for kind in ("flops", "saved_bytes"):
        small, middle, large = (getattr(costs[side], kind) for side in (8, 16, 32))
        assert large - middle == pytest.approx(4 * (middle - small), rel=0.02), kind
    config = DiscriminatorConfig({4: 8, 8: 8, 16: 8, 32: 8})
    small, middle, large = (discriminator_cost(config, side).flops for side in (8, 16, 32))
    assert large - middle == pytest.approx(4 * (middle - small), rel=0.02)


def test_the_papers_generator_costs_what_arithmetic_says() -> None:
    config = GeneratorConfig()
    cost = {side: generator_cost(config, side) for side in (16, 32)}
    per_pixel = (cost[32].flops - cost[16].flops) / (32 * 32 - 16 * 16)
    inr = 2 * (
        32 * 512 + 17 * 512 * 512 + 6 * 512 * 3
    )  # first layer from V_r, 17 inner ones, tRGB from block 3 on
    samples = config.coarse_samples + config.fine_samples
    densities = (
        samples * 2 * (128 * 128 + 128) + 2 * 2 * 2 * 3 * 128
    )  # second layer, density; first layer once per ray and pass
    nerf = (
        samples * 2 * (3 * 128 + 128 * 128 + 128 + 128 * 64)
    )  # two layers, density, feature layer
    ray = 2 * (64 * 32 + 32 * 3)  # linear feature, auxiliary colour
    assert per_pixel == pytest.approx(inr + densities + nerf + ray, rel=1e-3)
    # the round figures: 18 layers of 512², and 24 samples of 53 kFLOP in the authors' order of operations
    assert per_pixel - densities == pytest.approx(18 * 2 * 512**2 + 24 * 53e3, rel=0.06)
    assert cost[16].parameters == pytest.approx(11.27e6, rel=1e-3)


def test_saved_bytes_are_those_of_a_real_forward_pass() -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR)
    with torch.no_grad():  # thin fog: every sample is seen but the last, which has no length
        generator.nerf.density.weight.zero_()
        generator.nerf.density.bias.fill_(0.1)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        generator.render_rays(
            generator.map(generator.sample_latents(1, 0)),
            Camera.orbit(0.0).rays(16, 16),
            generator.sampling,
        )
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measured <= generator_cost(tiny.GENERATOR, 16).saved_bytes <= 1.12 * measured
