"""Mirror symmetry: do images flip when the camera passes the front (paper Section 3.3, Fig. 5)?

A generator with this fault shows from the right the mirror image of what it shows from the left:
each image looks true, but asymmetric parts change sides at yaw 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.heads.network import HeadNetwork
from cips3d.metrics.views import Subjects, mean_difference, warp

#: Half the yaw between the two views that are compared, radians.
DELTA = 0.13
#: Yaws from the front at which the usual change is measured, radians.
OFF_FRONTAL = (-0.39, -0.26, 0.26, 0.39)


def mirror_jump(subjects: Subjects) -> float:
    """d(I(−δ), I(+δ)) divided by the mean of d(I(θ−δ), I(θ+δ)) at off-frontal yaws θ.

    d is the mean absolute difference. About 1 where subjects turn evenly; far above 1 where the
    image flips as the camera passes the frontal view.
    """

    def change(yaw: float) -> float:
        sides = [subjects.from_angles(yaw + d).out.image for d in (-DELTA, DELTA)]
        return float((sides[0] - sides[1]).abs().mean())

    usual = sum(change(yaw) for yaw in OFF_FRONTAL) / len(OFF_FRONTAL)
    return change(0.0) / usual if usual > 0 else 1.0


def two_hypothesis_score(subjects: Subjects) -> float:
    """Share of subjects whose I(−δ) is closer to the mirrored I(+δ) than to I(+δ) warped to −δ.

    0 for subjects that turn, 1 for mirrored ones and for symmetric ones, whose mirrored views are
    right. Differences are averaged over the pixels where the warped image is valid. Subjects
    without such pixels do not count; NaN if no subject has any.
    """
    left, right = subjects.from_angles(-DELTA), subjects.from_angles(DELTA)
    turned, valid = warp(right, left)
    by_mirror = mean_difference(left.out.image, right.out.image.flip(3), valid)
    by_turning = mean_difference(left.out.image, turned, valid)
    usable = valid.flatten(1).any(dim=1)
    return float((by_mirror < by_turning)[usable].float().mean())


@torch.no_grad()
def bangs_flip(subjects: Subjects, network: HeadNetwork) -> float:
    """Share of heads whose bangs change sides across yaw 0, of those with bangs on either side.

    The network predicts the side of the bangs at yaws −2δ, −δ, +δ and +2δ; the probabilities of
    the two views on the same side of yaw 0 are added. NaN where no subject has bangs.
    """

    def side(yaws: tuple[float, float]) -> Tensor:
        views = [subjects.from_angles(yaw).out.image for yaw in yaws]
        first, second = (network(view).kinds["bangs_side"].softmax(dim=1) for view in views)
        return (first + second).argmax(dim=1) - 1

    left, right = side((-2 * DELTA, -DELTA)), side((DELTA, 2 * DELTA))
    both = (left != 0) & (right != 0)
    return float((left != right)[both].float().mean())
