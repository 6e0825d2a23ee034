"""Do the views of a subject agree with each other, and with the requested cameras?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.errors import UserError
from cips3d.heads.network import DEPTH_SIDE, HeadNetwork
from cips3d.metrics import views
from cips3d.metrics.geometry import correlation, mean_correlation
from cips3d.metrics.views import Angles, Images, Subjects, View
from cips3d.models.types import SOLID

#: Yaws in radians, left, front and right, between which a subject's images are compared.
YAWS = (-0.35, 0.0, 0.35)
#: The yaws on both sides of the front, radians, between which subjects are asked to turn.
TURN = math.radians(25)


@runtime_checkable
class Predictor(Protocol):
    """A user's predictor of pose and identity, for images other than the embedded heads.

    Images are (B, 3, R, R) in [-1, 1]. For images in which it finds no subject it returns NaN. One
    that also finds the parts of faces is a `cips3d.metrics.faces.FacePredictor`.
    """

    def pose(self, images: Images) -> Angles:
        """(B,) yaw and (B,) pitch of the cameras, radians, as in `cips3d.camera`."""
        ...

    def identity(self, images: Images) -> Float[Tensor, "batch identity"]:
        """Vectors that point the same way for images of one subject, such as face embeddings."""
        ...


@dataclass(frozen=True)
class Turn:
    """Yaws that were asked of subjects and those seen in their images, radians."""

    asked: Float[Tensor, " view"]
    seen: Float[Tensor, " view"]  # NaN where no subject was found

    @property
    def found_share(self) -> float:
        """Share of the views in which a subject was found."""
        return float(self.seen.isfinite().float().mean())

    @property
    def slope(self) -> float:
        """Of the regression line of the yaws seen: 1 for subjects that turn as asked."""
        asked, seen = self._found()
        asked = asked - asked.mean()
        return float((asked @ seen) / asked.square().sum())

    @property
    def correlation(self) -> float:
        """Between the yaws asked and seen."""
        return correlation(*self._found())

    def _found(self) -> tuple[Tensor, Tensor]:
        found = self.seen.isfinite()
        return self.asked[found].double(), self.seen[found].double()


def warp_error(subjects: Subjects) -> float:
    """Mean absolute difference between an image and another view warped to it by depth.

    Each outer view of `YAWS` is warped to the frontal one by the frontal depth, and back by its
    own. In units of [-1, 1]. 0 for a rigid surface of fixed colours; wrong depth, or colours that
    change with the camera, raise it. NaN where nothing is solid.
    """
    left, front, right = (subjects.from_angles(yaw) for yaw in YAWS)
    values = []
    for source, target in ((left, front), (front, left), (right, front), (front, right)):
        image, valid = views.warp(source, target)
        values.append(views.mean_difference(image, target.out.image, valid))
    return float(torch.cat(values).nanmean())


def predicted_pose(predictor: Predictor, images: Images) -> Angles:
    """Yaw and pitch, radians, on the images' device, NaN where the predictor found no subject.

    Raises:
        UserError: for wrong shapes.
    """
    found = predictor.pose(images)
    tensors = isinstance(found, tuple) and all(isinstance(angles, Tensor) for angles in found)
    if not tensors or [angles.shape for angles in found] != 2 * [images.shape[:1]]:
        raise UserError(
            f"predictor: pose returned {_shapes(found)} for {len(images)} images; "
            "return yaw and pitch, a tensor each"
        )
    yaw, pitch = found
    return yaw.to(images), pitch.to(images)


def _shapes(returned: object) -> str:
    """Shapes or types of what a user's function returned."""
    if isinstance(returned, tuple):
        return " and ".join(map(_shapes, returned))
    return str(tuple(returned.shape)) if isinstance(returned, Tensor) else type(returned).__name__


