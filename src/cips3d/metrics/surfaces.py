"""Surfaces against each other: points on what a camera sees, points all over an embedded head, the Chamfer distance."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree

from cips3d.camera import Camera
from cips3d.data import SyntheticHeads
from cips3d.errors import UserError
from cips3d.metrics.subjects import Subjects, View

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
        raise UserError(f"Chamfer distance: sets of {len(a)} and {len(b)} points; both need at least one")
    return float(KDTree(b).query(a)[0].mean() + KDTree(a).query(b)[0].mean()) / 2


def seen_points(view: View) -> Float[np.ndarray, "points 3"]:
    """The surface points (world) that a view's solid pixels show, of all its subjects."""
    return view.points[view.solid.flatten(1)].cpu().double().numpy()


def thinned(points: Float[np.ndarray, "points 3"], spacing: float) -> Float[np.ndarray, "fewer 3"]:
    """One point of each cube of side `spacing` that holds any: several views' points evenly over the surface."""
    _, first = np.unique(np.floor(points / spacing).astype(np.int64), axis=0, return_index=True)
    return points[first]


def head_points(
    heads: SyntheticHeads, index: int, cameras: Camera | None = None, spacing: float = 1e-3, side: int = 256
) -> Float[np.ndarray, "points 3"]:
    """True points on the surface of an embedded head, evenly.

    Args:
        index: the head's number.
        cameras: what they see counts; None for forty all around, which leave out nothing but deep folds.
        spacing: between the points, about, world units.
        side: of the cameras' pictures, pixels; a pixel is about 0.25 / side wide.
    """
    if cameras is None:
        yaw, pitch = torch.meshgrid(*(torch.deg2rad(torch.tensor(x)) for x in (_YAWS, _PITCHES)), indexing="ij")
        cameras = Camera.orbit(yaw.flatten(), pitch.flatten(), 1.0, _FOV)
    enlarged = SyntheticHeads(heads.size, side, heads.seed, heads.style, heads.poses)
    return thinned(seen_points(Subjects.true(enlarged, [index] * len(cameras)).seen(cameras)), spacing)
