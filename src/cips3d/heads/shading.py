"""Colours of ray-cast parts: natural shading, or a flat cartoon with ink lines.

Light and gloss depend on the surface's point and normal, never on the camera, so that a head has
the same colours from all sides.
"""

from __future__ import annotations

import math
import typing

import numpy as np

from cips3d.heads import raycast as rc
from cips3d.models.ops.kernels import kernel

#: Columns of a tint, a soft spot of colour on skin: centre (3), 1 / squared radius, colour (3) and
#: strength.
TINT_COLUMNS = 8
#: Unit direction towards the light: upper left, in front of the face; fixed in the world.
LIGHT = (-0.4122, 0.5496, 0.7268)
# halfway between the light and +z, where a frontal viewer sees the gloss
_GLOSS = (-0.2218, 0.2957, 0.9292)
_SOFT_JOINT = 0.008  # distance over which the normals of soft parts blend, world units
#: Group of each label. Ink lines separate groups; features of the face belong to the face.
_INK_GROUP = np.array([0, 1, 2, 1, 1, 1, 3, 1, 4, 5])
_INK_WIDTH = 0.0020  # world units
_INK_JUMP = 0.011  # smallest step in depth that gets a line, world units
_INK = 0.09  # grey of the lines


@typing.no_type_check
@kernel()
def _forms(parts):
    """Quadratic forms of the ellipsoids, and the numbers of the soft parts.

    F of |q|² = (p - c)ᵀ F (p - c), as (xx, yy, zz, xy, xz, yz). F (p - c) points outward.
    """
    forms = np.zeros((parts.shape[0], 6))
    for index in range(parts.shape[0]):
        if parts[index, rc.PRESENT] > 0.0:
            for i in range(rc.AXES, rc.AXES + 9, 3):
                x, y, z = parts[index, i], parts[index, i + 1], parts[index, i + 2]
                weight = 1.0 / (x * x + y * y + z * z) ** 2
                pairs = (x, x), (y, y), (z, z), (x, y), (x, z), (y, z)
                for k in range(6):
                    forms[index, k] += weight * pairs[k][0] * pairs[k][1]
    return forms, np.flatnonzero((parts[:, rc.PRESENT] > 0.0) & (parts[:, rc.SOFT] > 0.0))


@typing.no_type_check
@kernel(inline="always")
def _gradient(parts, forms, index, x, y, z):
    """F (p - c) and |q|² of a part's ellipsoid."""
    part = parts[index]
    x, y, z = x - part[rc.CENTER], y - part[rc.CENTER + 1], z - part[rc.CENTER + 2]
    xx, yy, zz, xy, xz, yz = forms[index]
    gx, gy, gz = xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z
    return gx, gy, gz, gx * x + gy * y + gz * z


@typing.no_type_check
@kernel()
def _normal(parts, forms, soft, index, side, x, y, z):
    """Outward unit normal at a point on a side of a part; soft parts blend with neighbours."""
    part = parts[index]
    if side == rc.ON_ELLIPSOID:
        nx, ny, nz, _ = _gradient(parts, forms, index, x, y, z)
    elif side == rc.ON_CARVE:
        nx = (part[rc.CARVE_CENTER] - x) / part[rc.CARVE_RADII] ** 2
        ny = (part[rc.CARVE_CENTER + 1] - y) / part[rc.CARVE_RADII + 1] ** 2
        nz = (part[rc.CARVE_CENTER + 2] - z) / part[rc.CARVE_RADII + 2] ** 2
    elif side == rc.ON_BALL:
        nx, ny, nz = x, y, z
    else:  # the nearer end of the slab
        nx, ny, nz = part[rc.SLAB_NORMAL], part[rc.SLAB_NORMAL + 1], part[rc.SLAB_NORMAL + 2]
        if 2.0 * (nx * x + ny * y + nz * z) < part[rc.SLAB_LOW] + part[rc.SLAB_HIGH]:
            nx, ny, nz = -nx, -ny, -nz
    scale = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx * scale, ny * scale, nz * scale
    group = part[rc.SOFT]
    if group > 0.0 and side == rc.ON_ELLIPSOID:
        for k in soft:
            if k != index and parts[k, rc.SOFT] == group:
                gx, gy, gz, square = _gradient(parts, forms, k, x, y, z)
                length2 = gx * gx + gy * gy + gz * gz
                # divided by |gradient|, approximately the distance from the ellipsoid
                away = 0.5 * (square - 1.0)
                if away <= 0.0 or away * away < length2 * _SOFT_JOINT**2:
                    scale = 1.0 / math.sqrt(length2)
                    weight = (1.0 - away * scale / _SOFT_JOINT) ** 2 * scale
                    nx, ny, nz = nx + weight * gx, ny + weight * gy, nz + weight * gz
        scale = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx * scale, ny * scale, nz * scale
    return nx, ny, nz