@torch.no_grad()
def pose_error(view: View, predictor: Predictor, offset: tuple[float, float] = (0.0, 0.0)) -> float:
    """Mean angle between the cameras of a view and the predicted ones, degrees.

    Images in which the predictor finds no subject do not count: see `Turn.found_share`.

    Args:
        offset: yaw and pitch, radians, of the subjects' own front in the predictor's world.
            Learned cameras leave it open (see `cips3d.training.cameras.LearnedPoses`).
    """
    yaw, pitch = view.camera.yaw_pitch()
    predicted = predicted_pose(predictor, view.out.image)
    own = yaw - offset[0], pitch - offset[1]
    return float(views.angle_between(*own, *predicted).nanmean())


@torch.no_grad()
def turn(subjects: Subjects, predictor: Predictor) -> Turn:
    """What a predictor sees of a turn from -`TURN` to `TURN`, each subject from one of its yaws."""
    asked = torch.linspace(-TURN, TURN, subjects.count)
    poses = subjects.poses
    view = subjects.from_cameras(poses.at(asked + poses.yaw_mean, poses.pitch_mean))
    yaw, _ = predicted_pose(predictor, view.out.image)
    return Turn(asked, yaw.cpu())


@torch.no_grad()
def identity_consistency(subjects: Subjects, predictor: Predictor) -> tuple[float, float]:
    """Mean cosines between the identities that are predicted from `YAWS`.

    Returns:
        Between views of one subject, 1 for the same; and between different subjects in one view,
        NaN for a single subject. The second is the baseline of the first: both are near 1 where all
        subjects look the same. Images in which the predictor finds no subject do not count.
    """
    vectors = [predictor.identity(subjects.from_angles(yaw).out.image) for yaw in YAWS]
    for vector in vectors:
        if not isinstance(vector, Tensor) or vector.dim() != 2 or len(vector) != subjects.count:
            raise UserError(
                f"predictor: identity returned {_shapes(vector)} for {subjects.count} images; "
                "return a tensor with one row per image"
            )
    vectors = [F.normalize(vector.float(), dim=1) for vector in vectors]
    pairs = [(a * b).sum(dim=1) for i, a in enumerate(vectors) for b in vectors[:i]]
    within = float(torch.cat(pairs).nanmean())
    others = ~torch.eye(subjects.count, dtype=torch.bool, device=vectors[0].device)
    between = torch.stack([(a @ a.T)[others].nanmean() for a in vectors])
    return within, float(between.mean())


@torch.no_grad()
def depth_error(view: View, network: HeadNetwork) -> tuple[float, float]:
    """Generated depth against the depth predicted from the image (as in EG3D, Chan et al. 2022).

    Returns:
        The mean absolute difference over pixels that are solid in both, world units, and the
        correlation there, averaged over images; NaN without such pixels.
    """
    reading = network(view.out.image)
    depth, share = pooled_depth(view.centred_depth, view.solid)
    predicted = (reading.depth - 1).to(depth)
    both = (share > SOLID) & (reading.mask.to(share) > SOLID)
    if not bool(both.any()):
        return math.nan, math.nan
    error = float((depth - predicted)[both].abs().mean())
    return error, mean_correlation(depth, predicted, both)


def pooled_depth(
    depth: Float[Tensor, "batch 1 height width"], solid: Bool[Tensor, "batch 1 height width"]
) -> tuple[Float[Tensor, "batch 1 32 32"], Float[Tensor, "batch 1 32 32"]]:
    """Mean depth of the solid pixels in each cell of a 32×32 grid, and their share."""
    share, total = (F.adaptive_avg_pool2d(x, DEPTH_SIDE) for x in (solid.to(depth), depth * solid))
    return total / share.clamp(min=1e-6), share


def depth_distance(view: View, truth: View) -> float:
    """Distance between the distributions of depth of generated and of true solid pixels.

    The mean difference of their quantiles (about the Wasserstein-1 distance), world units. Heads
    of constant depth at the right distance score about 0.016. NaN where nothing is solid.
    """
    depths = [v.centred_depth[v.solid].cpu().double() for v in (view, truth)]
    if min(map(len, depths)) == 0:
        return math.nan
    shares = torch.linspace(0.01, 0.99, 99).double()
    a, b = (torch.sort(d).values[(shares * (len(d) - 1)).long()] for d in depths)
    return float((a - b).abs().mean())
