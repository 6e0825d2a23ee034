"""Views of generated subjects and of true ones, which geometry and consistency are measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution
from cips3d.data.protocol import Truth
from cips3d.models.protocol import ImageGenerator
from cips3d.models.rays import chunks
from cips3d.models.types import Latents, RenderOutput, Sampling

Images = Float[Tensor, "batch 3 height width"]
Mask = Bool[Tensor, "batch 1 height width"]
#: Yaw and pitch.
Angles = tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
#: A point is hidden where the other camera sees something nearer by more than this, world units.
HIDDEN = 0.01
#: Subjects per render call. With more, a chunk holds few rays of each, and every chunk modulates
#: the weights of all of them.
_BATCH = 8


@dataclass(frozen=True)
class View:
    """Images of all subjects, with depth, and the cameras that took them."""

    out: RenderOutput
    camera: Camera

    @property
    def solid(self) -> Mask:
        """Where the subject is."""
        return self.out.solid

    @property
    def interior(self) -> Mask:
        """Solid pixels without an empty neighbour, so that no background is mixed in."""
        return F.max_pool2d(1 - self.solid.to(self.out.depth), 3, 1, 1) < 0.5

    @property
    def points(self) -> Float[Tensor, "batch pixels 3"]:
        """World point at the depth of each pixel, row by row."""
        height, width = self.out.depth.shape[2:]
        rays = self.camera.rays(height, width)
        return rays.origins + self.out.depth.flatten(1)[..., None] * rays.directions

    @property
    def heights(self) -> Float[Tensor, "batch 1 height width"]:
        """How far each pixel's surface point lies from the origin towards the camera, world units.

        Along the camera's axis: the same everywhere on a plane that faces the camera.
        """
        axis = F.normalize(self.camera.position, dim=-1)
        return (self.points * axis[:, None]).sum(dim=-1).view_as(self.out.depth)

    @property
    def centred_depth(self) -> Float[Tensor, "batch 1 height width"]:
        """Depth minus the camera's distance from the origin, world units."""
        return self.out.depth - self.camera.position.norm(dim=-1)[:, None, None, None]


@dataclass(frozen=True)
class Subjects:
    """A fixed set of subjects that can be rendered from any cameras."""

    count: int
    poses: PoseDistribution  # the camera prior that they were learned from
    extent: float  # half depth of the volume that contains them, world units
    render: Callable[[Camera], RenderOutput]  # of all subjects, given one camera for each

    @staticmethod
    def generated(
        generator: ImageGenerator,
        latents: Latents,
        resolution: int,
        psi: float = 1.0,
        sampling: Sampling | None = None,
    ) -> Subjects:
        """The subjects that a generator makes of the latents."""

        def render(camera: Camera) -> RenderOutput:
            parts = [(latents[part], camera[part]) for part in chunks(len(latents), _BATCH)]
            options = {"psi": psi, "sampling": sampling}
            out = RenderOutput.cat([generator.render(*p, resolution, **options) for p in parts])
            return replace(out, image=out.image.clamp(-1, 1), aux_image=out.aux_image.clamp(-1, 1))

        config = generator.config
        return Subjects(len(latents), config.poses, config.networks.extent, render)

    @staticmethod
    def true(
        truth: Truth,
        indices: Sequence[int],
        resolution: int,
        device: torch.device | str = "cpu",
        *,
        unseen: bool = False,
        colours_of: Sequence[int] | None = None,
    ) -> Subjects:
        """The dataset's own subjects; see `Truth.render`."""
        options: dict[str, Any] = {"unseen": unseen, "colours_of": colours_of, "device": device}
        render = partial(truth.render, indices, resolution=resolution, **options)
        return Subjects(len(indices), truth.poses, truth.extent, render)

    def from_angles(self, yaw: float, pitch: float = 0.0) -> View:
        """All subjects from one direction, in radians from the prior's mean."""
        yaws = torch.full((self.count,), self.poses.yaw_mean + yaw)
        return self.from_cameras(self.poses.at(yaws, self.poses.pitch_mean + pitch))

    def from_prior(self, seed: int) -> View:
        """Each subject from a random camera of the prior."""
        draws = torch.Generator().manual_seed(seed)
        return self.from_cameras(self.poses.sample(self.count, draws))

    @torch.no_grad()
    def from_cameras(self, camera: Camera) -> View:
        """Each subject from its own camera."""
        out = self.render(camera)
        return View(out, camera.to(out.depth))


def warp(source: View, target: View) -> tuple[Images, Mask]:
    """The source's image warped to the target's camera by the target's depth, and its valid pixels.

    Each target pixel's surface point is looked up in the source's image (bilinearly). A pixel is
    valid if it is solid in both views and visible to the source's camera.
    """
    height, width = target.out.depth.shape[2:]
    place, distance = source.camera.project(target.points)
    grid = (place * place.new_tensor([height / width, 1.0])).unflatten(1, (height, width))
    lookup = partial(sample_image, grid=grid)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None]
    nearest = lookup(source.out.depth, mode="nearest")
    visible = distance.view_as(target.out.depth) <= nearest + HIDDEN
    # the mixed colours of a silhouette say nothing about depth
    solid = lookup(source.interior.to(source.out.depth), mode="nearest") > 0.5
    return lookup(source.out.image), target.solid & solid & inside & visible


def sample_image(image: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of an image (B, C, H, W) at `grid` (B, h, w, 2), with the edge's values beyond it."""
    size = grid.new_tensor(image.shape[:1:-1])  # width, height
    edge = 1 - 1 / size
    # Apple's GPUs lack grid_sample's own border mode before torch 2.13
    return F.grid_sample(image, grid.clamp(-edge, edge), mode, "zeros", align_corners=False)


def mean_difference(a: Images, b: Images, where: Mask) -> Float[Tensor, " batch"]:
    """Mean absolute difference of each pair of images over the pixels `where`; NaN without any."""
    total = ((a - b).abs().mean(dim=1, keepdim=True) * where).sum(dim=(1, 2, 3))
    return total / where.sum(dim=(1, 2, 3))


def angle_between(yaw: Tensor, pitch: Tensor, yaw2: Tensor, pitch2: Tensor) -> Tensor:
    """(B,) angles between two viewing directions, in degrees; arguments in radians."""
    cosine = pitch.sin() * pitch2.sin() + pitch.cos() * pitch2.cos() * (yaw - yaw2).cos()
    return cosine.clamp(-1, 1).acos() * (180 / math.pi)
