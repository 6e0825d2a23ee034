"""Cameras, rays and the camera prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError

relaxed = settings(deadline=None, max_examples=40)
yaws = st.floats(-math.pi, math.pi)
pitches = st.floats(-1.5, 1.5)
radii = st.floats(0.1, 20.0)
fovs = st.floats(1.0, 120.0)
points = st.tuples(*[st.floats(-3.0, 3.0)] * 3)


def camera(yaw: float, pitch: float, radius: float = 1.0, fov: float = 12.0) -> Camera:
    return Camera.orbit(torch.tensor([yaw], dtype=torch.float64), pitch, radius, fov)


def project(cam: Camera, point: Tensor) -> Tensor:
    """Where a world point lies on the plane one unit before the camera, x right and y up."""
    local = (point - cam.position[0]) @ cam.cam_to_world[0, :3, :3]
    return local[..., :2] / -local[..., 2:]


@given(yaws, pitches, radii, fovs)
@relaxed
def test_the_origin_is_in_the_centre_and_up_is_up(
    yaw: float, pitch: float, radius: float, fov: float
) -> None:
    cam = camera(yaw, pitch, radius, fov)
    assert torch.allclose(
        project(cam, torch.zeros(1, 3, dtype=torch.float64)), torch.zeros(1, 2).double(), atol=1e-12
    )
    above = project(cam, torch.tensor([[0.0, 0.01 * radius, 0.0]], dtype=torch.float64))[0]
    assert above[1] > 0
    assert abs(float(above[0])) < 1e-9
    rotation = cam.cam_to_world[0, :3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3).double(), atol=1e-12)
    assert torch.linalg.det(rotation) == pytest.approx(1.0)


@given(yaws, pitches, radii)
@relaxed
def test_orbit_and_yaw_pitch_are_inverse(yaw: float, pitch: float, radius: float) -> None:
    found_yaw, found_pitch = camera(yaw, pitch, radius).yaw_pitch()
    assert math.cos(float(found_yaw) - yaw) == pytest.approx(1.0, abs=1e-12)
    assert float(found_pitch) == pytest.approx(pitch, abs=1e-9)


@given(points, points, points)
@relaxed
def test_look_at_sees_its_target_in_the_centre_and_up_upwards(position, target, up) -> None:
    eye, target, up = (torch.tensor([x], dtype=torch.float64) for x in (position, target, up))
    assume(torch.linalg.cross(up, target - eye).norm() > 0.1)
    cam = Camera.look_at(eye, target, up)
    assert torch.allclose(project(cam, target), torch.zeros(1, 2).double(), atol=1e-9)
    local_up = up @ cam.cam_to_world[0, :3, :3]
    assert abs(float(local_up[0, 0])) < 1e-9 and local_up[0, 1] > 0
    assert ((target - eye) @ cam.cam_to_world[0, :3, 2]).item() == pytest.approx(
        -(target - eye).norm().item()
    )


def test_turning_cameras_turns_what_they_see() -> None:
    camera = Camera.cat(
        [
            Camera.orbit(0.3, 0.2, 1.5, 20.0),
            Camera.look_at(torch.tensor([[0.3, 0.1, 0.9]]), torch.tensor([[0.1, 0.0, 0.0]])),
        ]
    )
    turned = camera.turned(0.7)
    torch.testing.assert_close(turned[0].cam_to_world, Camera.orbit(1.0, 0.2, 1.5).cam_to_world)
    point = torch.tensor([[[0.02, 0.03, -0.05]]]).expand(2, 1, 3)
    turn = Camera.orbit(0.7).cam_to_world[0, :3, :3]
    for one, other in zip(camera.project(point), turned.project(point @ turn.T), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(camera.turned(0.0).cam_to_world, camera.cam_to_world) and torch.equal(
        turned.fov, camera.fov
    )


def test_yaw_and_pitch_directions() -> None:
    assert torch.allclose(camera(0.0, 0.0).position, torch.tensor([[0.0, 0.0, 1.0]]).double())
    assert camera(0.3, 0.0).position[0, 0] > 0, "positive yaw: towards +x"
    assert camera(0.0, 0.3).position[0, 1] > 0, "positive pitch: up"


@given(yaws, pitches, fovs, st.integers(1, 9), st.integers(1, 9))
@relaxed
def test_pixel_centres(yaw: float, pitch: float, fov: float, height: int, width: int) -> None:
    """On the plane before the camera, pixels are squares that tile the field of view."""
    cam = camera(yaw, pitch, fov=fov)
    rays = cam.rays(height, width)
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(1, height * width).double())
    plane = project(cam, rays.origins[0] + rays.directions[0]).view(height, width, 2)
    half = math.tan(math.radians(fov) / 2)
    size = 2 * half / height
    assert torch.allclose(plane.mean(dim=(0, 1)), torch.zeros(2).double(), atol=1e-9 * half)
    assert float(plane[0, 0, 1]) == pytest.approx(half - size / 2), "rows go from the top down"
    assert float(plane[0, 0, 0]) == pytest.approx(-size * width / 2 + size / 2), (
        "columns go from left to right"
    )
    finer = project(cam, cam.rays(2 * height, 2 * width).directions[0] + cam.position[0]).view(
        height, 2, width, 2, 2
    )
    assert torch.allclose(finer.mean(dim=(1, 3)), plane, atol=1e-9), (
        "four pixels of the finer grid tile one of the coarser"
    )


@given(yaws, pitches, fovs, st.integers(2, 9), st.integers(2, 9), st.booleans())
@relaxed
def test_the_mean_direction_is_the_axis(yaw, pitch, fov, height, width, corner_grid) -> None:
    cam = camera(yaw, pitch, fov=fov)
    cam = cam.from_corner_grid(height) if corner_grid else cam
    mean = cam.rays(height, width).directions.mean(dim=1)
    assert torch.allclose(
        torch.nn.functional.normalize(mean, dim=-1), -cam.cam_to_world[:, :3, 2], atol=1e-12
    )


def test_every_camera_of_a_batch_has_its_own_rays() -> None:
    cameras = Camera.cat([camera(0.1, 0.2), camera(-0.7, 0.4, 2.0, 40.0)])
    together = cameras.rays(3, 5)
    for i in range(2):
        alone = cameras[i].rays(3, 5)
        assert torch.allclose(together.directions[i], alone.directions[0], atol=1e-15)
        assert torch.equal(together.origins[i], alone.origins[0])
    assert torch.equal(together[torch.tensor([14, 0])].directions, together.directions[:, [14, 0]])


def test_a_batch_can_be_taken_apart_and_joined() -> None:
    cameras = Camera.orbit(torch.linspace(-1, 1, 4), fov=torch.arange(10.0, 14.0))
    assert [len(cameras[i]) for i in (0, -1, -2)] == [1, 1, 1]
    again = Camera.cat([cameras[0], cameras[1:3], cameras[-1]])
    assert torch.equal(again.cam_to_world, cameras.cam_to_world)
    assert torch.equal(again.fov, cameras.fov)


@pytest.mark.parametrize("corner_grid", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (2, 3)])
def test_pixels_are_square_in_images_that_are_not(
    height: int, width: int, corner_grid: bool
) -> None:
    cam = camera(0.3, 0.1, fov=20.0)
    cam = cam.from_corner_grid(height) if corner_grid else cam
    directions = cam.rays(height, width).directions[0]
    plane = project(cam, directions + cam.position[0]).view(height, width, 2)
    across, down = plane[0, 1, 0] - plane[0, 0, 0], plane[0, 0, 1] - plane[1, 0, 1]
    torch.testing.assert_close(across, down)
    torch.testing.assert_close(plane[..., 0], -plane[..., 0].flip(1))


def test_a_corner_grid_reaches_the_edge() -> None:
    cam = camera(0.0, 0.0, fov=30.0).from_corner_grid(4)
    plane = project(cam, cam.rays(4, 4).directions[0] + cam.position[0])
    assert float(plane.abs().max()) == pytest.approx(math.tan(math.radians(15)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2), (5, 5), (4, 7), (7, 4)])
def test_a_corner_grid_is_linspace_from_edge_to_edge(height: int, width: int) -> None:
    """The authors' formula: linspace(-1, 1) in height; pixels of the same size in width."""
    fov, step = 40.0, 2 / max(1, height - 1)
    y = torch.linspace(1, -1, height, dtype=torch.float64) if height > 1 else torch.zeros(1)
    x = step * (torch.arange(width, dtype=torch.float64) - (width - 1) / 2)
    expected = math.tan(math.radians(fov / 2)) * torch.stack(
        torch.meshgrid(x, y.double(), indexing="xy"), dim=-1
    )
    cam = camera(0.4, -0.2, fov=fov).from_corner_grid(height)
    plane = project(cam, cam.rays(height, width).directions[0] + cam.position[0])
    assert torch.allclose(plane.view(height, width, 2), expected, atol=1e-12)


