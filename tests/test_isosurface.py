"""Closed surfaces of analytic densities: place, parts, sampled volume and level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

import cips3d
import tiny
from cips3d.camera import PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.export import isosurface
from cips3d.export.isosurface import (
    Density,
    SampledVolume,
    outward_parts,
    sample_spacing,
    surface,
    surface_level,
    typical_cameras,
)
from cips3d.models.config import Cips3dNetworks, GeneratorConfig

CONFIG = GeneratorConfig(Cips3dNetworks(background="plain"))
VOLUME = SampledVolume.from_config(CONFIG)
SPACING = sample_spacing(CONFIG)
RADIUS = 0.06
CENTRE = (0.004, -0.007, 0.003)


def along(function: Callable[[Tensor], Tensor]) -> Density:
    """A density from a function of points (…, 3)."""

    def density(rays: Rays, t: Tensor) -> Tensor:
        return function(rays.at(t))

    return density


def depth_in_ball(
    points: Tensor, centre: tuple[float, ...] = CENTRE, radius: float = RADIUS
) -> Tensor:
    return radius - (points - torch.tensor(centre)).norm(dim=-1)


def ball(slope: float = 1e4, level: float = 10.0, **where) -> Density:
    """Reaches the level at the ball's surface."""
    return along(lambda points: level + slope * depth_in_ball(points, **where))


def radii(mesh: trimesh.Trimesh) -> np.ndarray:
    return np.linalg.norm(mesh.vertices - CENTRE, axis=1)


def voxel(resolution: int, volume: SampledVolume = VOLUME) -> float:
    low, high = volume.bounds()
    return float((high - low).max()) / (resolution - 1)


# ---------------------------------------------------------------- the surface
@pytest.mark.parametrize("seed", range(4))
def test_the_surface_is_that_of_all_densities(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = cips3d.load("heads")
    volume = SampledVolume.from_config(generator.config)
    styles = generator.map(generator.sample_latents(1, seed), 1.0)
    counts: list[int] = []

    def density(rays: Rays, t: Tensor) -> Tensor:
        counts.append(t.numel())
        return generator.density_along(rays, t, styles)

    some = surface(density, volume, 40.0, 160)
    evaluated, counts = sum(counts), []
    monkeypatch.setattr(isosurface, "_BLOCKS", 10**6)
    every = surface(density, volume, 40.0, 160)
    assert evaluated < 0.45 * sum(counts)
    assert np.array_equal(some.faces, every.faces)
    assert np.allclose(some.vertices, every.vertices, atol=1e-6)


def test_a_ball_is_a_closed_ball_with_its_faces_outward() -> None:
    mesh = surface(ball(), VOLUME, 10.0, 48)
    assert np.abs(radii(mesh) - RADIUS).max() < 0.02 * voxel(48)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)
    outward = (mesh.vertices - CENTRE) / radii(mesh)[:, None]
    assert (mesh.vertex_normals * outward).sum(axis=1).min() > 0.998


def test_the_surface_converges_with_the_square_of_the_voxel() -> None:
    curved = along(lambda points: 60 * (1 - (points / RADIUS).square().sum(dim=-1)))
    errors = []
    for resolution in (24, 48, 96):
        mesh = surface(curved, VOLUME, 20.0, resolution)
        errors.append(
            np.abs(np.linalg.norm(mesh.vertices, axis=1) - RADIUS * math.sqrt(2 / 3)).mean()
        )
    assert errors[0] > 3 * errors[1] and errors[1] > 3 * errors[2]


@pytest.mark.parametrize("chunk", [1, 777])
def test_chunks_change_nothing(chunk: int) -> None:
    """The density has single products and sums only.

    CPUs with AVX-512 round a norm differently at the end of a tensor.
    """

    def round_hill(points: Tensor) -> Tensor:
        x, y, z = (points - torch.tensor(CENTRE).to(points)).unbind(-1)
        return 10.0 + 1e3 * (0.05**2 - x * x - y * y - z * z)

    whole, parts = (surface(along(round_hill), VOLUME, 10.0, 20, chunk=c) for c in (2**18, chunk))
    assert len(whole.faces) > 300
    assert np.array_equal(whole.vertices, parts.vertices) and np.array_equal(
        whole.faces, parts.faces
    )


def test_a_surface_through_grid_points_stays_closed_when_equal_points_are_merged() -> None:
    step = voxel(16)
    low, _ = VOLUME.bounds()
    inside = low + step * torch.tensor([4, 5, 4]), low + step * torch.tensor([10, 9, 9])
    box = along(
        lambda p: torch.minimum(p - inside[0], inside[1] - p).amin(dim=-1).mul(1e6).round() + 10
    )
    mesh = surface(box, VOLUME, 10.0, 16)
    merged = trimesh.Trimesh(mesh.vertices.astype(np.float32), mesh.faces, process=True)
    assert mesh.is_watertight and merged.is_watertight
    assert len(merged.faces) == len(mesh.faces) and mesh.area_faces.min() > 0


