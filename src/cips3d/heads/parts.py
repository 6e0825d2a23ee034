"""The table of a batch of heads' parts, which `shapes` fills and `raycast` and `shading` read."""

from __future__ import annotations

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
        row = self._claim(center[0])
        for k in range(3):
            row[rc.CENTER + k], row[rc.AXES + 4 * k] = center[k], radii[k]
            row[rc.COLOR + k] = color[..., k]
        if np.any(tilt) or np.any(roll) or np.any(turn):
            for axis, direction in enumerate(_turned_axes(tilt, roll, turn)):
                for k in range(3):
                    row[rc.AXES + 3 * axis + k] = radii[axis] * direction[k]
        if slab is not None:
            row[rc.SLAB_LOW], row[rc.SLAB_HIGH] = slab[1], slab[2]
            for k in range(3):
                row[rc.SLAB_NORMAL + k] = slab[0][k]
        if carve is not None:
            row[rc.CARVED] = 1.0
            for k in range(3):
                row[rc.CARVE_CENTER + k], row[rc.CARVE_RADII + k] = carve[0][k], carve[1][k]
        if color2 is not None:
            for k in range(3):
                row[rc.COLOR2 + k] = color2[..., k]
        if detail is not None:
            row[rc.DETAIL], row[rc.DETAIL + 1] = detail
        row[rc.MATERIAL], row[rc.LABEL], row[rc.PRESENT], row[rc.SOFT] = (
            material,
            label,
            present,
            soft,
        )

    def tint(self, center: Triple, radius: Number, color: np.ndarray, strength: Number) -> None:
        """Adds soft spots of `color` on skin; strength in [0, 1], 0 for none."""
        copies = _copies(center[0])
        row = self._tints[:, self._tints_used : self._tints_used + copies]
        self._tints_used += copies
        row[0], row[1], row[2], row[3], row[7] = *center, 1 / np.square(radius), strength
        row[4], row[5], row[6] = color[..., 0], color[..., 1], color[..., 2]

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(B, parts, PART_COLUMNS) and (B, tints, TINT_COLUMNS) in world units."""
        table = np.ascontiguousarray(self._table[:, : self._parts_used].transpose(2, 1, 0))
        tints = np.ascontiguousarray(self._tints[:, : self._tints_used].transpose(2, 1, 0))
        for first, end in (
            (rc.CENTER, rc.SLAB_NORMAL),
            (rc.SLAB_LOW, rc.CARVED),
            (rc.CARVE_CENTER, rc.COLOR),
        ):
            table[:, :, first:end] *= _UNIT
        tints[:, :, :3] *= _UNIT
        tints[:, :, 3] /= _UNIT**2
        return table, tints

    def _claim(self, x: Number) -> np.ndarray:
        """The next unused rows, (PART_COLUMNS, copies, B), one per copy."""
        copies = _copies(x)
        self._parts_used += copies
        return self._table[:, self._parts_used - copies : self._parts_used]


def _copies(x: Number) -> int:
    """Number of copies that an x coordinate makes."""
    return len(x) if isinstance(x, np.ndarray) and x.ndim == 2 else 1


def _turned_axes(tilt: Number, roll: Number, turn: Number) -> list[Triple]:
    """The axes x, y, z after the rotations of `PartList.add`."""
    axes: list[Triple] = [
        (np.cos(roll), np.sin(roll), 0.0),
        (-np.sin(roll), np.cos(roll), 0.0),
        (0.0, 0.0, 1.0),
    ]
    tilted = [
        (x, np.cos(tilt) * y - np.sin(tilt) * z, np.sin(tilt) * y + np.cos(tilt) * z)
        for x, y, z in axes
    ]
    return [
        (np.cos(turn) * x + np.sin(turn) * z, y, np.cos(turn) * z - np.sin(turn) * x)
        for x, y, z in tilted
    ]
