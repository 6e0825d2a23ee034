"""Do the pictures of a subject from several cameras belong together, and to the cameras that they were asked for?"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.errors import UserError
from cips3d.heads.network import DEPTH_SIDE, HeadNetwork
from cips3d.metrics.geometry import correlation
from cips3d.metrics.views import Subjects, View, angle_between, mean_difference, warped
from cips3d.models.types import SOLID

#: Yaws in radians that a subject's pictures are compared between.
YAWS = (-0.35, 0.0, 0.35)
#: Quantiles that distributions of depth are compared by.
_QUANTILES = torch.linspace(0.01, 0.99, 99)


@runtime_checkable
class Predictor(Protocol):
    """What a user gives to have poses and identities measured on pictures of another kind than the embedded heads.

    Pictures are (B, 3, R, R) in [-1, 1].
    """

    def pose(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Yaw and pitch of the cameras, radians, as in `cips3d.camera`."""
        ...

    def identity(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch identity"]:
        """Vectors of any length, alike in direction for pictures of one subject (such as a face recogniser's)."""
        ...


def warp_error(subjects: Subjects) -> float:
    """Depth-warp consistency: mean absolute difference between a picture and another view warped to it, in units of [-1, 1].

    Each outer view of `YAWS` is carried to the frontal one by the frontal depth, and back by its own. 0 for a rigid
    surface of fixed colours; wrong depth, or colours that change with the camera, raise it. NaN where nothing is solid.
    """
    views = [subjects.at(yaw) for yaw in YAWS]
    front = views[YAWS.index(0.0)]
    values = []
    for view in views:
        if view is not front:
            for source, target in ((view, front), (front, view)):
                picture, known = warped(source, target)
                values.append(mean_difference(picture, target.out.image, known))
    return float(torch.cat(values).nanmean())


def seen_pose(
    predictor: Predictor, images: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Yaw and pitch in radians that the predictor sees in pictures, on their device.

    Raises:
        UserError: if it does not give one of each for every picture.
    """
    found = predictor.pose(images)
    tensors = isinstance(found, tuple) and all(isinstance(angles, Tensor) for angles in found)
    if not tensors or [angles.shape for angles in found] != 2 * [images.shape[:1]]:
        raise UserError(
            f"predictor: pose gave {_form(found)} for {len(images)} pictures; give yaw and pitch, a tensor each"
        )
    yaw, pitch = found
    return yaw.to(images), pitch.to(images)


def _form(found: object) -> str:
    """What a user's object returned, in a few words."""
    if isinstance(found, tuple):
        return " and ".join(map(_form, found))
    return str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__


@torch.no_grad()
def pose_error(view: View, predictor: Predictor, turned: tuple[float, float] = (0.0, 0.0)) -> float:
    """Mean angle between the cameras that took the pictures and those that the predictor sees in them, degrees.

    Args:
        turned: yaw and pitch, radians, by which the subjects' own front is away from what the predictor takes for it.
            Learned cameras leave it open (see `cips3d.training.cameras.LearnedPoses`).

    Raises:
        UserError: if the predictor does not give one yaw and one pitch for each picture.
    """
    yaw, pitch = view.camera.yaw_pitch()
    return float(
        angle_between(
            yaw - turned[0], pitch - turned[1], *seen_pose(predictor, view.out.image)
        ).mean()
    )


@torch.no_grad()
def identity_consistency(subjects: Subjects, predictor: Predictor) -> tuple[float, float]:
    """Mean cosines between the identities that the predictor sees in pictures from `YAWS`.

    Returns:
        Between one subject's pictures, 1 for the same; and between different subjects' from the same side, without which the
        first says nothing: it is near 1 as well where all subjects are one. NaN for a single subject.

    Raises:
        UserError: if the predictor does not give one vector for each picture.
    """
    vectors = [predictor.identity(subjects.at(yaw).out.image) for yaw in YAWS]
    for vector in vectors:
        if not isinstance(vector, Tensor) or vector.dim() != 2 or len(vector) != subjects.count:
            raise UserError(
                f"predictor: identity gave {_form(vector)} for {subjects.count} pictures; give a tensor, a row for each"
            )
    vectors = [F.normalize(vector.float(), dim=1) for vector in vectors]
    pairs = [(a * b).sum(dim=1) for i, a in enumerate(vectors) for b in vectors[:i]]
    if subjects.count == 1:
        return float(torch.cat(pairs).mean()), math.nan
    others = ~torch.eye(subjects.count, dtype=torch.bool, device=vectors[0].device)
    return float(torch.cat(pairs).mean()), float(
        torch.stack([(a @ a.T)[others].mean() for a in vectors]).mean()
    )


@torch.no_grad()
def depth_error(view: View, network: HeadNetwork) -> tuple[float, float]:
    """Generated depth against the depth that the network sees in the pictures (as EG3D, Chan et al. 2022, measures it).

    Returns:
        The mean absolute difference over pixels that are solid for both, world units, and the mean over pictures of the
        correlation there; NaN where there are no such pixels.
    """
    reading = network(view.out.image)
    depth, share = small_depth(view.depth_from_centre, view.solid)
    seen_depth = (reading.depth - 1).to(depth)
    both = (share > SOLID) & (reading.mask.to(share) > SOLID)
    if not bool(both.any()):
        return math.nan, math.nan
    alike = [correlation(a[b], c[b]) for a, c, b in zip(depth, seen_depth, both, strict=True)]
    return float((depth - seen_depth)[both].abs().mean()), sum(alike) / len(alike)


def small_depth(
    depth: Float[Tensor, "batch 1 height width"], solid: Bool[Tensor, "batch 1 height width"]
) -> tuple[Float[Tensor, "batch 1 32 32"], Float[Tensor, "batch 1 32 32"]]:
    """Mean depth of the solid pixels in each cell of a 32×32 grid, and their share."""
    share, total = (F.adaptive_avg_pool2d(x, DEPTH_SIDE) for x in (solid.to(depth), depth * solid))
    return total / share.clamp(min=1e-6), share


def depth_distance(view: View, truth: View) -> float:
    """How far the depths of the generated subjects' solid pixels lie from those of the true ones, as distributions.

    The mean difference between their quantiles (about the Wasserstein-1 distance), world units; about 0.016 for heads of
    constant depth at their right mean. NaN where nothing is solid.
    """
    depths = [v.depth_from_centre[v.solid].cpu().double() for v in (view, truth)]
    if min(map(len, depths)) == 0:
        return math.nan
    at = _QUANTILES.double()
    a, b = (torch.sort(d).values[(at * (len(d) - 1)).long()] for d in depths)
    return float((a - b).abs().mean())
