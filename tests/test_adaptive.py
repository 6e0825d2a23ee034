"""Adaptive pixels: rendered ones are exact, interpolated ones close; what can be lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cips3d
import tiny
from cips3d import Camera
from cips3d.camera import Rays
from cips3d.models.adaptive import TOLERANCE, adaptive
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws, RayOutput, Sampling, Styles

SAMPLING = Sampling(4, 4)
STYLES = Styles(torch.zeros(1, 1), torch.zeros(1, 1))


def rendered(
    color: Callable[[Tensor, Tensor], Tensor], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """An adaptive image of a function of the pixel's x and y, and how often each was rendered."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y, 0 * x], dim=-1).view(1, -1, 3).double()
    times = torch.zeros(height, width)

    def render_rays(_: Styles, rays: Rays, *__: object) -> RayOutput:
        x, y = rays.origins[..., 0], rays.origins[..., 1]
        times.index_put_((y.long(), x.long()), torch.ones(()), accumulate=True)
        rgb, zero = color(x, y)[..., None].expand(-1, -1, 3), 0 * x
        return RayOutput(rgb, rgb, zero, zero, zero, rgb)

    rays = Rays(places, places)
    stacked = adaptive(
        render_rays, STYLES, rays, SAMPLING, None, 10**6, (height, width), TOLERANCE, 0.12
    )
    return stacked[0, :, 0].view(height, width), times


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (9, 520), (512, 515), (3, 40), (1, 1)])
def test_a_smooth_image_needs_the_first_lattice_only(size: tuple[int, int]) -> None:
    def slope(x: Tensor, y: Tensor) -> Tensor:
        return 0.004 * x + 0.003 * y - 1

    image, times = rendered(slope, *size)
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij")
    assert torch.allclose(image, slope(x, y), atol=1e-12)
    assert times.max() == 1
    if min(size) > 8:
        stride = 8 if min(size) >= 512 else 4
        assert times.sum() == ((size[0] + stride - 2) // stride + 1) * (
            (size[1] + stride - 2) // stride + 1
        )


def test_an_edge_is_rendered_pixel_by_pixel() -> None:
    def edge(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x + 0.37 * y > 40, 0.9, -0.9).to(x)

    image, times = rendered(edge, 61, 75)
    y, x = torch.meshgrid(torch.arange(61), torch.arange(75), indexing="ij")
    assert torch.equal(image, edge(x.double(), y.double()))
    assert times.max() == 1 and times.mean() < 0.3


def test_wide_bands_are_exact_and_dots_between_the_first_pixels_are_lost() -> None:
    def band(x: Tensor, y: Tensor) -> Tensor:
        return torch.where((x - 2 * y - 3).abs() < 8, 1.0, -1.0).to(x)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.where((x - 18).abs() + (y - 18).abs() < 2, 1.0, -1.0).to(x)

    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image, times = rendered(band, 64, 64)
    assert torch.equal(image, band(x.double(), y.double())) and times.mean() < 0.5
    image, times = rendered(dot, 64, 64)
    assert (image == -1).all() and times.sum() == 17**2
    image, _ = rendered(lambda x, y: dot(x + 2, y + 2), 64, 64)  # on one of the first pixels
    assert torch.equal(image, dot(x.double() + 2, y.double() + 2))


@pytest.mark.parametrize("ready", [False, True])
@torch.no_grad()
def test_rendered_pixels_are_those_of_the_full_image(
    ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR).double()
    styles = generator.map(generator.sample_latents(1 if ready else 2, 0), 1.0)
    codes = generator.prepare(styles) if ready else styles
    cameras, size = Camera.orbit(torch.tensor([0.1, -0.4]).double()), (24, 30)
    draws = RayDraws.sample(2, 24 * 30, generator.sampling, 1.0, torch.Generator().manual_seed(1))
    draws = draws.to(torch.float64)
    full = generator.render(codes, cameras, size, draws=draws).image.flatten(2)
    directions = cameras.rays(*size).directions
    seen: list[Rays] = []
    owner = codes if ready else generator
    render_rays = owner.render_rays
    monkeypatch.setattr(
        owner, "render_rays", lambda s, r, *a: (seen.append(r), render_rays(s, r, *a))[1]
    )
    out = generator.render(codes, cameras, size, draws=draws, tolerance=0.2, chunk=50)
    for i in range(2):
        own = torch.cat(
            [r.directions[0] for r in seen if torch.equal(r.origins[0, 0], cameras.position[i])]
        )
        chosen = (directions[i][:, None] == own).all(dim=-1).any(dim=1)
        assert 0.05 < chosen.double().mean() < 1 and chosen.sum() == len(own)
        difference = (out.image.flatten(2) - full)[i].abs()
        assert difference[:, chosen].max() < 1e-9
        assert difference.max() > 1e-6


def test_no_images_are_no_images() -> None:
    generator = Generator(tiny.GENERATOR)
    none = generator.sample_latents(2, 0)[:0]
    out = generator.render(none, Camera.orbit(0.1), 16, tolerance=TOLERANCE)
    assert out.image.shape == (0, 3, 16, 16)


@torch.no_grad()
def test_adaptive_images_of_twenty_subjects_are_close_to_full_ones() -> None:
    generator = cips3d.load("heads")
    cameras = generator.config.poses.sample(20, torch.Generator().manual_seed(0))
    for seed in range(20):
        styles = generator.map(generator.sample_latents(1, seed), 0.7)
        full = generator.render(styles, cameras[seed], 96)
        close = generator.render(styles, cameras[seed], 96, tolerance=TOLERANCE)
        error = (full.image - close.image).clamp(-1, 1)
        psnr = -10 * torch.log10(error.square().mean() / 4)
        assert psnr > 60
        assert error.abs().max() < 2 * TOLERANCE
