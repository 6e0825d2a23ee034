"""Rays that meet nothing, and subjects made ready for many views: the same pixels for less work."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cips3d
import tiny
from cips3d import Camera
from cips3d.errors import UserError
from cips3d.models import generator as generator_module
from cips3d.models import volume
from cips3d.models.config import Sampling
from cips3d.models.generator import Generator
from cips3d.models.types import RayDraws, RenderOutput

CAMERA = Camera.orbit(torch.tensor([-0.6, 0.0, 0.4, 2.5]), 0.1)


def model(**networks: Any) -> Generator:
    """A tiny generator in float64 whose field is empty in large parts."""
    torch.manual_seed(0)
    config = replace(tiny.GENERATOR, networks=replace(tiny.GENERATOR.networks, **networks))
    generator = Generator(config).double()
    with torch.no_grad():
        generator.nerf.density.bias.sub_(0.3)
        for parameter in generator.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    generator.update_style_means(16)
    return generator


def largest_difference(one: RenderOutput, other: RenderOutput) -> float:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("background", ["plain", "white", "endless", "last", "field"])
@pytest.mark.parametrize("embedding", ["film", "learned", "fixed"])
def test_a_prepared_subject_has_the_pixels_of_plain_rendering(
    background: str, embedding: str
) -> None:
    generator = model(background=background, embedding=embedding)
    styles = generator.map(generator.sample_latents(1, 3), 0.7)
    plain = generator.render(styles, CAMERA, 16)
    ready = generator.render(generator.prepare(styles), CAMERA, 16)
    assert largest_difference(plain, ready) < 1e-9


@pytest.mark.parametrize("background", ["plain", "white", "endless", "last", "field"])
@pytest.mark.parametrize(("width", "layers"), [(12, 1), (16, 2), (22, 3), (40, 4)])
@pytest.mark.parametrize("fine", [0, 5])
@torch.no_grad()
def test_the_compiled_march_agrees_with_torch(
    background: str, width: int, layers: int, fine: int
) -> None:
    """As closely as float32 in torch agrees with float64, where a moved fine sample shows too."""
    exact = model(background=background, nerf_width=width, nerf_layers=layers)
    single = copy.deepcopy(exact).float()
    styles = exact.map(exact.sample_latents(1, 3), 0.7)
    sampling = Sampling(coarse=6, fine=fine)
    rays = CAMERA[:1].to(torch.float64).rays(48, 48)
    draws = RayDraws.sample(1, rays.count, sampling, 0.0, torch.Generator().manual_seed(1))
    expected = exact.render_rays(styles, rays, sampling, draws.to(torch.float64))
    ready = single.prepare(styles.to(torch.float32))
    assert ready.compiled
    given = ready.styles, rays.to(torch.float32), sampling, draws
    with torch.enable_grad():
        plain = single.render_rays(*given)
    without_gradients = single.render_rays(*given)
    for found, name in itertools.product(
        (ready.render_rays(*given), without_gradients), vars(plain)
    ):
        value = getattr(expected, name)
        error, rounding = ((getattr(x, name) - value).abs() for x in (found, plain))
        assert float(error.mean()) < 2 * float(rounding.mean()) + 1e-6, name
        assert float((error > 1e-2).double().mean()) < 1e-3, name


@torch.no_grad()
def test_a_prepared_subject_of_the_bundled_model_is_the_same_from_all_sides() -> None:
    generator = cips3d.load("heads").double()
    assert isinstance(generator, Generator)
    styles = generator.map(generator.sample_latents(1, 5), 0.7)
    cameras = Camera.orbit(torch.tensor([0.0, 1.2, 3.0]), torch.tensor([0.0, 0.3, -0.2]))
    plain = generator.render(styles, cameras, 48)
    ready = generator.prepare(styles)
    assert 0.02 < ready.occupied_share < 0.5
    assert largest_difference(plain, generator.render(ready, cameras, 48)) < 1e-8


class Shells(Generator):
    """A generator whose density is a given function of the position."""

    def install(self, density: Any) -> Shells:
        def raw_density(x: Tensor, squared_radius: Tensor) -> Tensor:
            return density(squared_radius.sqrt())

        self.nerf.raw_density = raw_density  # pyright: ignore
        return self


@pytest.mark.parametrize(
    ("radius", "thickness"),
    [(0.05, 0.004), (0.11, 0.004), (0.17, 0.004), (0.3, 0.02)],
    ids=["thin", "at the rim", "at the grid's edge", "outside the grid"],
)
@torch.no_grad()
def test_thin_and_far_structures_are_found(radius: float, thickness: float) -> None:
    generator = Shells(tiny.GENERATOR).double()
    generator.install(lambda r: 50_000 * (thickness - (r - radius).abs()))
    styles = generator.map(generator.sample_latents(1, 0), 1.0)
    camera = Camera.orbit(0.3, 0.2, radius=1.0, fov=40.0)
    sampling = replace(generator.sampling, coarse=64)
    plain = generator.render(styles, camera, 16, sampling=sampling)
    assert plain.opacity.max() > 0.5
    ready = generator.render(generator.prepare(styles), camera, 16, sampling=sampling)
    assert largest_difference(plain, ready) < 1e-9


def test_a_prepared_subject_follows_a_changed_weight() -> None:
    generator = model()
    styles = generator.map(generator.sample_latents(1, 0), 1.0).map(Tensor.detach)
    ready = generator.prepare(styles)
    before = generator.render(ready, CAMERA, 8)
    for name in ("nerf.layers.0.gain.bias", "inr.blocks.0.first.weight", "aux_head.bias"):
        with torch.no_grad():
            generator.get_parameter(name).add_(0.1)
        after = generator.render(ready, CAMERA, 8)
        assert largest_difference(before, after) > 1e-6, name
        assert largest_difference(generator.render(styles, CAMERA, 8), after) < 1e-9, name
        before = after
    state = model().state_dict()
    generator.load_state_dict({k: v + 0.01 for k, v in state.items()})
    after = generator.render(ready, CAMERA, 8)
    assert largest_difference(generator.render(styles, CAMERA, 8), after) < 1e-9


def test_draws_reach_a_prepared_subject() -> None:
    generator = model()
    styles = generator.map(generator.sample_latents(1, 0), 1.0)
    draws = RayDraws.sample(4, 64, generator.sampling, 2.0, torch.Generator().manual_seed(1))
    draws = draws.to(torch.float64)
    plain = generator.render(styles, CAMERA, 8, draws=draws)
    ready = generator.render(generator.prepare(styles), CAMERA, 8, draws=draws)
    assert largest_difference(plain, ready) < 1e-9


def test_a_subject_of_another_model_is_refused() -> None:
    one, other = model(), model()
    ready = one.prepare(one.map(one.sample_latents(1, 0)))
    with pytest.raises(UserError, match="another model"):
        other.render(ready, CAMERA, 8)


def test_subjects_are_prepared_one_at_a_time() -> None:
    generator = model()
    with pytest.raises(UserError, match="one at a time"):
        generator.prepare(generator.map(generator.sample_latents(2, 0)))


@pytest.mark.parametrize("background", ["plain", "white", "endless", "field"])
def test_skipping_rays_that_meet_nothing_changes_neither_pixels_nor_gradients(
    background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = model(background=background)
    latents = generator.sample_latents(4, 2)
    weight = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    results = []
    for most in (0.9, 0.0):
        monkeypatch.setattr(generator_module, "_MOST_MEETING", most)
        out = generator.render(latents, CAMERA, 8, psi=1.0)
        ((out.image + out.aux_image) * weight).sum().backward()
        results.append((out, [p.grad for p in generator.parameters()]))
        generator.zero_grad()
    (skipped, gradients), (full, expected) = results
    empty = float((full.opacity == 0).double().mean())
    assert 0.1 < empty < 0.95
    assert largest_difference(skipped, full) < 1e-12
    for a, b in zip(gradients, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert float((a - b).abs().max()) < 1e-9


def test_marked_entries_come_first_in_order() -> None:
    marked = torch.tensor([[False, True, False, True], [False, False, False, True]])
    assert volume.first_marked(marked).tolist() == [[1, 3], [3, 0]]
    assert volume.first_marked(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0], [0]]


@pytest.mark.parametrize(("precision", "least"), [("auto", 60.0), ("bfloat16", 45.0)])
@torch.no_grad()
def test_faster_precisions_are_close_to_float32(precision: Any, least: float) -> None:
    """In decibels, for a range of 2; bfloat16 is float32 where the processor lacks it."""
    generator = cips3d.load("heads")
    assert isinstance(generator, Generator)
    styles = generator.map(generator.sample_latents(1, 5), 0.7)
    exact = generator.render(generator.prepare(styles, "float32"), CAMERA, 48).image
    fast = generator.render(generator.prepare(styles, precision), CAMERA, 48).image
    error = float((fast - exact).square().mean())
    assert 10 * math.log10(4 / max(error, 1e-20)) > least
    assert torch.get_float32_matmul_precision() == "highest"
