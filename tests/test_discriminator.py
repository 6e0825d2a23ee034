"""The progressive discriminator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cips3d.errors import UserError
from cips3d.models.discriminator import (
    Blur,
    DiscriminatorConfig,
    ProgressiveDiscriminator,
    _blurred,
)
from cips3d.models.discriminator import _minibatch_stddev as minibatch_stddev
from cips3d.training.objective import squared_gradient


def discriminator(**changes) -> ProgressiveDiscriminator:
    torch.manual_seed(0)
    return ProgressiveDiscriminator(DiscriminatorConfig({4: 8, 8: 6, 16: 4}, **changes)).double()


def images(side: int) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("side", [4, 8, 16])
def test_entry_at_every_resolution(side: int) -> None:
    assert discriminator()(images(side)).shape == (4, 1)


def test_fade_in_starts_from_the_halved_image() -> None:
    network = discriminator()
    halved = nn.functional.avg_pool2d(images(16), 2)
    assert torch.allclose(network(images(16), alpha=0.0), network(halved))
    assert not torch.allclose(network(images(16), alpha=0.5), network(halved))
    torch.nn.init.zeros_(network.blocks["16"].conv1.weight)
    assert torch.allclose(network(images(16), alpha=0.0), network(halved)), (
        "at 0 the new block does not matter"
    )


def test_a_fading_block_has_no_effect_at_0_and_is_alone_at_1() -> None:
    """At alpha 0 nothing of the new resolution has a gradient, at 1 nothing of the old entry."""
    network = discriminator()
    new = [network.from_rgb["16"].weight, *network.blocks["16"].parameters()]
    old = network.from_rgb["8"].weight
    gradients = torch.autograd.grad(network(images(16), alpha=0.0).sum(), new, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    (gradient,) = torch.autograd.grad(
        network(images(16), alpha=1.0).sum(), [old], allow_unused=True
    )
    assert gradient is None
    for part in (new[0], old):
        (gradient,) = torch.autograd.grad(network(images(16), alpha=0.5).sum(), [part])
        assert gradient.any()


def test_images_are_judged_alone_without_a_minibatch_deviation() -> None:
    network, batch = discriminator(), images(16)
    alone = torch.cat([network(image[None]) for image in batch])
    assert torch.allclose(network(batch), alone, atol=1e-12)


class NotOnCpu(torch.Tensor):
    is_cpu = False  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2), (2, 2)])
def test_blurs_have_derivatives_of_both_orders(padding: int, stride: int) -> None:
    x = (
        torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
        .double()
        .requires_grad_()
    )
    kernel = torch.rand(4, 4).double()

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return Blur.apply(x, kernel, 1, padding, stride)

    expected = nn.functional.conv2d(
        x, kernel.expand(3, 1, 4, 4), padding=padding, stride=stride, groups=3
    )
    torch.testing.assert_close(blurred(x), expected)
    # the adjoint as other devices compute it
    gradient = torch.randn_like(expected).detach()
    (adjoint,) = torch.autograd.grad(expected, x, gradient)
    elsewhere = gradient.as_subclass(NotOnCpu)
    arguments = (kernel.flip(0, 1), stride, 3 - padding, 1, x.shape[2:])
    torch.testing.assert_close(_blurred(elsewhere, *arguments).as_subclass(torch.Tensor), adjoint)
    torch.autograd.gradcheck(blurred, (x,))
    torch.autograd.gradgradcheck(blurred, (x,))


def test_convolutions_of_a_penalty_do_not_grow_with_the_channels() -> None:
    """torch's second derivative of a grouped convolution takes one per channel: hours on a GPU."""

    class Count(TorchDispatchMode):
        convolutions = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.convolutions += function.overloadpacket in (
                torch.ops.aten.convolution,
                torch.ops.aten.convolution_backward,
            )
            return function(*args, **(kwargs or {}))

    counts = []
    for width in (4, 32):
        torch.manual_seed(0)
        network = ProgressiveDiscriminator(DiscriminatorConfig({4: width, 8: width}))
        batch = images(8).float().requires_grad_()
        with Count() as count:
            squared_gradient(network(batch), batch).mean().backward()
        counts.append(count.convolutions)
    assert 0 < counts[0] == counts[1]


@pytest.mark.parametrize("side", [2, 12, 32])
def test_other_resolutions_are_refused(side: int) -> None:
    with pytest.raises(UserError, match="discriminator"):
        discriminator()(images(side))


def test_a_judgement_has_logits_and_with_a_pose_head_a_pose() -> None:
    plain, network = discriminator(), discriminator(pose_head=True)
    judgement = network.judge(images(16), alpha=0.5)
    assert torch.equal(judgement.logits, network(images(16), alpha=0.5))
    assert judgement.pose is not None and judgement.pose.shape == (4, 2)
    assert torch.equal(network.judge(images(16)).pose, network.predicted_poses(images(16)))
    assert plain.judge(images(16)).pose is None and plain.predicted_poses(images(16)) is None


@pytest.mark.parametrize("channels", [{8: 4}, {4: 4, 16: 4}, {4: 0}, {}])
def test_impossible_channels(channels: dict[int, int]) -> None:
    with pytest.raises(UserError):
        DiscriminatorConfig(channels)


def test_squared_gradient_is_the_steepest_slope_squared() -> None:
    """A small step along the gradient changes each logit by the step times the root."""
    network, x = discriminator(), images(8).requires_grad_(True)
    logits = network(x)
    squared = squared_gradient(logits, x)
    assert squared.shape == (4, 1)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    step = 1e-6 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        slope = (network(x + step) - network(x - step)) / 2e-6
    assert torch.allclose(slope**2, squared, rtol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_gradient_of_the_r1_penalty(first: bool) -> None:
    """R1 differentiates twice; along a random direction it agrees with finite differences."""
    network = discriminator(downsample_first=first, stddev_group=4)
    x = images(8).requires_grad_(True)

    def penalty() -> torch.Tensor:
        return squared_gradient(network(x), x).mean()

    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(
        float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None
    )
    eps, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * eps * d)
        values.append(float(penalty().detach()))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * eps * d)
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(
    ("batch", "groups"),
    [(4, [(0, 1, 2, 3)]), (8, [(0, 2, 4, 6), (1, 3, 5, 7)]), (6, [(0, 3), (1, 4), (2, 5)])],
)
def test_minibatch_deviation_by_hand(batch: int, groups: list[tuple[int, ...]]) -> None:
    """StyleGAN2's groups: every Nth image; their size divides batch and group size."""
    x = torch.randn(batch, 3, 4, 4, dtype=torch.float64)
    found = minibatch_stddev(x, 4)
    assert found.shape == (batch, 1, 4, 4)
    for group in groups:
        together = x[list(group)]
        deviation = ((together - together.mean(dim=0)) ** 2).mean(dim=0).add(1e-8).sqrt().mean()
        assert torch.allclose(found[list(group)], deviation)


def test_minibatch_deviation_sees_a_batch_of_one_image_repeated() -> None:
    network = discriminator(stddev_group=4)
    same = images(8)[:1].expand(4, -1, -1, -1)
    alone = discriminator(stddev_group=0)
    assert network.final_conv.weight.shape[1] == alone.final_conv.weight.shape[1] + 1
    varied = network(images(8))
    repeated = network(same)
    assert torch.allclose(repeated, repeated[:1].expand_as(repeated))
    assert not torch.allclose(varied[0], repeated[0]), (
        "the same image scores differently among others"
    )
