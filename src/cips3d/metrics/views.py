"""Subjects that metrics look at from any camera: generated ones, or the embedded heads themselves, which are the measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution
from cips3d.heads import SyntheticHeads
from cips3d.heads.dataset import FAR_DEPTH
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, RenderOutput, Sampling

#: A point is hidden where the other camera sees something nearer by more than this, world units.
HIDDEN = 0.01
#: Generated subjects that are rendered together: of more, few rays each fit a chunk, and every chunk modulates all weights.
_AT_ONCE = 8


@dataclass(frozen=True)
class View:
    """Pictures of all subjects and the cameras that took them."""

    out: RenderOutput
    camera: Camera

    @property
    def solid(self) -> Bool[Tensor, "batch 1 height width"]:
        """Where the subject is."""
        return self.out.solid

    @property
    def inner(self) -> Bool[Tensor, "batch 1 height width"]:
        """Solid pixels without an empty neighbour, whose colours hold nothing of the background's."""
        return F.max_pool2d(1 - self.solid.to(self.out.depth), 3, 1, 1) < 0.5

    @property
    def points(self) -> Float[Tensor, "batch pixels 3"]:
        """Where each pixel's ray ends at its depth, row by row; world."""
        height, width = self.out.depth.shape[2:]
        rays = self.camera.rays(height, width)
        return rays.origins + self.out.depth.flatten(1)[..., None] * rays.directions

    @property
    def depth_from_centre(self) -> Float[Tensor, "batch 1 height width"]:
        """Depth less the camera's distance from the origin, which makes views from any distance comparable; world units."""
        return self.out.depth - self.camera.position.norm(dim=-1)[:, None, None, None]


@dataclass(frozen=True)
class Subjects:
    """So many subjects, and how to see them.

    Attributes:
        count: of them.
        poses: the prior of the cameras that they were learned from.
        extent: half depth of the volume that they lie in, world units.
        show: takes one camera for each and renders them.
    """

    count: int
    poses: PoseDistribution
    extent: float
    show: Callable[[Camera], RenderOutput]

    @staticmethod
    def generated(
        generator: ImageGenerator,
        latents: Latents,
        resolution: int,
        psi: float = 1.0,
        sampling: Sampling | None = None,
    ) -> Subjects:
        """Those that a generator makes of these latents."""

        def show(camera: Camera) -> RenderOutput:
            pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(latents), _AT_ONCE)]
            outs = [
                generator.render(latents[i], camera[i], resolution, psi=psi, sampling=sampling)
                for i in pieces
            ]
            out = RenderOutput(
                *(
                    torch.cat([getattr(out, field.name) for out in outs])
                    for field in fields(RenderOutput)
                )
            )
            return replace(out, image=out.image.clamp(-1, 1), aux_image=out.aux_image.clamp(-1, 1))

        config = generator.config
        return Subjects(len(latents), config.poses, config.networks.extent, show)

    @staticmethod
    def true(
        heads: SyntheticHeads, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> Subjects:
        """Heads of the embedded dataset, at its resolution, as pictures on a device."""

        def show(camera: Camera) -> RenderOutput:
            batch = heads.render(indices, camera)
            image, opacity = (
                batch.images.to(device).float() / 127.5 - 1,
                batch.mask.to(device).float(),
            )
            return RenderOutput(
                image, image, batch.depth.to(device), opacity, torch.zeros_like(opacity)
            )

        return Subjects(len(indices), heads.poses, FAR_DEPTH - 1, show)

    def at(self, yaw: float, pitch: float = 0.0) -> View:
        """All of them from one side, radians away from the prior's mean."""
        yaws = torch.full((self.count,), self.poses.yaw_mean + yaw)
        return self.seen(self.poses.at(yaws, self.poses.pitch_mean + pitch))

    def from_prior(self, seed: int) -> View:
        """Each from a random camera of the prior."""
        return self.seen(self.poses.sample(self.count, torch.Generator().manual_seed(seed)))

    @torch.no_grad()
    def seen(self, camera: Camera) -> View:
        """Each from its own camera."""
        out = self.show(camera)
        return View(out, camera.to(out.depth))


def warped(
    source: View, target: View
) -> tuple[Float[Tensor, "batch 3 height width"], Bool[Tensor, "batch 1 height width"]]:
    """The target's pictures as the source's colours and the target's depth would have them, and where that can be told.

    Each target pixel's surface point is looked up in the source's picture (bilinearly). It can be told where target and source
    are solid and nothing stands before the point in the source's view.
    """
    height, width = target.out.depth.shape[2:]
    place, distance = source.camera.project(target.points)
    grid = (place * place.new_tensor([height / width, 1.0])).unflatten(1, (height, width))
    sampled = partial(looked_up, grid=grid)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None]
    free = distance.view_as(target.out.depth) <= sampled(source.out.depth, mode="nearest") + HIDDEN
    # a colour mixed with the background's would be no fault of the depth
    solid = sampled(source.inner.to(source.out.depth), mode="nearest") > 0.5
    return sampled(source.out.image), target.solid & solid & inside & free


def looked_up(
    picture: Float[Tensor, "batch channels height width"],
    grid: Float[Tensor, "batch rows columns 2"],
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "batch channels rows columns"]:
    """The picture at places of `torch.nn.functional.grid_sample`; beyond its edge what is on the edge."""
    size = torch.tensor(picture.shape[:1:-1]).to(grid)  # width, height
    edge = 1 - 1 / size
    # not the mode "border", which Apple's GPUs have from torch 2.13 on
    return F.grid_sample(picture, grid.clamp(-edge, edge), mode, "zeros", align_corners=False)


def mean_difference(
    a: Float[Tensor, "batch 3 height width"],
    b: Float[Tensor, "batch 3 height width"],
    where: Bool[Tensor, "batch 1 height width"],
) -> Float[Tensor, " batch"]:
    """Mean absolute difference of each pair of pictures over some pixels; NaN where there are none."""
    total = ((a - b).abs().mean(dim=1, keepdim=True) * where).sum(dim=(1, 2, 3))
    return total / where.sum(dim=(1, 2, 3))


def angle_between(
    yaw: Tensor, pitch: Tensor, other_yaw: Tensor, other_pitch: Tensor
) -> Float[Tensor, " batch"]:
    """The angle between two directions that cameras look from, degrees."""
    cosine = (
        pitch.sin() * other_pitch.sin() + pitch.cos() * other_pitch.cos() * (yaw - other_yaw).cos()
    )
    return cosine.clamp(-1, 1).acos() * (180 / math.pi)
