"""The sine kernel: its stated accuracy, forward and backward, and where torch's takes over."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cips3d.models.ops.sine import MOST_THREADS, sine, sine_, sine_along


def rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One channel and no shift: the plain sine of x."""
    return x.view(1, -1, 1), torch.zeros(1, 1, 1, dtype=x.dtype, device=x.device)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 2e4])
def test_values_and_slopes_are_within_the_stated_error(scale: float) -> None:
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0)) * scale
    x[:9] = torch.arange(-4, 5) * (math.pi / 2)  # where the argument reduction changes sign
    exact = x.double()
    slope = torch.linspace(0.1, 3, len(x))
    leaf = x.clone().requires_grad_()
    out = sine(*rows(leaf)).flatten()
    out.backward(slope)
    assert (out.double() - exact.sin()).abs().max() < 3e-7
    assert leaf.grad is not None
    assert ((leaf.grad.double() - slope * exact.cos()) / slope).abs().max() < 4e-7
    assert torch.equal(sine_(*rows(x.clone())).flatten(), out.detach())


def test_shifts_and_depths() -> None:
    """Each batch entry and channel has its shift, each ray its start and slope, with gradients."""
    draw = torch.Generator().manual_seed(0)
    x, shift = (
        torch.randn(3, 7, 5, generator=draw) * 30,
        torch.randn(3, 1, 5, generator=draw).requires_grad_(),
    )
    out = sine(x, shift)
    torch.testing.assert_close(out, torch.sin(x + shift), atol=1e-5, rtol=0)
    weight = torch.randn(3, 7, 5, generator=draw)
    (gradient,) = torch.autograd.grad((out * weight).sum(), shift)
    (expected,) = torch.autograd.grad((torch.sin(x + shift) * weight).sum(), shift)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    start, slope, t = (torch.randn(3, 7, n, generator=draw) for n in (5, 5, 4))
    along = sine_along(start, slope, t, slice(2, 6))
    torch.testing.assert_close(
        along.view(3, 4, 4, 5),
        torch.sin(start[:, 2:6, None] + t[:, 2:6, :, None] * slope[:, 2:6, None]),
        atol=1e-6,
        rtol=0,
    )
    doubles = sine_along(start.double(), slope.double(), t.double(), slice(2, 6))
    torch.testing.assert_close(along.double(), doubles, atol=1e-6, rtol=0)


@example(787852761759744.0)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_it_is_a_sine_however_large_the_argument(value: float) -> None:
    x = sine_(*rows(torch.full((9,), value)))
    assert x.abs().max() <= 1
    if abs(value) <= 1e5:
        assert abs(x[0, 0, 0].item() - math.sin(value)) < 3e-7


def test_non_finite_values_stay_visible() -> None:
    assert sine_(*rows(torch.tensor([math.nan, math.inf, -math.inf]))).isnan().all()


def test_second_derivatives() -> None:
    x = torch.linspace(-5, 5, 40).requires_grad_()
    (slope,) = torch.autograd.grad(sine(*rows(x)).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature, -torch.sin(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["double", "strided", "meta", "threads"])
def test_torch_takes_over_elsewhere(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-50, 50, 64)
    x, shift = (
        rows(x) if case != "strided" else (x.view(1, 8, 8).transpose(1, 2), torch.ones(1, 1, 8))
    )
    x = {"double": x.double(), "meta": x.to("meta")}.get(case, x)
    shift = shift.to(x)
    if case == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: MOST_THREADS + 1)
    out = sine(x, shift)
    assert out.shape == x.shape and out.dtype == x.dtype and out.device == x.device
    if case != "meta":
        assert torch.equal(out, torch.sin(x + shift))
        assert torch.equal(sine_(x.clone(memory_format=torch.preserve_format), shift), out)
