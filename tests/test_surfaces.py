"""The Chamfer distance, points on surfaces, and the embedded heads as solids."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads, raycast
from cips3d.metrics.views import Subjects

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from solid import (
    HEAD_HEIGHT,
    chamfer_distance,
    depth_in_parts,
    depth_inside,
    head_points,
    seen_points,
    thinned,
)

HEADS = SyntheticHeads(resolution=32, supersampling=1)


def plane(z: float, side: int = 40) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    return np.stack([x.ravel(), y.ravel(), np.full(side * side, z)], axis=1)


# ---------------------------------------------------------------- Chamfer distance
def test_the_distance_of_parallel_planes() -> None:
    assert chamfer_distance(plane(0), plane(0)) == 0
    assert chamfer_distance(plane(0), plane(0.01)) == pytest.approx(0.01)
    assert chamfer_distance(3 * plane(0), 3 * plane(0.01)) == pytest.approx(0.03)


def test_both_directions_count() -> None:
    a, b = np.zeros((1, 3)), np.array([[0.0, 0, 0], [0, 0, 4.0]])
    assert chamfer_distance(a, b) == chamfer_distance(b, a) == (0 + 2) / 2


def test_it_does_not_depend_on_order_or_pose() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(50, 3)), random.normal(size=(70, 3))
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    expected = chamfer_distance(a, b)
    assert chamfer_distance(a[::-1], random.permutation(b)) == pytest.approx(expected)
    assert chamfer_distance(a @ turn + 1, b @ turn + 1) == pytest.approx(expected)


def test_no_points() -> None:
    with pytest.raises(UserError, match="the sets have 0 and 1600 points"):
        chamfer_distance(np.zeros((0, 3)), plane(0))


# ---------------------------------------------------------------- points
def test_thinned_points_are_even() -> None:
    random = np.random.default_rng(0)
    crowded = np.concatenate([plane(0, 200), random.uniform(0, 0.1, (20_000, 3)) * [1, 1, 0]])
    few = thinned(crowded, 0.05)
    assert len(few) in (400, 441)
    assert {tuple(point) for point in few} <= {tuple(point) for point in crowded}


def test_points_of_views_and_all_over_a_head_lie_on_it() -> None:
    view = Subjects.true(HEADS.truth(), [3], 32).from_angles(0.4, 0.1)
    points = seen_points(view)
    assert len(points) == int(view.solid.sum())
    assert np.abs(depth_inside(HEADS, 3, points)).max() < 1e-5
    assert np.abs(depth_inside(HEADS, 4, points)).max() > 0.005
    around = head_points(HEADS, 3, spacing=4e-3, side=64)
    assert np.abs(depth_inside(HEADS, 3, around)).max() < 1e-5
    assert around[:, 2].min() < -0.05 and around[:, 2].max() > 0.04  # its back and its front
    front = head_points(HEADS, 3, Camera.orbit(0.0, fov=14.0), spacing=4e-3, side=64)
    assert len(front) < 0.7 * len(around)


# ---------------------------------------------------------------- solids
def test_rays_meet_the_solid_from_outside() -> None:
    cameras = Camera.orbit(
        torch.tensor([-1.0, 0.0, 0.5, 2.5]), torch.tensor([0.0, 0.3, -0.6, 0.2]), fov=14.0
    )
    for index in range(5):
        batch = HEADS.render([index] * 4, cameras)
        rays = cameras.rays(32, 32)
        for offset, sign in ((-1e-5, -1), (1e-5, 1)):
            t = batch.depth.flatten(1)[..., None].double() + offset
            points = (rays.origins + t * rays.directions)[batch.mask.flatten(1)].numpy()
            depth = depth_inside(HEADS, index, points)
            assert (np.sign(depth) == sign).mean() > 0.99
            assert np.abs(depth).max() <= 1.5e-5
        empty = rays.at(torch.linspace(0.88, 1.12, 20).expand(4, 32 * 32, 20))[
            ~batch.mask.flatten(1)
        ]
        assert (depth_inside(HEADS, index, empty.flatten(0, 1).double().numpy()) < 1e-6).all()


def test_depth_is_the_distance_to_a_ball() -> None:
    part = np.zeros((1, raycast.PART_COLUMNS))
    part[0, raycast.CENTER : raycast.CENTER + 3] = 0.01, 0.0, -0.02
    part[0, raycast.AXES : raycast.AXES + 9] = (
        0.03 * np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].ravel()
    )
    part[0, raycast.PRESENT] = 1
    points = np.random.default_rng(1).uniform(-0.06, 0.06, (200, 3))
    points[0] = part[0, raycast.CENTER : raycast.CENTER + 3]
    found = np.empty(len(points))
    depth_in_parts(part, points, found)
    assert found == pytest.approx(0.03 - np.linalg.norm(points - points[0], axis=1), abs=1e-9)
    part[0, raycast.PRESENT] = 0
    depth_in_parts(part, points, found)
    assert (found == -np.inf).all()


def test_a_head_has_the_documented_height() -> None:
    for index in range(4):
        y = np.linspace(-0.09, 0.1, 400)
        inside = depth_inside(HEADS, index, np.stack([0 * y, y, 0 * y - 0.009], axis=1)) > 0
        crown = y[inside].max()  # hats and hair are on it
        assert 0.06 < crown < 0.12
        assert 0.8 < (crown + 0.065) / HEAD_HEIGHT < 1.3  # the chin is at about -0.065