# ---------------------------------------------------------------- parts
def two_balls(points: Tensor) -> Tensor:
    small, large = ((0.06, 0.0, 0.0), 0.02), ((-0.03, 0.0, 0.0), 0.04)
    return 10 + 1e4 * torch.maximum(depth_in_ball(points, *small), depth_in_ball(points, *large))


def test_the_largest_part_is_kept() -> None:
    mesh = surface(along(two_balls), VOLUME, 10.0, 48)
    assert mesh.body_count == 2
    both, one = outward_parts(mesh.copy(), largest=False), outward_parts(mesh.copy())
    assert both.body_count == 2 and len(both.faces) == len(mesh.faces)
    assert one.is_watertight and one.body_count == 1 and len(one.vertices) < len(mesh.vertices)
    assert one.bounds[1, 0] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("largest", [True, False])
def test_a_hollow_inside_has_no_walls(largest: bool) -> None:
    shell = along(
        lambda points: (
            10 + 1e4 * torch.minimum(depth_in_ball(points), -depth_in_ball(points, radius=0.03))
        )
    )
    mesh = surface(shell, VOLUME, 10.0, 48)
    assert mesh.body_count == 2
    solid = outward_parts(mesh, largest)
    assert solid.body_count == 1 and solid.volume == pytest.approx(
        4 / 3 * math.pi * RADIUS**3, rel=0.01
    )


# ---------------------------------------------------------------- the volume
def test_one_camera_samples_its_frustum() -> None:
    volume = SampledVolume.from_config(
        replace(CONFIG, poses=PoseDistribution(yaw_std=0.0, pitch_std=0.0))
    )
    edge = math.tan(math.radians(6))
    inside = [
        [0, 0, 0],
        [0, 0, 0.11],
        [0, 0, -0.11],
        [0.99 * edge, 0, 0],
        [0, -0.99 * edge, 0],
        [0.9 * edge, 0, 0.05],
    ]
    outside = [
        [0, 0, 0.121],
        [0, 0, -0.121],
        [1.01 * edge, 0, 0],
        [0, -1.01 * edge, 0],
        [0.99 * edge, 0, 0.05],
    ]
    behind_the_camera = [0, 0, 2.0]
    assert (volume.signed_distance(torch.tensor(inside)) > 0).all()
    assert (volume.signed_distance(torch.tensor([*outside, behind_the_camera])) < 0).all()
    cosine = math.cos(math.radians(6))
    distance = volume.signed_distance(torch.tensor([[0.0, 0, 0], [0.09, 0, 0], [0, 0, 0.11]]))
    assert distance.tolist() == pytest.approx(
        [edge * cosine, (edge - 0.09) * cosine, 0.01], abs=1e-5
    )


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "spherical"])
def test_most_cameras_sample_what_is_inside(kind: str) -> None:
    poses = PoseDistribution(kind=kind)
    volume = SampledVolume.from_config(replace(CONFIG, poses=poses))
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 0.32 - 0.16
    cameras = typical_cameras(poses)
    place, distance = cameras.project(points.expand(len(cameras), -1, -1))
    sampled = (place.abs() <= 1).all(dim=-1) & (distance >= 0.88)
    inside = (sampled.float().mean(dim=0) > 0.5) & (distance <= 1.12).all(dim=0)
    assert 0.1 < inside.float().mean() < 0.9
    assert torch.equal(volume.signed_distance(points) > 0, inside)


def test_typical_cameras_are_where_the_prior_draws_them() -> None:
    for kind in ("gaussian", "uniform", "spherical"):
        poses = PoseDistribution(kind=kind, yaw_mean=0.2)
        yaw, pitch = typical_cameras(poses).yaw_pitch()
        drawn_yaw, drawn_pitch = poses.sample(4000, torch.Generator().manual_seed(0)).yaw_pitch()
        assert float((drawn_yaw < yaw.max()).float().mean()) == pytest.approx(0.977, abs=0.01)
        assert float((drawn_pitch < pitch.min()).float().mean()) == pytest.approx(0.159, abs=0.02)
        assert float(yaw.mean()) == pytest.approx(0.2, abs=1e-3)


