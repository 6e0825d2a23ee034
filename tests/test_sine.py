"""The sine kernel: as accurate as it says, at every argument, forwards and backwards; torch's own where it does not apply."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cips3d.models.sine import MOST_THREADS, sine, sine_


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 2e4])
def test_values_and_slopes_are_within_the_stated_error(scale: float) -> None:
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0)) * scale
    x[:9] = torch.arange(-4, 5) * (math.pi / 2)  # where the reduction turns over
    exact = x.double()
    slope = torch.linspace(0.1, 3, len(x))
    leaf = x.clone().requires_grad_()
    out = sine(leaf)
    out.backward(slope)
    assert (out.double() - exact.sin()).abs().max() < 3e-7
    assert leaf.grad is not None
    assert ((leaf.grad.double() - slope * exact.cos()) / slope).abs().max() < 4e-7
    assert torch.equal(sine_(x.clone()), out.detach())


@example(787852761759744.0)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_it_is_a_sine_however_large_the_argument(value: float) -> None:
    x = torch.full((9,), value)
    assert sine_(x).abs().max() <= 1
    if abs(value) <= 1e5:
        assert abs(x[0].item() - math.sin(value)) < 3e-7


def test_what_is_not_finite_is_not_hidden() -> None:
    assert sine_(torch.tensor([math.nan, math.inf, -math.inf])).isnan().all()


def test_second_derivatives() -> None:
    x = torch.linspace(-5, 5, 40).requires_grad_()
    (slope,) = torch.autograd.grad(sine(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature, -torch.sin(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["double", "strided", "meta", "threads"])
def test_elsewhere_it_is_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-50, 50, 64)
    x = {"double": x.double(), "strided": x.view(8, 8).t(), "meta": x.to("meta"), "threads": x}[case]
    if case == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: MOST_THREADS + 1)
    out = sine(x)
    assert out.shape == x.shape and out.dtype == x.dtype and out.device == x.device
    if case != "meta":
        assert torch.equal(out, torch.sin(x))
        assert torch.equal(sine_(x.clone()), out)
