"""Is a face convex? The depth under the nose, the eyes and the cheeks that a predictor finds.

A face can be painted onto a hollow or a plane and look right from the front. Where its parts are
seen in the image says nothing about depth, and the depth map knows nothing of faces, so that each
checks the other.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.errors import UserError
from cips3d.metrics.consistency import Predictor
from cips3d.metrics.views import Images, Subjects, sample_image

#: The order of a predictor's landmarks.
LANDMARKS = ("nose", "eye", "eye", "mouth", "mouth", "cheek", "cheek")
#: Those that must lie behind the nose. A mouth may stand out as far.
_BEHIND = [i for i, part in enumerate(LANDMARKS) if part in ("eye", "cheek")]


class FacePredictor(Predictor, Protocol):
    """A predictor that also finds the parts of faces."""

    def landmarks(self, images: Images) -> Float[Tensor, "batch 7 2"]:
        """Positions x, y of the tip of the nose, both eyes, both corners of the mouth, both cheeks.

        Each cheek is measured beside its ear, where the face's outline is. The image spans [-1, 1],
        x to the right and y down. NaN where no face is found.
        """
        ...


class Relief(NamedTuple):
    """What the depth of frontal faces says; NaN where no face has enough solid parts."""

    convexity: float  # share of the found faces whose nose is nearer than both eyes and both cheeks
    nose_height: float  # mean height of the nose over the plane of the other parts, world units


@torch.no_grad()
def relief(subjects: Subjects, predictor: Predictor | None) -> Relief | None:
    """The relief of the faces that are found in frontal images; None if the predictor finds none.

    The height under a landmark is that of the solid pixels around it. A part that is not solid is
    not behind the nose, so that a nose that floats alone is not convex.

    Raises:
        UserError: if the landmarks have a wrong shape.
    """
    find = getattr(predictor, "landmarks", None)
    if find is None:
        return None
    front = subjects.from_angles(0.0)
    points = find(front.out.image)
    shape = (subjects.count, len(LANDMARKS), 2)
    if not isinstance(points, Tensor) or points.shape != shape:
        fault = f"landmarks must return a tensor of {shape} for {subjects.count} images"
        raise UserError(f"predictor: {fault}")
    points = points.to(front.out.depth)
    found = points.isfinite().all(dim=(1, 2))
    grid, solid = points.nan_to_num()[:, None], front.solid.to(points)
    heights = sample_image(front.heights * solid, grid) / sample_image(solid, grid)
    heights = heights[:, 0, 0].where(found[:, None], torch.nan)
    convex = (heights[:, :1] > heights[:, _BEHIND]).all(dim=1)
    whole = heights.isfinite().all(dim=1)
    above = _above_plane(points[whole].cpu(), heights[whole].cpu())
    return Relief(float(convex[found].float().mean()), float(above.mean()))


def _above_plane(
    points: Float[Tensor, "face part 2"], heights: Float[Tensor, "face part"]
) -> Float[Tensor, " face"]:
    """Height of the first part over the plane that fits the others best."""
    base = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).double()
    plane = torch.linalg.pinv(base[:, 1:]) @ heights[:, 1:, None].double()
    return heights[:, 0].double() - (base[:, :1] @ plane)[:, 0, 0]
