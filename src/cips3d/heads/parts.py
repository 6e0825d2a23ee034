"""The table of a batch of heads' parts, which `shapes` fills and `raycast` and `shading` read."""

from __future__ import annotations

from typing import Any

import numpy as np

from cips3d.heads import raycast as rc
from cips3d.heads.shading import TINT_COLUMNS

_UNIT = 0.01  # world units per unit of the callers
_MAX_PARTS, _MAX_TINTS = 128, 10

Number = float | np.ndarray
Triple = tuple[Number, Number, Number]


class PartList:
    """Collects the parts and tints of a batch of heads in tables.

    A number that describes a part may be an array: (B,) has one entry per head; (n, B) and (n, 1)
    make n copies.
    """

    def __init__(self, count: int):
        # heads last: one write per column covers the batch
        self._table = np.zeros((rc.PART_COLUMNS, _MAX_PARTS, count))
        self._tints = np.zeros((TINT_COLUMNS, _MAX_TINTS, count))
        self._parts_used = self._tints_used = 0

    def add(
        self,
        label: int,
        center: Triple,
        radii: Triple,
        color: np.ndarray,
        material: Number = rc.MATTE,
        present: bool | np.ndarray = True,
        *,
        tilt: Number = 0.0,
        roll: Number = 0.0,
        turn: Number = 0.0,
        slab: tuple[Triple, Number, Number] | None = None,
        carve: tuple[Triple, Triple] | None = None,
        color2: np.ndarray | None = None,
        detail: tuple[Number, Number] | None = None,
        soft: int = 0,
    ) -> None:
        """Adds an ellipsoid, or one per x coordinate of `center`, to the heads where `present`.

        Args:
            label: number into `raycast.LABELS`.
            center, radii: position and semi-axes along x, y, z.
            color, color2: (B, 3) or (3,), or (n, B, 3) for n copies; in [0, 1].
            material, detail, soft: see `raycast`.
            present: (B,) or (n, B) booleans.
            roll, tilt, turn: rotations in this order, radians: about z (top towards -x), x (front
                downwards) and y (front towards +x).
            slab: (unit normal, low, high); keeps low ≤ normal·p ≤ high.
            carve: (center, radii) of an ellipsoid to carve out.
        """
        copies = _copies(center[0])
        self._parts_used += copies
        rows = self._table[:, self._parts_used - copies : self._parts_used]

        def write(first: int, *values: Any) -> None:
            for column, value in enumerate(values, first):
                rows[column] = value

        write(rc.CENTER, *center)
        for axis, direction in enumerate(_turned_axes(tilt, roll, turn)):
            write(rc.AXES + 3 * axis, *(radii[axis] * component for component in direction))
        write(rc.COLOR, *np.moveaxis(color, -1, 0))
        if slab is not None:
            write(rc.SLAB_NORMAL, *slab[0], slab[1], slab[2])
        if carve is not None:
            write(rc.CARVED, 1.0, *carve[0], *carve[1])
        if color2 is not None:
            write(rc.COLOR2, *np.moveaxis(color2, -1, 0))
        if detail is not None:
            write(rc.DETAIL, *detail)
        write(rc.MATERIAL, material, label, present, soft)

    def tint(self, center: Triple, radius: Number, color: np.ndarray, strength: Number) -> None:
        """Adds soft spots of `color` on skin; strength in [0, 1], 0 for none."""
        copies = _copies(center[0])
        rows = self._tints[:, self._tints_used : self._tints_used + copies]
        self._tints_used += copies
        columns = *center, 1 / np.square(radius), *np.moveaxis(color, -1, 0), strength
        for column, value in enumerate(columns):
            rows[column] = value

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(B, parts, PART_COLUMNS) and (B, tints, TINT_COLUMNS) in world units."""
        table = np.ascontiguousarray(self._table[:, : self._parts_used].transpose(2, 1, 0))
        tints = np.ascontiguousarray(self._tints[:, : self._tints_used].transpose(2, 1, 0))
        table[:, :, rc.CENTER : rc.SLAB_NORMAL] *= _UNIT
        table[:, :, rc.SLAB_LOW : rc.CARVED] *= _UNIT
        table[:, :, rc.CARVE_CENTER : rc.COLOR] *= _UNIT
        tints[:, :, :3] *= _UNIT
        tints[:, :, 3] /= _UNIT**2
        return table, tints


def _copies(x: Number) -> int:
    """Number of copies that an x coordinate makes."""
    return len(x) if isinstance(x, np.ndarray) and x.ndim == 2 else 1


def _turned_axes(tilt: Number, roll: Number, turn: Number) -> list[Triple]:
    """The axes x, y, z after the rotations of `PartList.add`."""
    cos, sin = np.cos(roll), np.sin(roll)
    axes: list[Triple] = [(cos, sin, 0.0), (-sin, cos, 0.0), (0.0, 0.0, 1.0)]
    cos, sin = np.cos(tilt), np.sin(tilt)
    axes = [(x, cos * y - sin * z, sin * y + cos * z) for x, y, z in axes]
    cos, sin = np.cos(turn), np.sin(turn)
    return [(cos * x + sin * z, y, cos * z - sin * x) for x, y, z in axes]
