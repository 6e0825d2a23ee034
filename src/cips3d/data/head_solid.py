"""The heads of the ray caster as solids: how deep a point lies inside one, so that a surface can be found without rays."""

from __future__ import annotations

import math
import typing

import numpy as np

from cips3d.data import raycast as rc
from cips3d.kernels import kernel


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
        u2 = ((ox * x + oy * y + oz * z) / length2) ** 2  # of the offset in the ellipsoid's own unit sphere
        square, slope = square + u2, slope + u2 / length2
    if slope < 1e-12:  # the centre
        return math.sqrt(least)
    k = math.sqrt(square)
    return k * (1.0 - k) / math.sqrt(slope)


@typing.no_type_check
@kernel()
def depth_inside(parts, points, out):
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
        cut = part[rc.SLAB_NORMAL] != 0.0 or part[rc.SLAB_NORMAL + 1] != 0.0 or part[rc.SLAB_NORMAL + 2] != 0.0
        carved = part[rc.CARVED] > 0.0
        for k in range(3):
            carve_axes[4 * k] = part[rc.CARVE_RADII + k]
        for n in range(points.shape[0]):
            x, y, z = points[n, 0], points[n, 1], points[n, 2]
            depth = _ellipsoid_depth(x - part[rc.CENTER], y - part[rc.CENTER + 1], z - part[rc.CENTER + 2], axes)
            if depth <= out[n]:
                continue
            depth = min(depth, rc.BOUND - math.sqrt(x * x + y * y + z * z))
            if cut:
                along = x * part[rc.SLAB_NORMAL] + y * part[rc.SLAB_NORMAL + 1] + z * part[rc.SLAB_NORMAL + 2]
                depth = min(depth, along - part[rc.SLAB_LOW], part[rc.SLAB_HIGH] - along)
            if carved:
                c = rc.CARVE_CENTER
                depth = min(depth, -_ellipsoid_depth(x - part[c], y - part[c + 1], z - part[c + 2], carve_axes))
            out[n] = max(out[n], depth)
