"""Embedded heads as solids, points on surfaces, and the Chamfer distance between surfaces."""

from __future__ import annotations

import math
import typing

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.heads import raycast as rc
from cips3d.heads.shapes import head_parts
from cips3d.heads.traits import Draws, draw_traits
from cips3d.metrics.views import Subjects, View
from cips3d.models.ops.kernels import kernel

#: Approximate height of a head from chin to crown, world units.
HEAD_HEIGHT = 0.14
#: Cameras all around an embedded head: yaws at each pitch, degrees.
_YAWS, _PITCHES = tuple(range(0, 360, 45)), (-75.0, -35.0, 0.0, 35.0, 75.0)
#: Field of view that holds the ball around every head, degrees.
_FOV = 14.0


def chamfer_distance(a: Float[np.ndarray, "a 3"], b: Float[np.ndarray, "b 3"]) -> float:
    """The symmetric Chamfer distance: average distance to the nearest point of the other set.

    Averages the two directions' mean distances (others use squares or a sum), so two parallel
    planes have their distance. Both sets should cover their surfaces evenly, and densely compared
    with the distance.

    Raises:
        UserError: if a set is empty.
    """
    if min(len(a), len(b)) == 0:
        raise UserError(
            f"Chamfer distance: the sets have {len(a)} and {len(b)} points; both need at least one"
        )
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


def seen_points(view: View) -> Float[np.ndarray, "points 3"]:
    """Surface points (world) at the solid pixels of a view, of all its subjects."""
    return view.points[view.solid.flatten(1)].cpu().double().numpy()


def thinned(points: Float[np.ndarray, "points 3"], spacing: float) -> Float[np.ndarray, "fewer 3"]:
    """One point per cube of side `spacing`, which evens out the points of several views."""
    _, first = np.unique(np.floor(points / spacing).astype(np.int64), axis=0, return_index=True)
    return points[first]


def head_points(
    heads: SyntheticHeads,
    index: int,
    cameras: Camera | None = None,
    spacing: float = 1e-3,
    side: int = 256,
) -> Float[np.ndarray, "points 3"]:
    """Evenly spread points on the true surface of an embedded head.

    Args:
        index: the head's index in the dataset.
        cameras: the points that they see; None for forty all around, which miss only deep folds.
        spacing: approximate distance between points, world units.
        side: side of the cameras' images, pixels; a pixel is about 0.25 / side wide.
    """
    if cameras is None:
        angles = (torch.deg2rad(torch.tensor(x)) for x in (_YAWS, _PITCHES))
        yaw, pitch = torch.meshgrid(*angles, indexing="ij")
        cameras = Camera.orbit(yaw.flatten(), pitch.flatten(), 1.0, _FOV)
    subjects = Subjects.true(heads.truth(), [index] * len(cameras), side)
    return thinned(seen_points(subjects.from_cameras(cameras)), spacing)


def depth_inside(
    heads: SyntheticHeads, index: int, points: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, " points"]:
    """Signed depth of points (world) in a head: positive inside; a distance near the surface."""
    draw = Draws(heads.seed, np.array([index], dtype=np.int64))
    parts = head_parts(draw, draw_traits(draw))[0][0]
    depth = np.empty(len(points))
    depth_in_parts(parts, np.ascontiguousarray(points, dtype=np.float64), depth)
    return depth


@typing.no_type_check
@kernel()
def _ellipsoid_depth(ox, oy, oz, axes):
    """Signed depth of an offset from an ellipsoid's centre.

    Exact to first order at the surface, and everywhere for balls.

    Args:
        axes: (9,), the three semi-axis vectors.
    """
    square, slope = 0.0, 0.0
    least = 1e300
    for i in range(3):
        x, y, z = axes[3 * i], axes[3 * i + 1], axes[3 * i + 2]
        length2 = x * x + y * y + z * z
        least = min(least, length2)
        u2 = ((ox * x + oy * y + oz * z) / length2) ** 2  # in the ellipsoid's own unit sphere
        square, slope = square + u2, slope + u2 / length2
    if slope < 1e-12:  # the centre
        return math.sqrt(least)
    k = math.sqrt(square)
    return k * (1.0 - k) / math.sqrt(slope)


@typing.no_type_check
@kernel()
def depth_in_parts(parts, points, out):
    """Writes the signed depth of points inside a union of parts into `out`; positive inside.

    The surface is exactly that of `raycast.cast`. Near it the depth is a distance, except at edges;
    elsewhere the sign is right.

    Args:
        parts: (parts, PART_COLUMNS) float64.
        points: (N, 3) float64, world.
        out: (N,) float64, world units.
    """
    carve_axes = np.zeros(9)
    out[:] = -np.inf
    for index in range(parts.shape[0]):
        part = parts[index]
        if part[rc.PRESENT] <= 0.0:
            continue
        axes = part[rc.AXES : rc.AXES + 9]
        cut = (
            part[rc.SLAB_NORMAL] != 0.0
            or part[rc.SLAB_NORMAL + 1] != 0.0
            or part[rc.SLAB_NORMAL + 2] != 0.0
        )
        carved = part[rc.CARVED] > 0.0
        for k in range(3):
            carve_axes[4 * k] = part[rc.CARVE_RADII + k]
        for n in range(points.shape[0]):
            x, y, z = points[n, 0], points[n, 1], points[n, 2]
            depth = _ellipsoid_depth(
                x - part[rc.CENTER], y - part[rc.CENTER + 1], z - part[rc.CENTER + 2], axes
            )
            if depth <= out[n]:
                continue
            depth = min(depth, rc.BOUND - math.sqrt(x * x + y * y + z * z))
            if cut:
                along = (
                    x * part[rc.SLAB_NORMAL]
                    + y * part[rc.SLAB_NORMAL + 1]
                    + z * part[rc.SLAB_NORMAL + 2]
                )
                depth = min(depth, along - part[rc.SLAB_LOW], part[rc.SLAB_HIGH] - along)
            if carved:
                c = rc.CARVE_CENTER
                depth = min(
                    depth,
                    -_ellipsoid_depth(x - part[c], y - part[c + 1], z - part[c + 2], carve_axes),
                )
            out[n] = max(out[n], depth)
