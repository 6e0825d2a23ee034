"""Mirror symmetry: do a generator's pictures flip as the camera passes the frontal view (paper Section 3.3, Fig. 5)?"""

from __future__ import annotations

import torch

from cips3d.camera import Camera
from cips3d.models.generator import Generator
from cips3d.models.records import Latents, Sampling

#: Half the yaw, in radians, between the two views that are compared.
DELTA = 0.13
#: Yaws in radians, away from the frontal one, around which views are compared as well.
OFF_FRONTAL = (-0.39, -0.26, 0.26, 0.39)


@torch.no_grad()
def mirror_jump(generator: Generator, latents: Latents, resolution: int, sampling: Sampling | None = None) -> float:
    """d(I(−δ), I(+δ)) over the mean of d(I(θ−δ), I(θ+δ)) at off-frontal yaws θ, with d the mean absolute difference.

    About 1 where subjects turn evenly; far above 1 where the picture flips as the camera passes the frontal view.

    Args:
        latents: the subjects.
        resolution: side of the pictures, pixels.
    """
    poses = generator.config.poses

    def change(yaw: float) -> float:
        sides = [
            generator.render(latents, Camera.orbit(yaw + d, 0.0, poses.radius, poses.fov), resolution, sampling=sampling).image
            for d in (-DELTA, DELTA)
        ]
        return float((sides[0] - sides[1]).abs().mean())

    usual = sum(change(yaw) for yaw in OFF_FRONTAL) / len(OFF_FRONTAL)
    return change(0.0) / usual if usual > 0 else 1.0
