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
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.metrics.consistency import (
    depth_distance,
    depth_error,
    identity_consistency,
    pose_error,
    turn,
    warp_error,
)
from cips3d.metrics.faces import relief
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


class Sight:
    """A predictor that sees the heads as their network does, except some, and those not straight.

    Its landmarks are where they are in an image of a ball.
    """

    def __init__(self, network: HeadNetwork, slope: float = 1.0, missed: int = 0) -> None:
        self.network, self.slope, self.missed = network, slope, missed

    def pose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        yaw, pitch = self.network.pose(images)
        return self._without_missed(self.slope * yaw + 0.1), self._without_missed(pitch)

    def identity(self, images: Tensor) -> Tensor:
        return self._without_missed(self.network.identity(images))

    def landmarks(self, images: Tensor) -> Tensor:
        sides = [[-0.2, -0.3], [0.2, -0.3], [-0.2, 0.3], [0.2, 0.3], [-0.5, 0.0], [0.5, 0.0]]
        points = torch.tensor([[0.0, 0.0], *sides]).expand(len(images), 7, 2)
        return self._without_missed(points.clone())

    def _without_missed(self, found: Tensor) -> Tensor:
        found[: self.missed] = torch.nan
        return found


def test_a_turn_that_was_asked_for_and_the_one_that_is_seen(
    truth: Subjects, network: HeadNetwork
) -> None:
    found = turn(truth, network)
    assert found.correlation > 0.99 and found.slope == pytest.approx(1, abs=0.05)
    assert found.found_share == 1
    assert math.degrees(float(found.asked.max())) == pytest.approx(25)
    half = turn(truth, Sight(network, slope=0.5, missed=12))
    assert half.slope == pytest.approx(0.5, abs=0.05) and half.found_share == 1 - 12 / COUNT
    still = turn(spoiled(truth, lambda _, camera: truth.from_angles(0.0).out), network)
    assert abs(still.slope) < 0.1
    back = turn(spoiled(truth, lambda _, c: truth.render(Camera.orbit(-c.yaw_pitch()[0]))), network)
    assert back.slope < -0.9 and back.correlation < -0.9
    blind = turn(truth, Sight(network, missed=COUNT))
    assert blind.found_share == 0 and math.isnan(blind.slope) and blind.correlation == 0


def test_images_in_which_nothing_is_found_do_not_count(
    truth: Subjects, network: HeadNetwork
) -> None:
    some, all_ = Sight(network, missed=COUNT // 2), Sight(network)
    view = truth.from_prior(0)
    assert pose_error(view, some) == pytest.approx(pose_error(view, all_), abs=1)
    assert identity_consistency(truth, some)[0] == pytest.approx(
        identity_consistency(truth, network)[0], abs=0.1
    )
    assert math.isnan(pose_error(view, Sight(network, missed=COUNT)))


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


def ball(colour: Callable[[Tensor], Tensor] = torch.sin) -> Subjects:
    """Four balls of radius 0.08 with stripes along x."""

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

    return Subjects(4, SyntheticHeads().poses, 0.12, render)


@pytest.mark.parametrize(
    ("colour", "score"), [(torch.sin, 0), (torch.cos, 1)], ids=["lopsided", "symmetric"]
)
def test_a_field_that_turns_is_mirrored_only_if_it_is_symmetric(
    colour: Callable[[Tensor], Tensor], score: float
) -> None:
    subjects = ball(colour)
    assert two_hypothesis_score(subjects) == score
    assert warp_error(subjects) < 0.12


# ---------------------------------------------------------------- faces
def test_a_face_is_convex_if_the_nose_is_nearest(network: HeadNetwork) -> None:
    """A ball, the ball from inside, a plane, a nose without cheeks, and images without a face."""
    sight = Sight(network)
    found = relief(ball(), sight)
    assert found is not None and found.convexity == 1
    wide = 0.93 * math.tan(math.radians(6))  # half of what the camera sees where the ball is
    radii = wide * sight.landmarks(torch.zeros(1, 3, 4, 4))[0].norm(dim=1)
    heights = (0.08**2 - radii.square()).sqrt()
    expected = float(heights[0] - heights[1:].mean())  # the others' plane faces the camera
    assert found.nose_height == pytest.approx(expected, rel=0.1)
    hollow = relief(spoiled(ball(), lambda out, _: replace(out, depth=2 - out.depth)), sight)
    assert hollow is not None and hollow.convexity == 0
    assert hollow.nose_height == pytest.approx(-expected, rel=0.25)  # rays are not parallel
    plane = relief(spoiled(ball(), flattened), sight)
    assert plane is not None and abs(plane.nose_height) < 1e-3
    alone = relief(spoiled(ball(), without_rim), sight)
    assert alone is not None and alone.convexity == 0 and math.isnan(alone.nose_height)
    half_found = relief(ball(), Sight(network, missed=2))
    assert half_found == found
    blind = relief(ball(), Sight(network, missed=4))
    assert blind is not None and all(map(math.isnan, blind))


def without_rim(out: RenderOutput, _: Camera) -> RenderOutput:
    """Only the middle is solid."""
    opacity = torch.zeros_like(out.opacity)
    opacity[..., 15:-15, 15:-15] = out.opacity[..., 15:-15, 15:-15]
    return replace(out, opacity=opacity)


def test_relief_needs_landmarks_of_the_right_shape(network: HeadNetwork) -> None:
    assert relief(ball(), network) is None and relief(ball(), None) is None
    wrong = Sight(network)
    wrong.landmarks = lambda images: torch.zeros(len(images), 5, 2)
    with pytest.raises(UserError, match=r"landmarks must return a tensor of \(4, 7, 2\)"):
        relief(ball(), wrong)


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