@typing.no_type_check
@kernel()
def _paint(parts, index, tints, x, y, z, color):
    """Writes a part's unlit colour at a point into `color`; returns the effect of light, 0 to 1."""
    part = parts[index]
    material = part[rc.MATERIAL]
    for k in range(3):
        color[k] = part[rc.COLOR + k]
    if material == rc.SKIN:
        for i in range(tints.shape[0]):
            tint = tints[i]
            square = (x - tint[0]) ** 2 + (y - tint[1]) ** 2 + (z - tint[2]) ** 2
            weight = 1.0 - tint[3] * square
            if weight > 0.0:
                weight *= weight * tint[7]
                for k in range(3):
                    color[k] += weight * (tint[4 + k] - color[k])
    elif material in (rc.STRANDS, rc.STRIPES):
        if material == rc.STRANDS:
            turn = part[rc.DETAIL] * math.atan2(x, z + 0.01)
            streaks = 0.5 + 0.3 * math.sin(turn) + 0.2 * math.sin(2.3 * turn + 1.7)
            weight = part[rc.DETAIL + 1] * streaks
        else:
            weight = 1.0 if math.sin(2 * math.pi * part[rc.DETAIL] * y) > 0.3 else 0.0
        for k in range(3):
            color[k] += weight * (part[rc.COLOR2 + k] - color[k])
    elif material == rc.EYE:
        # the point in the eye's unit sphere, from the direction of the gaze
        gx = (x - part[rc.CENTER]) / part[rc.AXES] - part[rc.DETAIL]
        gy = (y - part[rc.CENTER + 1]) / part[rc.AXES + 4] - part[rc.DETAIL + 1]
        if (gx + 0.22) ** 2 + (gy - 0.26) ** 2 < 0.035:  # the glint
            color[:] = 1.0
            return 0.0
        radius = gx * gx + gy * gy
        if radius < 0.36:
            dark = 0.1 if radius < 0.10 else 0.55 if radius > 0.28 else 1.0
            for k in range(3):
                color[k] = part[rc.COLOR2 + k] * dark
            return 0.3
        return 0.6
    return 1.0


@typing.no_type_check
@kernel()
def _light(material, lit, nx, ny, nz, cartoon, color):
    """Wrapped Lambertian shading, warm light and cool ambient; gloss on hair and glasses.

    A cartoon has two tones with a hard edge, and stronger colours.
    """
    toward = nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]
    gloss = nx * _GLOSS[0] + ny * _GLOSS[1] + nz * _GLOSS[2]
    if cartoon:
        bright = toward > 0.18
        light = 1.6 if material == rc.GLOSSY and gloss > 0.96 else 1.06 if bright else 0.74
        grey = 0.3 * color[0] + 0.55 * color[1] + 0.15 * color[2]
        for k in range(3):
            tone = light * (1.0 if bright else 1.0 + 0.06 * (k - 1.0))
            color[k] = (grey + 1.4 * (color[k] - grey)) * (1.0 + lit * (tone - 1.0))
        return
    diffuse, ambient = max(0.0, (toward + 0.2) / 1.2), 0.45 + 0.09 * ny
    if material == rc.STRANDS:
        gloss = max(0.0, gloss) ** 8 * 0.10
    else:
        gloss = max(0.0, gloss) ** 24 * 0.5 if material == rc.GLOSSY else 0.0
    warm = 0.03 if material == rc.SKIN else 0.0  # light that leaks through skin
    for k in range(3):
        light = ambient + (warm * (1.0 - k)) + diffuse * (0.60 - 0.02 * k) + 0.01 * k
        color[k] = color[k] * (1.0 + lit * (light - 1.0)) + gloss


