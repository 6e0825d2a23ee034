"""The embedded heads as solids, points on surfaces, and the Chamfer distance between surfaces."""

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

#: About how high a head is from chin to crown (world units).
HEAD_HEIGHT = 0.14
#: Cameras that see an embedded head from all around: yaws at each pitch, degrees.
_YAWS, _PITCHES = tuple(range(0, 360, 45)), (-75.0, -35.0, 0.0, 35.0, 75.0)
#: Degrees across their pictures, which hold the ball that heads lie in.
_FOV = 14.0


def chamfer_distance(a: Float[np.ndarray, "a 3"], b: Float[np.ndarray, "b 3"]) -> float:
    """The symmetric Chamfer distance: from a point of either set to the nearest of the other, on average, in their units.

    It is the mean of the two directions' means of distances (not of their squares, nor the sum, as others have it), so that two
    parallel planes have their distance. Both sets should cover their surfaces evenly, and densely against what is measured.

    Raises:
        UserError: if a set is empty.
    """
    if min(len(a), len(b)) == 0:
        raise UserError(
            f"Chamfer distance: sets of {len(a)} and {len(b)} points; both need at least one"
        )
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


def seen_points(view: View) -> Float[np.ndarray, "points 3"]:
    """The surface points (world) that a view's solid pixels show, of all its subjects."""
    return view.points[view.solid.flatten(1)].cpu().double().numpy()


def thinned(points: Float[np.ndarray, "points 3"], spacing: float) -> Float[np.ndarray, "fewer 3"]:
    """One point of each cube of side `spacing` that holds any: several views' points evenly over the surface."""
    _, first = np.unique(np.floor(points / spacing).astype(np.int64), axis=0, return_index=True)
    return points[first]


def head_points(
    heads: SyntheticHeads,
    index: int,
    cameras: Camera | None = None,
    spacing: float = 1e-3,
    side: int = 256,
) -> Float[np.ndarray, "points 3"]:
    """True points on the surface of an embedded head, evenly.

    Args:
        index: the head's number.
        cameras: what they see counts; None for forty all around, which leave out nothing but deep folds.
        spacing: between the points, about, world units.
        side: of the cameras' pictures, pixels; a pixel is about 0.25 / side wide.
    """
    if cameras is None:
        yaw, pitch = torch.meshgrid(
            *(torch.deg2rad(torch.tensor(x)) for x in (_YAWS, _PITCHES)), indexing="ij"
        )
        cameras = Camera.orbit(yaw.flatten(), pitch.flatten(), 1.0, _FOV)
    subjects = Subjects.true(heads.truth(), [index] * len(cameras), side)
    return thinned(seen_points(subjects.from_cameras(cameras)), spacing)


def depth_inside(
    heads: SyntheticHeads, index: int, points: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, " points"]:
    """How deep points (world) lie inside a head: positive inside, negative outside, near its surface the distance to it."""
    draw = Draws(heads.seed, np.array([index], dtype=np.int64))
    depth = np.empty(len(points))
    depth_in_parts(
        head_parts(draw, draw_traits(draw))[0][0],
        np.ascontiguousarray(points, dtype=np.float64),
        depth,
    )
    return depth


@typing.no_type_check
@kernel()
def _ellipsoid_depth(ox, oy, oz, axes):
    """How deep an offset from the centre lies in an ellipsoid: exact to first order at its surface, and for balls anywhere.

    Args:
        axes: (9,) the three semi-axis vectors.
    """
    square, slope = 0.0, 0.0
    least = 1e300
    for i in range(3):
        x, y, z = axes[3 * i], axes[3 * i + 1], axes[3 * i + 2]
        length2 = x * x + y * y + z * z
        least = min(least, length2)
        u2 = (
            (ox * x + oy * y + oz * z) / length2
        ) ** 2  # of the offset in the ellipsoid's own unit sphere
        square, slope = square + u2, slope + u2 / length2
    if slope < 1e-12:  # the centre
        return math.sqrt(least)
    k = math.sqrt(square)
    return k * (1.0 - k) / math.sqrt(slope)


@typing.no_type_check
@kernel()
def depth_in_parts(parts, points, out):
    """Writes into `out` how deep points lie inside a union of parts: positive inside, negative outside, world units.

    The surface is exactly that of `raycast.cast`. Near it the number is the distance to it but for edges, and elsewhere it has
    the right sign.

    Args:
        parts: (parts, PART_COLUMNS) float64.
        points: (N, 3) float64.
        out: (N,) float64.
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
