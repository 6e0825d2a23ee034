"""Is the geometry real? Depth of generated heads from three yaws, held against the true depth of the embedded heads.

A generator can paint good pictures on a plane: the density vanishes except at one depth, all colours sit there, and the depth
map is constant. These figures tell: relief and opacity on the deepest sample see a plane, agreement between views sees a shape
that changes with the camera, correlation with true heads sees a shape that is no head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.heads import SyntheticHeads
from cips3d.metrics.views import Subjects, View
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import RenderOutput

#: Degrees of yaw that heads are seen from.
YAWS = (-30.0, 0.0, 30.0)
#: Side of the pictures, pixels.
RESOLUTION = 32
#: Of the depth histogram of the non-flatness score.
BINS = 64


@dataclass(frozen=True)
class GeometryReport:
    """Means over the generated heads.

    Attributes:
        last_sample_share: share of the opacity on the deepest sample of its ray; near 1 for a picture on the far plane.
        relief: standard deviation of the depth over a head's solid pixels, world units; 0 for a plane seen from the front.
        true_relief: the same of the embedded heads.
        view_agreement: correlation between the frontal depth and the depth seen from the two other yaws, carried over to the
            frontal view, where both are solid; 1 for one rigid shape (0.98 for the embedded heads themselves at 32²).
        shape_correlation: for each yaw, correlation of a head's depth with the mean true depth of the embedded heads from
            there, over pixels where both are solid.
        speckle: mean absolute difference of INR pixels from the median of their 3×3 neighbourhood, in units of [-1, 1];
            isolated wrong pixels raise it above `true_speckle`.
        true_speckle: the same of the embedded heads.
    """

    last_sample_share: float
    relief: float
    true_relief: float
    view_agreement: float
    shape_correlation: dict[float, float]
    speckle: float
    true_speckle: float

    def lines(self) -> list[str]:
        """The report for people."""
        by_yaw = ", ".join(
            f"{value:.2f} at {yaw:+.0f}°" for yaw, value in self.shape_correlation.items()
        )
        return [
            f"opacity on the last sample: {self.last_sample_share:.1%} (a picture painted on the far plane: near 100%)",
            f"relief of the heads: {self.relief:.4f} world units (true heads {self.true_relief:.4f}, a plane 0)",
            f"depth agrees between views: correlation {self.view_agreement:.2f}",
            f"depth against the true mean head: correlation {by_yaw}",
            f"speckle: {self.speckle:.4f} (true pictures {self.true_speckle:.4f})",
        ]


@torch.no_grad()
def geometry_report(generator: ImageGenerator, count: int = 32) -> GeometryReport:
    """Renders `count` heads from `YAWS` and compares their depth with `count` heads of the embedded dataset."""
    # the same lens and distance; a learned prior's mean says where the generator's own front is, and heads look ahead
    heads = SyntheticHeads(
        resolution=RESOLUTION, poses=replace(generator.config.poses, yaw_mean=0.0, pitch_mean=0.0)
    )
    subjects = Subjects.generated(generator, generator.sample_latents(count, 0), RESOLUTION)
    true_subjects = Subjects.true(heads, range(count), generator.shape_mean.device)
    views, truths = ([of.at(math.radians(yaw)) for yaw in YAWS] for of in (subjects, true_subjects))
    front, true_front = (of[YAWS.index(0.0)] for of in (views, truths))
    agreement = [_carried_correlation(view, front) for view in views if view is not front]
    return GeometryReport(
        last_sample_share=last_sample_share(front.out),
        relief=_mean_spread(front),
        true_relief=_mean_spread(true_front),
        view_agreement=sum(agreement) / len(agreement),
        shape_correlation={
            yaw: _correlation_with_mean(view, truth)
            for yaw, view, truth in zip(YAWS, views, truths, strict=True)
        },
        speckle=speckle(front.out.image),
        true_speckle=speckle(true_front.out.image),
    )


def last_sample_share(out: RenderOutput) -> float:
    """The share of all opacity that lies on the deepest sample of its ray, in [0, 1]; 0 where there is none."""
    return float(out.last_weight.detach().sum() / out.opacity.detach().sum().clamp(min=1e-8))


def speckle(images: Float[Tensor, "batch 3 height width"]) -> float:
    """Mean absolute difference between pixels and the median of their 3×3 neighbourhood."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    neighbours = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)
    return float((images - neighbours.median(dim=-1).values).abs().mean())


def detail(images: Float[Tensor, "batch 3 height width"]) -> float:
    """Mean absolute difference between neighbouring pixels, in units of [-1, 1]."""
    return float((images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()) / 2)


def non_flatness(out: RenderOutput, radius: float, extent: float) -> float:
    """Non-flatness score (3DGP, Skorokhodov et al. 2023): exp of the entropy of a picture's depth histogram, meaned.

    1 where all depths of a subject fall in one bin, `BINS` where they fill all of them evenly. Only solid pixels count, so that
    a flat subject before an empty background is flat; a picture without any scores 1.

    Args:
        radius: distance of the camera, world units.
        extent: half depth of the sampled volume, which the bins divide, world units.
    """
    scores = []
    for depth, solid in zip(out.depth, out.solid, strict=True):
        counts = torch.histc(depth[solid].float(), BINS, radius - extent, radius + extent)
        shares = counts[counts > 0] / counts.sum()
        scores.append(float((-(shares * shares.log()).sum()).exp()))
    return sum(scores) / len(scores)


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson's correlation; 0 where one side is constant or fewer than three pairs are left."""
    if len(a) < 3:
        return 0.0
    a, b = a.cpu().double(), b.cpu().double()
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def _mean_spread(view: View) -> float:
    """Mean over heads of the standard deviation of the depth of their solid pixels."""
    spreads = [
        float(d[s].std())
        for d, s in zip(view.out.depth, view.solid, strict=True)
        if int(s.sum()) > 2
    ]
    return sum(spreads) / len(spreads) if spreads else 0.0


def _correlation_with_mean(view: View, truth: View) -> float:
    """Mean over heads of the correlation with the true mean depth, where most true heads and this head are solid."""
    often = truth.solid.float().mean(dim=0) > 0.5
    mean_depth = (truth.out.depth * truth.solid).sum(dim=0) / truth.solid.sum(dim=0).clamp(min=1)
    both = [solid & often for solid in view.solid]
    values = [
        correlation(depth[b], mean_depth[b]) for depth, b in zip(view.out.depth, both, strict=True)
    ]
    return sum(values) / len(values)


def _carried_correlation(view: View, front: View) -> float:
    """Correlation of the front's depth with the depth of `view`'s surface points as the front camera sees them.

    Of the points that fall on one pixel the front camera sees the nearest; the others are hidden and do not count.
    """
    height, width = view.out.depth.shape[2:]
    place, distance = front.camera.project(view.points)
    column = torch.floor((place[..., 0] * height / width + 1) * width / 2).long()
    row = torch.floor((place[..., 1] + 1) * height / 2).long()
    usable = (
        view.solid.flatten(1)
        & (distance > 0)
        & (column >= 0)
        & (column < width)
        & (row >= 0)
        & (row < height)
    )
    pixel = (row * width + column).where(
        usable, height * width
    )  # what does not count goes to a pixel of its own
    carried = distance.new_full((len(distance), height * width + 1), torch.inf)
    carried = carried.scatter_reduce(1, pixel, distance, "amin")[:, :-1]
    seen = front.solid.flatten(1) & torch.isfinite(carried)
    values = [
        correlation(c[s], f[s])
        for c, f, s in zip(carried, front.out.depth.flatten(1), seen, strict=True)
    ]
    return sum(values) / len(values)