@typing.no_type_check
@kernel()
def _is_ink(depth, group, i, j, step, jump):
    """Whether a neighbour at `step` samples is nearer and of another group, or nearer by `jump`."""
    height, width = depth.shape
    for k in range(4):
        y = i + (step if k == 0 else -step if k == 1 else 0)
        x = j + (step if k == 2 else -step if k == 3 else 0)
        if 0 <= y < height and 0 <= x < width:
            if group[y, x] != group[i, j] and depth[y, x] < depth[i, j]:
                return True
            if depth[y, x] + jump < depth[i, j]:
                return True
    return False


@typing.no_type_check
@kernel()
def _ink_map(parts, depth, owner, focal, distance):
    """The samples that ink lines cover."""
    height, width = depth.shape
    step = max(1, int(0.5 + _INK_WIDTH * focal / distance * height / 2))
    group = np.zeros((height, width), dtype=np.int8)
    for i in range(height):
        for j in range(width):
            if owner[i, j] >= 0:
                group[i, j] = _INK_GROUP[int(parts[owner[i, j], rc.LABEL])]
    ink = np.empty((height, width), dtype=np.bool_)
    for i in range(height):
        for j in range(width):
            ink[i, j] = _is_ink(depth, group, i, j, step, _INK_JUMP / focal)
    return ink


@typing.no_type_check
@kernel()
def _is_even(parts, owner, side, top, left, supersampling):
    """Whether all samples of a pixel show nothing, or one side of a part without sharp paint."""
    index = owner[top, left]
    if index >= 0 and parts[index, rc.MATERIAL] in (rc.EYE, rc.STRIPES):
        return False
    for i in range(top, top + supersampling):
        for j in range(left, left + supersampling):
            if owner[i, j] != index or side[i, j] != side[top, left]:
                return False
    return True


@typing.no_type_check
@kernel()
def draw(parts, tints, pose, fov, depth, owner, side, background, cartoon, image):
    """Draws one image into `image`, (3, height, width) uint8.

    Args:
        parts, pose, fov: as in `raycast.cast`.
        tints: (tints, TINT_COLUMNS) float64.
        depth, owner, side: results of `raycast.cast`, with n samples per pixel along each side.
        background: (3,) colour in [0, 1].
        cartoon: flat tones and ink lines instead of natural light.
    """
    _, rows, columns = image.shape
    height, width = depth.shape
    supersampling = height // rows
    position, right, up, forward = rc.ray_frame(pose, fov)
    focal = 1.0 / math.tan(math.radians(fov) / 2)
    if cartoon:
        distance = math.sqrt(position[0] ** 2 + position[1] ** 2 + position[2] ** 2)
        ink = _ink_map(parts, depth, owner, focal, distance)
    else:
        ink = np.zeros((1, 1), dtype=np.bool_)
    forms, soft = _forms(parts)
    color, total = np.empty(3), np.empty(3)
    for row in range(rows):
        for column in range(columns):
            top, left, count = row * supersampling, column * supersampling, 0
            even = not cartoon and _is_even(parts, owner, side, top, left, supersampling)
            step = supersampling if even else 1
            total[0], total[1], total[2] = 0.0, 0.0, 0.0
            for i in range(top, top + supersampling, step):
                for j in range(left, left + supersampling, step):
                    count += 1
                    index = owner[i, j]
                    if cartoon and ink[i, j]:
                        color[0], color[1], color[2] = _INK, _INK, _INK
                    elif index < 0:
                        color[0], color[1], color[2] = background[0], background[1], background[2]
                    else:  # at the centre of the sample, or of the pixel if one colour is enough
                        gx, gy = (2 * j + step - width) / height, -(2 * i + step - height) / height
                        t = 0.0
                        for y in range(i, i + step):
                            for x in range(j, j + step):
                                t += depth[y, x] / (step * step)
                        px = position[0] + t * (gx * right[0] + gy * up[0] + forward[0])
                        py = position[1] + t * (gx * right[1] + gy * up[1] + forward[1])
                        pz = position[2] + t * (gx * right[2] + gy * up[2] + forward[2])
                        nx, ny, nz = _normal(parts, forms, soft, index, side[i, j], px, py, pz)
                        lit = _paint(parts, index, tints, px, py, pz, color)
                        _light(parts[index, rc.MATERIAL], lit, nx, ny, nz, cartoon, color)
                    for k in range(3):
                        total[k] += min(max(color[k], 0.0), 1.0)
            for k in range(3):
                image[k, row, column] = np.uint8(total[k] / count * 255.0 + 0.5)