@given(yaws, pitches, radii, st.integers(1, 9), st.integers(1, 9))
@relaxed
def test_projecting_the_points_of_rays_gives_their_pixels(
    yaw, pitch, radius, height: int, width: int
) -> None:
    cam = camera(yaw, pitch, radius, fov=20.0)
    depth = radius * (0.5 + torch.rand(1, height * width, dtype=torch.float64))
    place, distance = cam.project(cam.rays(height, width).at(depth[..., None])[:, :, 0])
    column, row = (
        (place[..., 0] * height + width - 1) / 2,
        (place[..., 1] * height + height - 1) / 2,
    )
    expected = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    assert torch.allclose(row[0], expected[0].flatten(), atol=1e-8)
    assert torch.allclose(column[0], expected[1].flatten(), atol=1e-8)
    assert torch.allclose(distance, depth, rtol=1e-9)
    assert bool((cam.project(2 * cam.position[:, None])[1] < 0).all())  # behind the camera


# ---------------------------------------------------------------- far away, and without perspective
@given(points, points, fovs, st.booleans())
@relaxed
def test_centres_lie_on_the_rays_as_far_as_the_origin(position, target, fov, parallel) -> None:
    position, target = (torch.tensor([p], dtype=torch.float64) for p in (position, target))
    axis = target - position
    assume(float(axis.norm()) > 0.1 and float(torch.hypot(axis[0, 0], axis[0, 2])) > 0.1)
    assume(float(position.norm()) > 0.1)
    cam = Camera.look_at(position, target, fov=fov)
    if parallel:
        cam = Camera(cam.cam_to_world, torch.zeros_like(cam.fov), torch.ones_like(cam.fov))
    rays = cam.rays(3, 4)
    centred, distance = rays.centred()
    assert torch.allclose(rays.at(distance[..., None])[:, :, 0], centred.origins, atol=1e-9)
    if parallel:
        assert (centred.origins * rays.directions).sum(dim=-1).abs().max() < 1e-9
    else:
        assert torch.allclose(distance, position.norm(dim=-1)[:, None], atol=1e-9)
        again, same = Rays(rays.origins, rays.directions).centred()
        assert torch.allclose(again.origins, centred.origins, atol=1e-9)
        assert torch.allclose(same, distance, atol=1e-9)


