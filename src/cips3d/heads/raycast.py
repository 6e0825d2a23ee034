"""Closed-form ray casting of ellipsoids: each is drawn into its bounding box, with a depth buffer.

A part is an ellipsoid, optionally cut by a slab (low ≤ n·p ≤ high) and with a second ellipsoid
carved out. A ball of radius `BOUND` around the origin clips all parts. One image is one call of a
compiled function without shared state: threads and forked workers may render in parallel.
"""

from __future__ import annotations

import math
import typing

import numpy as np

from cips3d.models.ops.kernels import kernel

#: Radius of the ball around the origin that contains everything, world units.
BOUND = 0.118

# Columns of a part (lengths in world units).
CENTER, AXES = 0, 3  # 3 numbers; 3 perpendicular semi-axis vectors
SLAB_NORMAL, SLAB_LOW, SLAB_HIGH = 12, 15, 16
CARVED, CARVE_CENTER, CARVE_RADII = 17, 18, 21  # CARVED: 1 with an axis-aligned carving ellipsoid
COLOR, COLOR2, DETAIL = 24, 27, 30  # DETAIL: 2 numbers, see the materials
# SOFT: normals blend between parts of the same number, which hides joints; 0 for none
MATERIAL, LABEL, PRESENT, SOFT = 32, 33, 34, 35
PART_COLUMNS = 36

# Materials. SKIN takes tints. STRANDS: COLOR2 in streaks around the vertical, DETAIL = (streaks per
# radian, strength). STRIPES: COLOR2 in level stripes, DETAIL = (stripes per world unit, unused).
# EYE: COLOR2 is the iris, DETAIL = (sideways, upward) gaze.
MATTE, SKIN, STRANDS, STRIPES, EYE, GLOSSY = range(6)

#: Names of the numbers in a label map.
LABELS = ("background", "skin", "hair", "eye", "brow", "mouth", "beard", "glasses", "hat", "cloth")
BACKGROUND_LABEL, SKIN_LABEL, HAIR_LABEL, EYE_LABEL, BROW_LABEL = range(5)
MOUTH_LABEL, BEARD_LABEL, GLASSES_LABEL, HAT_LABEL, CLOTH_LABEL = range(5, len(LABELS))

ON_ELLIPSOID, ON_SLAB, ON_CARVE, ON_BALL = range(4)


@typing.no_type_check
@kernel()
def _sides(center, axes, position, forward, across):
    """Extent of an ellipsoid along one image axis, as the slopes of its two tangents."""
    depth, offset, a, b, c = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(3):
        depth += (center[k] - position[k]) * forward[k]
        offset += (center[k] - position[k]) * across[k]
    for i in range(3):
        x, y, z = axes[3 * i], axes[3 * i + 1], axes[3 * i + 2]
        along = x * forward[0] + y * forward[1] + z * forward[2]
        aside = x * across[0] + y * across[1] + z * across[2]
        a, b, c = a + along * along, b + along * aside, c + aside * aside
    a, b, c = depth * depth - a, depth * offset - b, offset * offset - c
    if a <= 0.0:  # it reaches the camera's own plane, so it may be anywhere in the image
        return -1e9, 1e9
    if depth <= 0.0:  # behind the camera
        return 1.0, -1.0
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


@typing.no_type_check
@kernel()
def _quadric(out, rows, center, position, right, up, forward):
    """Coefficients for the intersection of an ellipsoid with any ray.

    `rows` maps offsets from the centre to the unit sphere. Maps right, up, forward and the camera's
    offset to x, y, f, o, and writes the inner products xx, xy, xf, yy, yf, ff, xo, yo, fo, oo − 1
    into `out`.
    """
    out[:] = 0.0
    out[9] = -1.0
    for i in range(3):
        x, y, f, o = 0.0, 0.0, 0.0, 0.0
        for k in range(3):
            x, y = x + rows[i, k] * right[k], y + rows[i, k] * up[k]
            f, o = f + rows[i, k] * forward[k], o + rows[i, k] * (position[k] - center[k])
        out[0], out[1], out[2] = out[0] + x * x, out[1] + x * y, out[2] + x * f
        out[3], out[4], out[5] = out[3] + y * y, out[4] + y * f, out[5] + f * f
        out[6], out[7], out[8] = out[6] + x * o, out[7] + y * o, out[8] + f * o
        out[9] += o * o


@typing.no_type_check
@kernel()
def _interval(quadric, gx, gy):
    """Depths at which the ray (gx, gy) enters and leaves an ellipsoid; (1, -1) if it misses."""
    a = (
        gx * (gx * quadric[0] + 2.0 * (gy * quadric[1] + quadric[2]))
        + gy * (gy * quadric[3] + 2.0 * quadric[4])
        + quadric[5]
    )
    b = gx * quadric[6] + gy * quadric[7] + quadric[8]
    root = b * b - a * quadric[9]
    if root <= 0.0:
        return 1.0, -1.0
    root = math.sqrt(root)
    return (-b - root) / a, (-b + root) / a


