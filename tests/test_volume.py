"""Volume rendering against scenes whose opacity and depth are known in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cips3d.camera import Camera, Rays
from cips3d.errors import UserError
from cips3d.models.config import Cips3dNetworks, FieldConfig, GeneratorConfig, Sampling
from cips3d.models.generator import Generator
from cips3d.models.nerf import RadianceField
from cips3d.models.types import RayDraws, RayOutput, Styles
from cips3d.models.volume import (
    ENDLESS,
    compositing_weights,
    importance_depths,
    invert_cdf,
    stratified_depths,
    visible_samples,
)

NEAR, FAR = 0.88, 1.12
LENGTH = FAR - NEAR
EMPTY = -5.0  # raw densities may be negative; compositing takes their positive part
fast = settings(deadline=None, max_examples=40)
seed = st.integers(0, 10**6)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bounds(rays: int) -> tuple[Tensor, Tensor]:
    return torch.full((rays, 1), NEAR, dtype=torch.float64), torch.full(
        (rays, 1), FAR, dtype=torch.float64
    )


# ---------------------------------------------------------------- depths
@fast
@given(st.integers(2, 30), seed)
def test_stratified_depths_are_sorted_one_per_stratum(count, seed):
    even = stratified_depths(*bounds(5), count)
    assert torch.allclose(even[:, [0, -1]], torch.cat(bounds(5), dim=1))
    assert torch.allclose(torch.diff(even), even.new_tensor(LENGTH / (count - 1)))
    jittered = stratified_depths(*bounds(5), count, draws(5, count, seed=seed))
    assert (torch.diff(jittered) >= 0).all()
    assert ((jittered - even).abs() <= LENGTH / (count - 1) / 2 + 1e-12).all()
    assert torch.allclose(stratified_depths(*bounds(5), count, torch.full_like(even, 0.5)), even)


@fast
@given(seed, st.integers(1, 12))
def test_invert_cdf_gives_each_bin_its_share(seed, bins):
    edges = draws(1, bins + 1, seed=seed).cumsum(dim=-1) + torch.arange(bins + 1)
    weights = draws(1, bins, seed=seed + 1) ** 3
    count = 5000
    u = (torch.arange(count, dtype=torch.float64)[None] + 0.5) / count
    samples = invert_cdf(edges, weights, u)
    assert (torch.diff(samples) >= 0).all()
    assert samples.min() >= edges.min() and samples.max() <= edges.max()
    inside = (samples[..., None] >= edges[..., None, :-1]) & (
        samples[..., None] < edges[..., None, 1:]
    )
    share = (weights + 1e-5) / (weights + 1e-5).sum()
    assert ((inside.sum(dim=1) / count) - share).abs().max() < 2 / count


def test_invert_cdf_at_its_ends_and_through_empty_bins():
    edges = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found = invert_cdf(edges, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.5, 1.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, 2.5, 4.0]]), atol=1e-4)


def test_importance_samples_concentrate_at_a_thin_surface():
    count, surface = 24, 1.013
    t = stratified_depths(*bounds(200), count, draws(200, count))
    spacing = LENGTH / (count - 1)
    weights = compositing_weights(
        t, torch.where((t - surface).abs() < 1.5 * spacing, 400.0, EMPTY), FAR
    )
    fine = importance_depths(t, weights, (draws(200, 16, seed=1) + torch.arange(16)) / 16)
    near_surface = (fine - surface).abs() < 3 * spacing
    assert near_surface.double().mean() > 0.995  # 3 spacings are a quarter of the ray
    assert (fine - surface).abs().mean() < 1.5 * spacing


def test_importance_depths_carry_no_gradient():
    t = stratified_depths(*bounds(1), 6)
    weights = torch.full((1, 6), 0.1, dtype=torch.float64, requires_grad=True)
    assert not importance_depths(t, weights, draws(1, 4)).requires_grad


# ---------------------------------------------------------------- compositing weights
@fast
@given(
    seed,
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-2, 7),
    st.sampled_from([FAR, ENDLESS]),
)
def test_weights_share_at_most_one(seed, dtype, magnitude, end):
    t = stratified_depths(*bounds(50), 12, draws(50, 12, seed=seed)).to(dtype)
    sigma = (10**magnitude * (draws(50, 12, seed=seed + 1) - 0.3)).to(dtype)
    weights = compositing_weights(t, sigma, end)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-8
    assert (weights >= 0).all()
    assert (weights.sum(dim=-1) <= 1 + tolerance).all()
    # what is not absorbed passes all intervals
    delta = torch.diff(t, append=torch.full_like(t[:, :1], end).maximum(t[:, -1:]))
    passed = torch.exp(-(delta * sigma.relu()).sum(dim=-1))
    assert torch.allclose(1 - weights.sum(dim=-1), passed, atol=tolerance)


@fast
@given(seed)
def test_a_homogeneous_interval_may_be_split(seed):
    t = stratified_depths(*bounds(20), 8, draws(20, 8, seed=seed))
    sigma = 60 * (draws(20, 8, seed=seed + 1) - 0.3)
    coarse = compositing_weights(t, sigma, FAR)
    ends = torch.cat([t[:, 1:], bounds(20)[1].maximum(t[:, -1:])], dim=-1)
    split = torch.stack([t, torch.lerp(t, ends, 0.3)], dim=-1).flatten(1)
    fine = compositing_weights(split, sigma.repeat_interleave(2, dim=-1), FAR)
    assert torch.allclose(fine.unflatten(1, (8, 2)).sum(dim=-1), coarse, atol=1e-8)


def test_a_sample_behind_the_end_has_an_empty_interval():
    t = torch.tensor([[1.0, 1.1, 1.2]], dtype=torch.float64)
    weights = compositing_weights(t, torch.full_like(t, 10.0), 1.15)
    assert weights[0, 2] == 0
    assert weights[0, 1].item() == pytest.approx(math.exp(-1) * (1 - math.exp(-1)))


def test_gradients_of_the_weights():
    t = stratified_depths(*bounds(3), 5, draws(3, 5)).requires_grad_()
    sigma = (20 * draws(3, 5, seed=1) + 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, sigma: compositing_weights(t, sigma, 1.3), (t, sigma))


def test_visible_samples_are_those_with_weight_each_once():
    weights = torch.relu(draws(4, 15, 6) - 0.7)
    weights[1] = 0  # an empty image
    weights[2] *= torch.finfo(weights.dtype).eps  # behind an opaque surface
    index = visible_samples(weights)
    assert index.shape == (4, int((weights > 1e-9).flatten(1).sum(dim=1).max()))
    for image, found in zip(weights.flatten(1), index, strict=True):
        assert len(found.unique()) == len(found)
        assert set(torch.nonzero(image > 1e-9)[:, 0].tolist()) <= set(found.tolist())


# ---------------------------------------------------------------- analytic scenes
def falls_at_first_order(errors: list[float]) -> bool:
    """Whether each error is at most a third of the previous one, at four times its samples."""
    return all(fine < coarse / 3 for coarse, fine in itertools.pairwise(errors))


@pytest.mark.parametrize("sigma", [3.0, 30.0])
@pytest.mark.parametrize("jittered", [False, True])
def test_homogeneous_slabs(sigma, jittered):
    rays = 400
    start = NEAR + 0.1 * LENGTH * (1 + 2 * draws(rays, 1))
    end = start + 0.1 * LENGTH * (1 + 4 * draws(rays, 1, seed=1))
    through = torch.exp(-sigma * (end - start))
    # ∫ t σ exp(−σ (t − start)) dt over the slab; the light that passes comes from the far bound
    depth = (start + 1 / sigma - through * (end + 1 / sigma) + through * FAR)[:, 0]

    opacity_errors, depth_errors = [], []
    for count in (16, 64, 256):
        t = stratified_depths(
            *bounds(rays), count, draws(rays, count, seed=2) if jittered else None
        )
        weights = compositing_weights(
            t, torch.where((t >= start) & (t < end), sigma, EMPTY), bounds(rays)[1]
        )
        opacity = weights.sum(dim=-1)
        error = (opacity - (1 - through)[:, 0]).abs()
        longest = (
            LENGTH / (count - 1) * (2 if jittered else 1)
        )  # an edge may lie anywhere in an interval
        assert error.max() < sigma * longest
        opacity_errors.append(error.mean().item())
        depth_errors.append(
            ((weights * t).sum(dim=-1) + (1 - opacity) * FAR - depth).abs().mean().item()
        )
    assert falls_at_first_order(opacity_errors), opacity_errors
    assert falls_at_first_order(depth_errors), depth_errors


class Scene(RadianceField):
    """A radiance field with given raw density and features at world points."""

    def __init__(
        self,
        config: FieldConfig,
        sigma: Callable[[Tensor], Tensor],
        feature: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(config, 2)
        self.sigma, self.feature = sigma, feature

    def density_along(self, rays: Rays, t: Tensor, w: Tensor) -> Tensor:
        return self.sigma(rays.at(t))

    def forward(
        self, points: Tensor, directions: Tensor | None, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.sigma(points), self.feature(points)

    def project(self, hidden: Tensor, opacity: Tensor) -> Tensor:
        return hidden


def scene(
    density: Callable[[Tensor], Tensor], feature: Callable[[Tensor], Tensor], background: str
) -> Generator:
    """A generator in float64 that renders the field."""
    torch.manual_seed(0)
    networks = Cips3dNetworks(
        shape_dim=2, shape_style_dim=2, appearance_dim=2, appearance_style_dim=2, nerf_width=2,
        feature_dim=2, inr_width=2, background=background,
    )  # fmt: skip
    generator = Generator(GeneratorConfig(networks)).double().requires_grad_(False)
    generator.nerf = Scene(networks, density, feature)
    return generator


STYLES = Styles(torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
BACKGROUNDS = ("endless", "last", "white", "plain")


def place(points: Tensor) -> Tensor:
    """The feature (x, y)."""
    return points[..., :2]


def constant(sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.full_like(points[..., 0], sigma)


def view(yaw: float = 0.5, pitch: float = 0.3, resolution: int = 24) -> Rays:
    return Camera.orbit(torch.tensor([yaw], dtype=torch.float64), pitch).rays(
        resolution, resolution
    )


def rendered(
    density: Callable[[Tensor], Tensor],
    rays: Rays,
    sampling: Sampling,
    background: str = "plain",
    draws: RayDraws | None = None,
) -> RayOutput:
    return scene(density, place, background).render_rays(STYLES, rays, sampling, draws)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_a_filled_volume_has_its_exact_opacity(count):
    out = rendered(constant(7.0), view(), Sampling(count, 0))
    assert torch.allclose(
        out.opacity, torch.tensor(1 - math.exp(-7 * LENGTH), dtype=torch.float64), atol=1e-8
    )


@pytest.mark.parametrize("fine_share", [0, 1])
def test_a_ball(fine_share):
    radius, sigma, rays = 0.08, 25.0, view(resolution=20)
    middle = -(rays.origins * rays.directions).sum(dim=-1)
    half = (radius**2 - (rays.origins.square().sum(dim=-1) - middle**2)).clamp(min=0).sqrt()
    through = torch.exp(-2 * sigma * half)
    enter, leave = middle - half, middle + half
    depth = torch.where(
        half > 0, enter + 1 / sigma - through * (leave + 1 / sigma) + through * FAR, FAR
    )
    assert 0.3 < (half > 0).double().mean() < 0.7

    def ball(points: Tensor) -> Tensor:
        return torch.where(points.norm(dim=-1) < radius, sigma, EMPTY)

    opacity_errors, depth_errors = [], []
    for count in (16, 64, 256):
        random = RayDraws(draws(1, 400, count), draws(1, 400, fine_share * count, seed=1))
        out = rendered(ball, rays, Sampling(count, fine_share * count), draws=random)
        assert (out.opacity[half == 0] == 0).all()
        assert torch.allclose(out.depth[half == 0], torch.tensor(FAR, dtype=torch.float64))
        assert (out.opacity - (1 - through)).abs().max() < 2 * sigma * LENGTH / (count - 1)
        opacity_errors.append((out.opacity - (1 - through)).abs().mean().item())
        depth_errors.append((out.depth - depth).abs().mean().item())
    assert falls_at_first_order(opacity_errors), opacity_errors
    assert falls_at_first_order(depth_errors), depth_errors


def plane_depth(rays: Rays, normal: Tensor) -> Tensor:
    """Where rays meet the plane through the origin."""
    return -(rays.origins @ normal) / (rays.directions @ normal)


def test_an_opaque_plane():
    rays = view(0.2, 0.1)
    normal = torch.nn.functional.normalize(
        torch.tensor([0.3, 0.2, 1.0], dtype=torch.float64), dim=0
    )
    depth = plane_depth(rays, normal)
    assert depth.min() > NEAR and depth.max() < FAR

    def wall(points: Tensor) -> Tensor:
        return torch.where(points @ normal < 0, 1e6, EMPTY)

    errors = {}
    for coarse, fine in [(16, 0), (32, 0), (64, 0), (256, 0), (16, 16)]:
        out = rendered(wall, rays, Sampling(coarse, fine))
        assert torch.allclose(out.opacity, torch.tensor(1.0, dtype=torch.float64))
        error = out.depth - depth
        assert (error > -1e-9).all() and (error < LENGTH / (coarse - 1) + 1e-9).all()
        errors[coarse, fine] = error.mean().item()
    assert falls_at_first_order([errors[16, 0], errors[64, 0], errors[256, 0]]), errors
    # importance samples help more than the same number of stratified ones
    assert errors[16, 16] < 0.9 * errors[32, 0] < 0.5 * errors[16, 0], errors


@pytest.mark.parametrize("fine", [0, 8])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_empty_space_shows_the_background(background, fine):
    rays = view()
    out = rendered(constant(EMPTY), rays, Sampling(8, fine), background)
    deepest = (rays.origins + FAR * rays.directions)[..., :2]
    expected = {
        "endless": torch.zeros_like(deepest),
        "last": deepest,
        "white": torch.ones_like(deepest),
        "plain": plain_feature().expand_as(deepest),
    }[background]
    assert torch.allclose(out.feature, expected, atol=1e-12)
    opaque = 1.0 if background == "last" else 0.0
    assert torch.equal(out.opacity, torch.full_like(out.opacity, opaque))
    assert torch.equal(out.last_weight, torch.full_like(out.opacity, opaque))
    assert torch.allclose(out.depth, torch.full_like(out.depth, FAR))


def plain_feature() -> Tensor:
    background = scene(constant(EMPTY), place, "plain").background
    assert background is not None
    return background(STYLES.shape)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_half_transparent_wall_mixes_with_the_background(background):
    rays = view()

    def wall(points: Tensor) -> Tensor:
        return torch.where(points.norm(dim=-1) < 0.05, 12.0, EMPTY)

    sampling = Sampling(24, 0)
    out, alone = (rendered(wall, rays, sampling, name) for name in (background, "endless"))
    passed = (1 - alone.opacity)[..., None]
    assert passed.min() < 0.5 and ((passed > 0.3) & (passed < 0.9)).any()
    deepest = (rays.origins + FAR * rays.directions)[..., :2]
    behind = {
        "endless": 0 * deepest,
        "last": deepest,
        "white": torch.ones_like(deepest),
        "plain": plain_feature(),
    }[background]
    assert torch.allclose(out.feature, alone.feature + passed * behind, atol=1e-10)
    assert torch.allclose(out.depth, alone.depth, atol=1e-10)


def test_faint_density_is_opaque_only_in_front_of_an_endless_background():
    out = {
        name: rendered(constant(0.01), view(), Sampling(8, 8), name)
        for name in ("endless", "plain")
    }
    assert torch.allclose(out["endless"].opacity, torch.tensor(1.0, dtype=torch.float64))
    assert (out["endless"].last_weight > 0.99).all()
    assert torch.allclose(
        out["plain"].opacity,
        torch.tensor(1 - math.exp(-0.01 * LENGTH), dtype=torch.float64),
        atol=1e-8,
    )
    assert (out["plain"].last_weight < 0.001).all()


def test_density_noise_adds_to_the_raw_density_in_order_of_depth():
    rays, sampling = view(resolution=3), Sampling(6, 5)
    base = {"jitter": torch.full((1, 9, 6), 0.5, dtype=torch.float64), "importance": draws(1, 9, 5)}
    ramp = torch.linspace(0, 10, 11, dtype=torch.float64).expand(1, 9, -1)
    noisy = rendered(constant(-1.0), rays, sampling, draws=RayDraws(**base, noise=ramp))
    t = torch.cat(
        [
            torch.linspace(NEAR, FAR, 6, dtype=torch.float64).expand(1, 9, -1),
            fine_depths(base["importance"]),
        ],
        dim=-1,
    )
    weights = compositing_weights(t.sort(dim=-1).values, ramp - 1, FAR)
    assert torch.allclose(noisy.opacity, weights.sum(dim=-1))
    quiet = rendered(constant(-1.0), rays, sampling, draws=RayDraws(**base))
    assert torch.equal(quiet.opacity, torch.zeros_like(quiet.opacity))


def fine_depths(u: Tensor) -> Tensor:
    """In empty space, importance samples spread evenly between the outermost mid-points."""
    spacing = LENGTH / 5
    return NEAR + spacing / 2 + u * (LENGTH - spacing)


@pytest.mark.parametrize(("coarse", "fine"), [(1, 0), (2, 1), (0, 0), (6, -1)])
def test_too_few_samples(coarse, fine):
    with pytest.raises(UserError):
        Sampling(coarse, fine)