@pytest.mark.parametrize("radius", [1.0, 30.0, 1000.0])
def test_centres_keep_their_digits_from_afar(radius: float) -> None:
    fov = math.degrees(2 * math.atan(math.tan(math.radians(6)) / radius))
    cam = Camera.orbit(0.4, 0.2, radius, fov)  # single precision
    exact = cam.to(torch.float64).rays(32, 32).centred()[0].origins
    found = cam.rays(32, 32).centred()[0].origins
    rounding = 2e-7 * radius  # of the pose, as one shift
    shift = (found - exact).mean(dim=1, keepdim=True)
    assert shift.abs().max() < rounding
    assert (found - exact - shift).abs().max() < 1e-7


@given(yaws, pitches, radii, st.floats(0.01, 2.0), st.integers(1, 9), st.integers(1, 9))
@relaxed
def test_an_orthographic_camera_has_parallel_rays_and_projects_them_back(
    yaw, pitch, radius, span, height: int, width: int
) -> None:
    cam = Camera.orthographic(torch.tensor([yaw], dtype=torch.float64), pitch, radius, span)
    rays = cam.rays(height, width)
    assert torch.allclose(rays.directions, -cam.cam_to_world[:, None, :3, 2], atol=1e-12)
    depth = torch.rand(1, height * width, dtype=torch.float64)
    place, distance = cam.project(rays.at(depth[..., None])[:, :, 0])
    assert torch.allclose(distance, depth, atol=1e-9)
    rows = -1 + (2 * torch.arange(height).double() + 1) / height
    columns = (2 * torch.arange(width).double() + 1 - width) / height
    expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    assert torch.allclose(place[0], expected.flatten(0, 1), atol=1e-6)
    second = Camera.cat([cam, cam])[1]
    assert second.span is not None and cam.span is not None
    assert torch.equal(second.span, cam.span)
    again = Camera.from_opencv(cam.to_opencv())
    assert torch.equal(again.cam_to_world, cam.cam_to_world)