@typing.no_type_check
@kernel()
def _cast_part(parts, index, position, right, up, forward, depth, owner, face, quadrics, rows):
    """Draws one part into the depth buffer, its number into `owner` and the side hit into `face`.

    Depths are along unnormalised rays gx·right + gy·up + forward, with gy = ±1 at the upper and
    lower edge of the image. `quadrics` (3, 10) and `rows` (3, 3) are scratch memory.
    """
    part = parts[index]
    height, width = depth.shape
    center, axes = part[CENTER : CENTER + 3], part[AXES : AXES + 9]
    left, end = _sides(center, axes, position, forward, right)
    bottom, top = _sides(center, axes, position, forward, up)
    # slopes are per unit of `forward`; pixel j has gx = (2j + 1 - width) / height
    scale = height * (forward[0] * forward[0] + forward[1] * forward[1] + forward[2] * forward[2])
    j0 = int(min(max(math.floor((left * scale + width - 1) / 2), 0.0), float(width)))
    j1 = int(min(max(math.ceil((end * scale + width - 1) / 2) + 1, 0.0), float(width)))
    i0 = int(min(max(math.floor((height - 1 - top * scale) / 2), 0.0), float(height)))
    i1 = int(min(max(math.ceil((height - 1 - bottom * scale) / 2) + 1, 0.0), float(height)))
    if j0 >= j1 or i0 >= i1:
        return

    own, carve, ball = quadrics[0], quadrics[1], quadrics[2]
    reach = 0.0
    for i in range(3):
        length2 = axes[3 * i] ** 2 + axes[3 * i + 1] ** 2 + axes[3 * i + 2] ** 2
        reach = max(reach, length2)
        for k in range(3):
            rows[i, k] = axes[3 * i + k] / length2
    _quadric(own, rows, center, position, right, up, forward)
    distance = math.sqrt(center[0] ** 2 + center[1] ** 2 + center[2] ** 2)
    leaves_ball = distance + math.sqrt(reach) > BOUND
    if leaves_ball:
        for i in range(3):
            for k in range(3):
                rows[i, k] = 1.0 / BOUND if i == k else 0.0
        _quadric(ball, rows, np.zeros(3), position, right, up, forward)
    carved = part[CARVED] > 0.0
    if carved:
        for i in range(3):
            for k in range(3):
                rows[i, k] = 1.0 / part[CARVE_RADII + k] if i == k else 0.0
        _quadric(carve, rows, part[CARVE_CENTER : CARVE_CENTER + 3], position, right, up, forward)
    normal = part[SLAB_NORMAL : SLAB_NORMAL + 3]
    n0, n1, n2, n3 = 0.0, 0.0, 0.0, 0.0
    for k in range(3):
        n0, n1 = n0 + normal[k] * position[k], n1 + normal[k] * right[k]
        n2, n3 = n2 + normal[k] * up[k], n3 + normal[k] * forward[k]
    cut = normal[0] != 0.0 or normal[1] != 0.0 or normal[2] != 0.0
    low, high = part[SLAB_LOW] - n0, part[SLAB_HIGH] - n0
    a2, b1, c = own[0], own[6], own[9]

    for i in range(i0, i1):
        gy = -(2 * i + 1 - height) / height
        a0, a1 = gy * (gy * own[3] + 2.0 * own[4]) + own[5], 2.0 * (gy * own[1] + own[2])
        b0 = gy * own[7] + own[8]
        for j in range(j0, j1):
            gx = (2 * j + 1 - width) / height
            a, b = (gx * a2 + a1) * gx + a0, gx * b1 + b0
            root = b * b - a * c
            if root <= 0.0:
                continue
            root = math.sqrt(root)
            enter = (-b - root) / a
            if enter >= depth[i, j]:
                continue
            leave, side = (-b + root) / a, ON_ELLIPSOID
            if leaves_ball:
                first, second = _interval(ball, gx, gy)
                if first > enter:
                    enter, side = first, ON_BALL
                leave = min(leave, second)
            if cut:
                slope = gx * n1 + gy * n2 + n3
                if slope == 0.0:
                    slope = 1e-300
                first, second = low / slope, high / slope
                if first > second:
                    first, second = second, first
                if first > enter:
                    enter, side = first, ON_SLAB
                leave = min(leave, second)
            if carved:
                first, second = _interval(carve, gx, gy)
                if first <= enter < second:
                    enter, side = second, ON_CARVE
            if enter < leave and 0.0 < enter < depth[i, j]:
                depth[i, j] = enter
                owner[i, j] = index
                face[i, j] = side


@typing.no_type_check
@kernel()
def ray_frame(pose, fov):
    """Position, right, up and forward of a camera.

    A ray is position + t·(gx·right + gy·up + forward), with gy = ±1 at the image's edges.
    """
    frame = np.empty((4, 3))
    focal = 1.0 / math.tan(math.radians(fov) / 2)
    for k in range(3):
        frame[0, k], frame[1, k] = pose[k, 3], pose[k, 0]
        frame[2, k], frame[3, k] = pose[k, 1], -pose[k, 2] * focal
    return frame[0], frame[1], frame[2], frame[3]


@typing.no_type_check
@kernel()
def cast(parts, pose, fov, height, width):
    """Casts a ray through every pixel.

    Rays are those of `Camera.rays(height, width)`, scaled to end on the plane at distance
    1 / tan(fov / 2).

    Args:
        parts: (parts, PART_COLUMNS) float64.
        pose: (4, 4) float64 camera-to-world transform in OpenGL's axes.
        fov: full field of view over the height, degrees.

    Returns:
        Depth along these rays (inf: nothing), number of the part hit (-1: none) and its side,
        (height, width) each.
    """
    depth = np.full((height, width), np.inf)
    owner = np.full((height, width), -1, dtype=np.int16)
    face = np.zeros((height, width), dtype=np.uint8)
    position, right, up, forward = ray_frame(pose, fov)
    quadrics, rows = np.empty((3, 10)), np.empty((3, 3))
    for index in range(parts.shape[0]):
        if parts[index, PRESENT] > 0.0:
            _cast_part(
                parts, index, position, right, up, forward, depth, owner, face, quadrics, rows
            )
    return depth, owner, face
