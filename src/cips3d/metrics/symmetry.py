"""Mirror symmetry: do a generator's pictures flip as the camera passes the frontal view (paper Section 3.3, Fig. 5)?

With the fault, a generator shows from the right what it shows from the left, mirrored: each picture looks true, but what
belongs to one side of the subject changes sides as the camera passes yaw 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cips3d.heads.network import HeadNetwork
from cips3d.metrics.views import Subjects, mean_difference, warped

#: Half the yaw, in radians, between the two views that are compared.
DELTA = 0.13
#: Yaws in radians, away from the frontal one, around which views are compared as well.
OFF_FRONTAL = (-0.39, -0.26, 0.26, 0.39)


def mirror_jump(subjects: Subjects) -> float:
    """d(I(−δ), I(+δ)) over the mean of d(I(θ−δ), I(θ+δ)) at off-frontal yaws θ, with d the mean absolute difference.

    About 1 where subjects turn evenly; far above 1 where the picture flips as the camera passes the frontal view.
    """

    def change(yaw: float) -> float:
        sides = [subjects.at(yaw + d).out.image for d in (-DELTA, DELTA)]
        return float((sides[0] - sides[1]).abs().mean())

    usual = sum(change(yaw) for yaw in OFF_FRONTAL) / len(OFF_FRONTAL)
    return change(0.0) / usual if usual > 0 else 1.0


def two_hypothesis_score(subjects: Subjects) -> float:
    """Share of subjects whose I(−δ) is closer to the mirrored I(+δ) than to I(+δ) warped by depth to −δ.

    0 for subjects that turn, 1 for mirrored ones, and for ones that are as good as symmetric, whose mirrored views are true.
    Both differences are taken over the pixels where the warped picture is known. Subjects without any such pixel do not count;
    NaN where that is all of them.
    """
    left, right = subjects.at(-DELTA), subjects.at(DELTA)
    turned, known = warped(right, left)
    by_mirror = mean_difference(left.out.image, right.out.image.flip(3), known)
    by_turning = mean_difference(left.out.image, turned, known)
    usable = known.flatten(1).any(dim=1)
    return float((by_mirror < by_turning)[usable].float().mean())


def bangs_flip(subjects: Subjects, network: HeadNetwork) -> float:
    """Share of the embedded heads' likes whose bangs change sides across yaw 0, of those that have bangs on either side of it.

    The network reads the side of the bangs at yaws −2δ, −δ, +δ and +2δ; the probabilities of the two views on the same side of
    yaw 0 are added up. NaN where no subject has bangs.
    """

    def side(yaws: tuple[float, float]) -> Tensor:
        views = [subjects.at(yaw).out.image for yaw in yaws]
        logits = [network(view).kinds["bangs_side"] for view in views]
        return sum(x.softmax(dim=1) for x in logits).argmax(dim=1) - 1  # pyright: ignore[reportAttributeAccessIssue]

    with torch.no_grad():
        left, right = side((-2 * DELTA, -DELTA)), side((DELTA, 2 * DELTA))
    both = (left != 0) & (right != 0)
    return float((left != right)[both].float().mean())