def test_orthographic_cameras_frame_like_the_pinhole_ones_they_come_from() -> None:
    cam = camera(0.4, 0.2, 1.5, 20.0)
    parallel = cam.as_orthographic()
    assert parallel.as_orthographic() is parallel
    facing = 0.2 * cam.cam_to_world[:, None, :3, 0] - 0.1 * cam.cam_to_world[:, None, :3, 1]
    assert torch.allclose(parallel.project(facing)[0], cam.project(facing)[0], atol=1e-12)
    corner = parallel.from_corner_grid(5).rays(5, 5).origins
    edge = parallel.project(corner)[0].abs().amax()
    assert float(edge) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Camera.orthographic(0.0).to_label(), "no focal length"),
        (lambda: Camera.orthographic(0.0, span=0.0), "span above 0"),
        (lambda: Camera.orthographic(0.0, span=math.nan), "NaN"),
        (lambda: Camera.cat([Camera.orbit(0.0), Camera.orthographic(0.0)]), "one batch"),
        (
            lambda: Camera.look_at(torch.ones(1, 3), torch.full((1, 3), 2.0)).as_orthographic(),
            "behind",
        ),
    ],
)
def test_impossible_orthographic_cameras(make, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@given(yaws, pitches, radii, fovs)
@relaxed
def test_opencv_round_trip_is_exact(yaw: float, pitch: float, radius: float, fov: float) -> None:
    cam = camera(yaw, pitch, radius, fov)
    back = Camera.from_opencv(cam.to_opencv(), cam.fov)
    assert torch.equal(back.cam_to_world, cam.cam_to_world)
    forward = cam.to_opencv()[0, :3, 2]
    assert torch.allclose(forward, -cam.position[0] / radius, atol=1e-9), (
        "OpenCV's z axis looks at the subject"
    )


@given(yaws, pitches, radii, fovs)
@relaxed
def test_label_round_trip(yaw: float, pitch: float, radius: float, fov: float) -> None:
    cam = camera(yaw, pitch, radius, fov)
    back = Camera.from_label(cam.to_label())
    assert torch.equal(back.cam_to_world, cam.cam_to_world)
    assert float(back.fov) == pytest.approx(fov, rel=1e-9)


@given(yaws, pitches, radii, fovs, st.integers(1, 6))
@relaxed
def test_a_label_projects_each_ray_onto_its_pixel(yaw, pitch, radius, fov, resolution) -> None:
    """The pinhole model: K (R|t)⁻¹ of a point on a ray is its pixel centre in the unit square."""
    cam = camera(yaw, pitch, radius, fov)
    label = cam.to_label()[0]
    pose, intrinsics = label[:16].view(4, 4), label[16:].view(3, 3)
    rays = cam.rays(resolution, resolution)
    local = (1.7 * radius * rays.directions[0] + rays.origins[0] - pose[:3, 3]) @ pose[:3, :3]
    projected = local @ intrinsics.T
    centres = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    expected = torch.stack([across.flatten(), down.flatten()], dim=-1)
    assert torch.allclose(projected[:, :2] / projected[:, 2:], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("index", "value"), [(16, 3.0), (17, 0.1), (18, 0.4), (20, math.nan), (24, 2.0), (3, math.inf)]
)
def test_label_of_another_kind_is_refused(index: int, value: float) -> None:
    label = camera(0.1, 0.2).to_label()
    label[:, index] = value
    with pytest.raises(UserError, match="camera"):
        Camera.from_label(label)


def test_a_label_whose_pose_is_not_rigid_is_refused() -> None:
    label = camera(0.1, 0.2).to_label()
    scaled, mirrored = label.clone(), label.clone()
    scaled[:, :16] /= 2.7
    mirrored[:, :3] *= -1
    for bad in (scaled, mirrored):
        with pytest.raises(UserError, match="not a rotation and a position"):
            Camera.from_label(torch.cat([label, bad]))


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "spherical"])
def test_pose_distribution_statistics(kind: str) -> None:
    poses = PoseDistribution(kind, yaw_mean=0.1, yaw_std=0.3, pitch_mean=-0.05, pitch_std=0.2)
    yaw, pitch = poses.sample(20_000, torch.Generator().manual_seed(0)).yaw_pitch()
    spread = 0.3 if kind == "gaussian" else 0.3 / math.sqrt(3)
    assert float(yaw.mean()) == pytest.approx(0.1, abs=0.01)
    assert float(yaw.std()) == pytest.approx(spread, rel=0.03)
    if kind == "spherical":
        height = pitch.sin()
        low, high = math.sin(-0.25), math.sin(0.15)
        assert float(height.mean()) == pytest.approx((low + high) / 2, abs=0.005), (
            "uniform over the sphere's area"
        )
        assert float(height.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.03)
    else:
        assert float(pitch.std()) == pytest.approx(spread * 0.2 / 0.3, rel=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "spherical"])
