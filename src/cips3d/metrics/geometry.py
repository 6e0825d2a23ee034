"""Measures of geometry: a flat image, a hollow head and a shape that changes with the camera.

A generator can paint good images on a plane: the density vanishes except at one depth, where all
colours lie. Non-flatness and the opacity of the last sample reveal a plane. Agreement between
views reveals a shape that changes with the camera, correlation with true subjects one that is
wrong.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.metrics.views import Images, Subjects, View
from cips3d.models.types import RenderOutput

#: Yaws in radians, left, front and right, from which depth is compared.
YAWS = (math.radians(-30), 0.0, math.radians(30))
#: Radii of the central disc and of the ring around it, as shares of the image's side.
DISC, RING = 0.1, (0.2, 0.3)
#: Bins of the depth histogram of the non-flatness score.
BINS = 64


def last_sample_share(out: RenderOutput) -> float:
    """Share of all opacity that lies on the deepest sample of its ray, in [0, 1].

    Near 1 for an image on the far plane; 0 where there is no opacity.
    """
    return float(out.last_weight.detach().sum() / out.opacity.detach().sum().clamp(min=1e-8))


def speckle(images: Images) -> float:
    """Mean absolute difference between pixels and the median of their 3×3 neighbourhood."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    neighbours = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    return float((images - neighbours.median(dim=-1).values).abs().mean())


def detail(images: Images) -> float:
    """Mean absolute difference between neighbouring pixels, in units of [-1, 1]."""
    return float((images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()) / 2)


def non_flatness(out: RenderOutput, radius: float, extent: float) -> float:
    """Non-flatness score (3DGP, Skorokhodov et al. 2023), averaged over the batch.

    The exponential of the entropy of an image's depth histogram: 1 where all depths fall in one
    bin, `BINS` where they fill all bins evenly. Only solid pixels count, so that a flat subject in
    front of an empty background is flat; an image without any scores 1.

    The bins divide depths of `radius` (the camera's) ± `extent` (half the volume's), world units.
    """
    total = 0.0
    for depth, solid in zip(out.depth, out.solid, strict=True):
        counts = torch.histc(depth[solid].float(), BINS, radius - extent, radius + extent)
        shares = counts[counts > 0] / counts.sum()
        total += float((-(shares * shares.log()).sum()).exp())
    return total / len(out.depth)


@torch.no_grad()
def view_agreement(subjects: Subjects) -> float:
    """Correlation of the frontal depth with the depth seen from the outer `YAWS`.

    The surface seen from the side is projected into the frontal view and compared where both are
    solid. 1 for one rigid shape; the embedded heads reach 0.98 at 32².
    """
    left, front, right = (subjects.from_angles(yaw) for yaw in YAWS)
    return (_projected_correlation(left, front) + _projected_correlation(right, front)) / 2


def shape_correlation(subjects: Subjects, truth: Subjects) -> float:
    """Mean over `YAWS` of `correlation_with_mean`: below 0 for hollow shapes.

    The true subjects are seen through the lens, and from the distance, of the others' prior.
    """
    own, true = subjects.poses, truth.poses
    lens = replace(own, yaw_mean=true.yaw_mean, pitch_mean=true.pitch_mean)
    truth = replace(truth, poses=lens)
    views = [(subjects.from_angles(yaw), truth.from_angles(yaw)) for yaw in YAWS]
    return sum(correlation_with_mean(*pair) for pair in views) / len(YAWS)


def relief(subjects: Subjects) -> Float[Tensor, " batch"]:
    """How far the middle of each subject stands out towards the frontal camera, world units.

    The mean height of the solid pixels in the central disc minus that in the ring around it. The
    radius of the disc is a `DISC` of the image's side, the ring's radii are its `RING`. Height is
    measured along the camera's axis: 0 for a plane that faces it, below 0 for a hollow. In images
    of faces the nose is in the middle, eyes, cheeks and ears are in the ring. NaN for a subject
    that is not solid in both.
    """
    front = subjects.from_angles(0.0)
    height, width = front.out.depth.shape[2:]
    heights = front.heights.flatten(1)
    rows, columns = ((torch.arange(n) + 0.5 - n / 2) / min(height, width) for n in (height, width))
    radius = torch.hypot(rows[:, None], columns).flatten().to(heights)

    def mean(where: Bool[Tensor, " pixels"]) -> Float[Tensor, " batch"]:
        chosen = front.solid.flatten(1) & where
        return (heights * chosen).sum(dim=1) / chosen.sum(dim=1)

    return mean(radius < DISC) - mean((radius >= RING[0]) & (radius < RING[1]))


def hollow_share(relief: Float[Tensor, " batch"]) -> float:
    """Share of the subjects with a negative `relief`, of those that have one; NaN without any."""
    found = relief[relief.isfinite()]
    return float((found < 0).float().mean())


def correlation_with_mean(view: View, truth: View) -> float:
    """Mean over subjects of the correlation of their depth with the true subjects' mean depth.

    Over pixels where the subject and most true ones are solid.
    """
    often = truth.solid.float().mean(dim=0) > 0.5
    average = (truth.out.depth * truth.solid).sum(dim=0) / truth.solid.sum(dim=0).clamp(min=1)
    depth = view.out.depth
    return mean_correlation(depth, average.expand_as(depth), view.solid & often)


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson's correlation; 0 where one side is constant or there are fewer than three pairs."""
    if len(a) < 3:
        return 0.0
    a, b = a.cpu().double(), b.cpu().double()
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def mean_correlation(
    a: Float[Tensor, "batch ..."], b: Float[Tensor, "batch ..."], where: Bool[Tensor, "batch ..."]
) -> float:
    """Mean over the batch of the correlation of `a` with `b` over the pixels `where`."""
    return sum(correlation(x[w], y[w]) for x, y, w in zip(a, b, where, strict=True)) / len(a)


def _projected_correlation(view: View, front: View) -> float:
    """Correlation of the front's depth with the surface points of `view` as the front sees them.

    Where several points fall on one pixel, the nearest counts: it hides the others.
    """
    height, width = view.out.depth.shape[2:]
    place, distance = front.camera.project(view.points)
    column = torch.floor((place[..., 0] * height / width + 1) * width / 2).long()
    row = torch.floor((place[..., 1] + 1) * height / 2).long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    usable = view.solid.flatten(1) & (distance > 0) & inside
    # points that do not count go to an extra pixel, which is dropped
    pixel = (row * width + column).where(usable, height * width)
    projected = distance.new_full((len(distance), height * width + 1), torch.inf)
    projected = projected.scatter_reduce(1, pixel, distance, "amin")[:, :-1]
    seen = front.solid.flatten(1) & torch.isfinite(projected)
    return mean_correlation(projected, front.out.depth.flatten(1), seen)