def test_a_fog_everywhere_is_cut_smoothly_where_the_volume_ends() -> None:
    mesh = surface(along(lambda points: torch.full_like(points[..., 0], 50.0)), VOLUME, 10.0, 32)
    assert mesh.is_watertight and mesh.volume > 0
    distance = VOLUME.signed_distance(torch.from_numpy(mesh.vertices).float()).abs()
    assert float(distance.median()) < 0.01 * voxel(32) and float(distance.max()) < 0.7 * voxel(32)


def wall_behind(points: Tensor) -> Tensor:
    """A head on a stalk before a wall that fills all behind z = -0.1."""
    stalk = 0.02 - points[..., :2].norm(dim=-1)
    stalk = torch.minimum(stalk, -points[..., 2])
    return 10 + 1e4 * torch.maximum(
        torch.maximum(depth_in_ball(points), stalk), -0.1 - points[..., 2]
    )


@pytest.mark.parametrize(
    ("background", "has_wall"),
    [("endless", False), ("last", False), ("white", True), ("plain", True)],
)
def test_what_the_last_sample_paints_is_not_part_of_the_subject(
    background: str, has_wall: bool
) -> None:
    volume = SampledVolume.from_config(tiny.generator(CONFIG, background=background))
    mesh = outward_parts(surface(along(wall_behind), volume, 10.0, 48))
    assert mesh.is_watertight
    behind = mesh.vertices[mesh.vertices[:, 2] < -0.09]
    assert (np.abs(behind[:, :2]).max() > 0.04) == has_wall


# ---------------------------------------------------------------- the level
def test_the_level_of_a_soft_body_is_where_half_of_the_light_ends() -> None:
    slope = 5000.0
    level = surface_level(along(lambda points: slope * depth_in_ball(points)), VOLUME, SPACING)
    # a ray at an angle a to the normal loses half of its light where the density is
    # √(2 slope cos a ln 2); over the ball's disc in an image, the mean of √(cos a) is 0.8
    assert 0.65 < level / math.sqrt(2 * slope * math.log(2)) < 0.85


@pytest.mark.parametrize("density", [30.0, 1e3, 1e6])
def test_the_level_of_a_uniform_body_is_well_below_its_density(density: float) -> None:
    noisy = along(
        lambda points: (
            density * (1 + 0.02 * torch.sin(4e3 * points[..., 0])) * (depth_in_ball(points) > 0)
        )
    )
    level = surface_level(noisy, VOLUME, SPACING)
    assert 0.01 * density < level < 0.95 * density
    mesh = surface(noisy, VOLUME, level, 32)
    assert mesh.body_count == 1 and mesh.euler_number == 2


def test_a_sheet_thinner_than_the_samples_has_a_level() -> None:
    sheet = along(lambda points: 1e5 * (points[..., 2].abs() < 0.0012))
    assert 0 < surface_level(sheet, VOLUME, SPACING) < 1e5


def test_the_level_does_not_depend_on_what_no_ray_reaches() -> None:
    def with_core(density: float) -> Density:
        return along(
            lambda points: (5000 * depth_in_ball(points)).where(
                depth_in_ball(points) < 0.05, density
            )
        )

    levels = [surface_level(with_core(density), VOLUME, SPACING) for density in (250.0, 1e5)]
    assert levels[0] == pytest.approx(levels[1], rel=0.01)


@pytest.mark.parametrize("density", [0.0, -3.0, 1.0])
def test_where_nothing_stops_light_there_is_no_surface(density: float) -> None:
    with pytest.raises(UserError, match=r"absorbs half .* give a level"):
        surface_level(
            along(lambda points: torch.full_like(points[..., 0], density)), VOLUME, SPACING
        )


def test_a_level_above_everything() -> None:
    with pytest.raises(UserError, match=r"denser than the level, 1e\+04; give a lower one"):
        surface(ball(), VOLUME, 1e4, 16)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_densities_that_are_not_finite(bad: float) -> None:
    spoilt = along(lambda points: torch.where(points[..., 0] > 0.05, bad, 100.0))
    for use in (
        lambda: surface_level(spoilt, VOLUME, SPACING),
        lambda: surface(spoilt, VOLUME, 10.0, 16),
    ):
        with pytest.raises(UserError, match="NaN or infinite"):
            use()


def test_cameras_that_see_nothing_in_common() -> None:
    apart = tiny.generator(CONFIG, poses=PoseDistribution(fov=1.0, yaw_std=0.5), extent=1e-3)
    low, high = SampledVolume.from_config(apart).bounds()
    assert all(a < 0 < b for a, b in zip(low, high, strict=True))  # still the origin
    far = SampledVolume(typical_cameras(PoseDistribution()), 1.3, 1.2)
    with pytest.raises(UserError, match="no volume in common"):
        far.bounds()