def test_pose_distribution_shape(kind: str) -> None:
    """Kolmogorov-Smirnov: yaw and pitch (on the sphere its sine) have their distribution.

    They are uncorrelated.
    """
    count = 20_000
    poses = PoseDistribution(
        kind, yaw_mean=0.1, yaw_std=0.3, pitch_mean=-0.05, pitch_std=0.2, radius=1.5, fov=20.0
    )
    cameras = poses.sample(count, torch.Generator().manual_seed(1))
    assert torch.allclose(cameras.position.norm(dim=-1), torch.tensor(1.5))
    assert torch.equal(cameras.fov, torch.full((count,), 20.0))
    yaw, pitch = cameras.yaw_pitch()
    low, high = math.sin(-0.25), math.sin(0.15)
    tilt = (
        (pitch.sin() - (low + high) / 2) / ((high - low) / 2)
        if kind == "spherical"
        else (pitch + 0.05) / 0.2
    )
    for standard in ((yaw - 0.1) / 0.3, tilt):
        cdf = (
            (torch.special.ndtr(standard) if kind == "gaussian" else (standard + 1) / 2)
            .sort()
            .values
        )
        assert (cdf - (torch.arange(count) + 0.5) / count).abs().max() < 1.95 / math.sqrt(count)
        assert cdf[0] > -1e-4 and cdf[-1] < 1 + 1e-4, "none beyond the half width"
    assert abs(torch.corrcoef(torch.stack([yaw, pitch]))[0, 1]) < 5 / math.sqrt(count)


def test_poses_repeat_with_their_seed() -> None:
    first, same, other = (
        PoseDistribution().sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.cam_to_world, same.cam_to_world)
    assert not torch.equal(first.cam_to_world, other.cam_to_world)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "spherical"])
def test_a_wide_distribution_stays_off_the_poles(kind: str) -> None:
    poses = PoseDistribution(kind, yaw_std=0.0, pitch_std=4.0)
    yaw, pitch = poses.sample(2000, torch.Generator().manual_seed(0)).yaw_pitch()
    assert -math.pi / 2 < pitch.min() < -1.4 and 1.4 < pitch.max() < math.pi / 2
    assert yaw.abs().max() < 1e-3, "none has gone over the pole to the other side"


def test_a_patch_beyond_the_pole_ends_at_the_pole() -> None:
    draws = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    _, pitch = PoseDistribution("spherical", pitch_mean=1.0, pitch_std=1.0).angles(draws)
    assert pitch.tolist() == pytest.approx([0.0, math.pi / 2], abs=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Camera.orbit(float("nan")),
        lambda: Camera.orbit(0.0, float("inf")),
        lambda: Camera.orbit(0.0, math.pi / 2),
        lambda: Camera.orbit(0.3, -math.pi / 2),
        lambda: camera(0.3, math.pi / 2),
        lambda: camera(0.3, -math.pi / 2),
        lambda: Camera.orbit(0.0, fov=0.0),
        lambda: Camera.orbit(0.0, fov=180.0),
        lambda: Camera.orbit(0.0, fov=float("nan")),
        lambda: Camera.orbit(0.0, radius=0.0),
        lambda: Camera.look_at(torch.tensor([[0.0, 2.0, 0.0]])),
        lambda: Camera.look_at(torch.tensor([[0.0, math.nan, 1.0]])),
        lambda: Camera.look_at(torch.ones(1, 3), torch.tensor([[math.nan, 0.0, 0.0]])),
        lambda: Camera.look_at(torch.ones(1, 3), up=torch.zeros(1, 3)),
        lambda: Camera.orbit(0.0).rays(0, 4),
        lambda: Camera.orbit(0.0).rays(4, -1),
        lambda: PoseDistribution(fov=0.0),
        lambda: PoseDistribution(yaw_std=float("nan")),
    ],
)
def test_impossible_cameras_are_one_clear_line(make) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pitch", [90.0, -90.0, 2.0, torch.tensor([0.1, 45.0])])
def test_angles_beyond_the_poles_are_refused(pitch) -> None:
    with pytest.raises(UserError, match=r"beyond the pole; give angles in radians") as error:
        Camera.orbit(0.0, pitch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor])
def test_angles_may_be_scalars_of_any_library(number) -> None:
    found = Camera.orbit(number(0.3), number(0.1), number(1.5), number(20.0))
    expected = Camera.orbit(0.3, 0.1, 1.5, 20.0)
    torch.testing.assert_close(found.cam_to_world, expected.cam_to_world)
    torch.testing.assert_close(found.fov, expected.fov)
