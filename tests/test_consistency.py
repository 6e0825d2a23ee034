"""Every measure of views rates the embedded heads well, and damaged ones worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

import tiny
from cips3d.camera import Camera, PoseDistribution
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.metrics.consistency import (
    depth_distance,
    depth_error,
    identity_consistency,
    pose_error,
    warp_error,
)
from cips3d.metrics.symmetry import bangs_flip, mirror_jump, two_hypothesis_score
from cips3d.metrics.views import Subjects, View, angle_between, warp
from cips3d.models.registry import build_generator
from cips3d.models.types import SOLID, RenderOutput

COUNT = 48


@pytest.fixture(scope="module")
def truth() -> Subjects:
    return true_heads(64)


def true_heads(resolution: int) -> Subjects:
    return Subjects.true(SyntheticHeads(seed=3).truth(), range(COUNT), resolution)


@pytest.fixture(scope="module")
def network() -> HeadNetwork:
    return load_head_network()


def spoiled(subjects: Subjects, change: Callable[[RenderOutput, Camera], RenderOutput]) -> Subjects:
    return replace(subjects, render=lambda camera: change(subjects.render(camera), camera))


def flattened(out: RenderOutput, _: Camera) -> RenderOutput:
    return replace(
        out,
        depth=torch.where(
            out.opacity > SOLID, float(out.depth[out.opacity > SOLID].mean()), out.depth
        ),
    )


def mirrored(subjects: Subjects) -> Subjects:
    """The fault of Section 3.3: from the left, what is seen from the right, mirrored."""

    def render(camera: Camera) -> RenderOutput:
        yaw, pitch = camera.yaw_pitch()
        out = subjects.render(Camera.orbit(yaw.abs(), pitch, 1.0, 12.0))
        left = (yaw < 0)[:, None, None, None]
        return RenderOutput(*(torch.where(left, x.flip(3), x) for x in vars(out).values()))

    return replace(subjects, render=render)


# ---------------------------------------------------------------- warping
def test_a_plane_is_warped_as_geometry_says() -> None:
    """A textured plane z = 0.02 that fills two views: one warped to the other is the other."""

    def texture(points: Tensor) -> Tensor:
        x, y = points[..., 0] * 30, points[..., 1] * 30
        return torch.stack([(x + y).sin(), (x - 0.5 * y).cos(), (0.7 * x).sin() * y.cos()], dim=-1)

    def view(yaw: float) -> View:
        camera = Camera.orbit(torch.tensor([yaw]), 0.05)
        rays = camera.rays(96, 64)
        depth = (0.02 - rays.origins[..., 2]) / rays.directions[..., 2]
        image = texture(rays.at(depth[..., None])[:, :, 0]).transpose(1, 2).unflatten(2, (96, 64))
        depth = depth.unflatten(1, (96, 64))[:, None]
        return View(
            RenderOutput(image, image, depth, torch.ones_like(depth), torch.zeros_like(depth)),
            camera,
        )

    source, target = view(0.3), view(-0.2)
    image, valid = warp(source, target)
    # pixels beyond the other's edge are not valid
    assert 0.7 < float(valid.float().mean()) < 1
    assert float((image - target.out.image).abs().mean(dim=1, keepdim=True)[valid].max()) < 0.03
    assert float((source.out.image - target.out.image).abs().mean()) > 0.1


def test_pixels_hidden_from_the_other_camera_are_not_valid(truth: Subjects) -> None:
    left, right = truth.from_angles(-0.6), truth.from_angles(0.6)
    _, valid = warp(left, right)
    share = float(valid.sum() / right.solid.sum())
    assert 0.2 < share < 0.8  # half the head is hidden at so wide an angle
    _, same = warp(right, right)
    assert float(same.sum() / right.solid.sum()) > 0.8  # all but the rim


def test_warp_error(truth: Subjects) -> None:
    good = warp_error(truth)
    assert good < 0.05
    assert warp_error(spoiled(truth, flattened)) > 2 * good

    def tinted(out: RenderOutput, camera: Camera) -> RenderOutput:
        return replace(out, image=out.image + 0.5 * camera.yaw_pitch()[0][:, None, None, None])

    assert warp_error(spoiled(truth, tinted)) > 2 * good
    assert warp_error(mirrored(truth)) > 2 * good


def test_nothing_solid_gives_nan(truth: Subjects, network: HeadNetwork) -> None:
    empty = spoiled(truth, lambda out, _: replace(out, opacity=torch.zeros_like(out.opacity)))
    assert math.isnan(warp_error(empty)) and math.isnan(two_hypothesis_score(empty))
    assert math.isnan(depth_error(empty.from_prior(0), network)[0])
    assert math.isnan(depth_distance(empty.from_prior(0), truth.from_prior(0)))


# ---------------------------------------------------------------- predictions
def test_angles() -> None:
    zero, quarter = torch.zeros(1), torch.full((1,), math.pi / 2)
    assert float(angle_between(zero, zero, quarter, zero)) == pytest.approx(90, abs=1e-3)
    assert float(angle_between(zero, quarter, quarter, quarter)) == pytest.approx(
        0, abs=0.05
    )  # at the pole yaw is nothing
    assert float(angle_between(zero + 0.1, zero, zero, zero)) == pytest.approx(
        math.degrees(0.1), rel=1e-3
    )


def test_pose_error(truth: Subjects, network: HeadNetwork) -> None:
    view = truth.from_prior(0)
    good = pose_error(view, network)
    assert good < 2
    yaw, pitch = view.camera.yaw_pitch()
    for wrong in (
        Camera.orbit(yaw + 0.1, pitch),
        Camera.orbit(yaw, pitch - 0.1),
        Camera.orbit(-yaw, pitch),
    ):
        assert pose_error(View(view.out, wrong), network) > good + 3
    still = spoiled(truth, lambda _, camera: truth.from_angles(0.0).out)  # it does not turn
    assert pose_error(still.from_prior(0), network) > 10
    # as of a model whose learned cameras have drifted
    turned = View(view.out, Camera.orbit(yaw + 0.2, pitch - 0.1))
    assert pose_error(turned, network, (0.2, -0.1)) == pytest.approx(good, abs=1e-3)


@pytest.mark.parametrize("style", ["natural", "cartoon"])
def test_identity_consistency(style: Literal["natural", "cartoon"], network: HeadNetwork) -> None:
    heads = SyntheticHeads(seed=3, style=style).truth()
    subjects = Subjects.true(heads, range(COUNT), 64)
    good, between = identity_consistency(subjects, network)
    assert good > 0.8 and abs(between) < 0.1

    def other(camera: Camera) -> RenderOutput:  # another head from each side
        first = 1000 + COUNT * round(float(camera.yaw_pitch()[0].mean()) / 0.35)
        return Subjects.true(heads, range(first, first + COUNT), 64).render(camera)

    assert abs(identity_consistency(replace(subjects, render=other), network)[0]) < 0.1
    one = Subjects.true(heads, [0] * COUNT, 64)
    assert identity_consistency(one, network)[1] > 0.8  # all subjects are one
    assert math.isnan(identity_consistency(Subjects.true(heads, [0], 64), network)[1])


def test_depth_error(truth: Subjects, network: HeadNetwork) -> None:
    error, alike = depth_error(truth.from_prior(0), network)
    assert error < 0.005 and alike > 0.9
    flat_error, flat_alike = depth_error(spoiled(truth, flattened).from_prior(0), network)
    assert flat_error > 2 * error and abs(flat_alike) < 0.3
    hollow = spoiled(truth, lambda out, _: replace(out, depth=2 - out.depth))
    assert depth_error(hollow.from_prior(0), network)[1] < -0.5


def test_depth_distance(truth: Subjects) -> None:
    other = Subjects.true(SyntheticHeads(seed=4).truth(), range(COUNT), 64).from_prior(1)
    good = depth_distance(truth.from_prior(0), other)
    assert good < 0.003
    assert depth_distance(spoiled(truth, flattened).from_prior(0), other) > 4 * good
    shifted = spoiled(truth, lambda out, _: replace(out, depth=out.depth + 0.02))
    assert depth_distance(shifted.from_prior(0), truth.from_prior(0)) == pytest.approx(
        0.02, abs=1e-4
    )


def test_the_camera_may_stand_anywhere(truth: Subjects, network: HeadNetwork) -> None:
    """Twice as far, through a lens of half the angle, only perspective changes the measures."""
    near = truth.from_prior(0)
    yaw, pitch = near.camera.yaw_pitch()
    fov = math.degrees(2 * math.atan(math.tan(math.radians(6)) / 2))
    far = truth.from_cameras(Camera.orbit(yaw, pitch, 2.0, fov))
    assert depth_error(far, network)[0] < 1.5 * depth_error(near, network)[0]
    assert depth_distance(far, near) < 0.002


# ---------------------------------------------------------------- symmetry
@pytest.mark.parametrize("resolution", [32, 64])  # of the experiments, and of the bundled model
def test_symmetry(resolution: int, network: HeadNetwork) -> None:
    truth = true_heads(resolution)
    assert mirror_jump(truth) == pytest.approx(1, abs=0.15)
    assert two_hypothesis_score(truth) < 0.05
    assert bangs_flip(truth, network) < 0.1
    fault = mirrored(truth)
    assert mirror_jump(fault) > 1.2 * mirror_jump(truth)
    assert two_hypothesis_score(fault) > 0.95
    assert bangs_flip(fault, network) > 0.6


@pytest.mark.parametrize(
    ("colour", "score"), [(torch.sin, 0), (torch.cos, 1)], ids=["lopsided", "symmetric"]
)
def test_a_field_that_turns_is_mirrored_only_if_it_is_symmetric(
    colour: Callable[[Tensor], Tensor], score: float
) -> None:
    """A ball with stripes that change sides with x, or do not."""

    def render(camera: Camera) -> RenderOutput:
        rays = camera.rays(48, 48)
        along = (rays.origins * rays.directions).sum(dim=-1)
        gap = along.square() - rays.origins.square().sum(dim=-1) + 0.08**2
        hit = gap > 0
        depth = torch.where(hit, -along - gap.clamp(min=0).sqrt(), 1.12)
        points = rays.at(depth[..., None])[:, :, 0]
        stripes = torch.where(hit[..., None], colour(points * 60), 0.0)
        image, depth, opacity = (
            x.transpose(1, 2).unflatten(2, (48, 48))
            for x in (stripes, depth[..., None], hit.float()[..., None])
        )
        return RenderOutput(image, image, depth, opacity, torch.zeros_like(opacity))

    ball = Subjects(4, SyntheticHeads().poses, 0.12, render)
    assert two_hypothesis_score(ball) == score
    assert warp_error(ball) < 0.12


def test_sides_are_counted_from_where_the_prior_looks() -> None:
    poses = PoseDistribution(yaw_mean=0.4, pitch_mean=-0.1)
    subjects = Subjects(
        3,
        poses,
        0.12,
        lambda camera: RenderOutput(*[torch.zeros(3, 3, 1, 1)] * 2, *[torch.zeros(3, 1, 1, 1)] * 3),
    )
    yaw, pitch = subjects.from_angles(0.2, 0.05).camera.yaw_pitch()
    torch.testing.assert_close((yaw, pitch), (torch.full((3,), 0.6), torch.full((3,), -0.05)))


def test_points_lie_on_the_rays() -> None:
    torch.manual_seed(0)
    generator = build_generator(tiny.GENERATOR).requires_grad_(False)
    camera = PoseDistribution().sample(3, torch.Generator().manual_seed(0)).from_corner_grid(8)
    view = Subjects.generated(generator, generator.sample_latents(3, 0), 8).from_cameras(camera)
    rays = camera.rays(8, 8)
    expected = rays.at(view.out.depth.flatten(1)[..., None])[:, :, 0]
    torch.testing.assert_close(view.points, expected, atol=1e-6, rtol=0)


def test_many_subjects_are_rendered_as_few_are() -> None:
    torch.manual_seed(0)
    generator = build_generator(tiny.GENERATOR).requires_grad_(False)
    latents = generator.sample_latents(11, 0)
    camera = PoseDistribution().sample(11, torch.Generator().manual_seed(0))
    found, expected = (
        Subjects.generated(generator, latents, 8, psi=0.7).from_cameras(camera).out,
        generator.render(latents, camera, 8, psi=0.7),
    )
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-5, rtol=1e-5)
