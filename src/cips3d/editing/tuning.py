"""Pivotal tuning (Roich et al. 2022) of the implicit network, with targets for other views.

Colours alone would spoil the sides that the image does not show. So random other views have
targets as well (after Yin et al. 2023): a surface that the image shows changes as it does there; a
surface that only the mirrored image shows changes as in that one; the rest stays as it was. The
mirrored image passes on its change, not its colours, whose light would come from the wrong side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cips3d.camera import Camera, Rays
from cips3d.editing.target import Target
from cips3d.metrics.views import HIDDEN, View, sample_image
from cips3d.models.generator import Generator
from cips3d.models.nerf import FieldOutput
from cips3d.models.rays import chunks
from cips3d.models.types import SOLID, Styles

#: Random cameras that the rays of other views come from.
_CAMERAS = 64


def tune(
    target: Target,
    camera: Camera,
    styles: Styles,
    draws: torch.Generator,
    after_step: Callable[[], None],
) -> Generator:
    """A copy of the generator whose implicit network is fitted to the target image.

    So is the background "field". Nothing else changes, so the radiance field is rendered once, and
    a step runs these networks alone. The camera and styles stay as they are; `draws` choose the
    rays of other views.
    """
    generator = copy.deepcopy(target.generator)
    generator.record = None  # which is of other weights
    fitted = [x for x in (generator.inr, generator.surroundings) if x is not None]
    parameters = [p for x in fitted for p in x.requires_grad_(True).parameters()]
    steps = target.config.steps[3]
    optimizer = torch.optim.Adam(parameters, lr=target.config.tuning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    rays, side = random_rays(target, draws), target.side
    others, wanted, weights = other_views(target, camera, styles, rays)
    image_rays = camera.to(target.image).rays(side, side)
    here = rendered_features(target.generator, styles, image_rays)
    rays, field = Rays.cat([image_rays, rays]), _joined([here, others])
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        colors = _colors(target, generator, styles, rays, field)
        image, elsewhere = colors.split(side * side, dim=1)
        loss = target.distance(image.transpose(1, 2).unflatten(2, (side, side))).sum()
        loss = loss + (weights * (elsewhere - wanted).abs().mean(dim=2)).mean()
        loss.backward(inputs=parameters)
        optimizer.step()
        schedule.step()
        after_step()
    return generator.requires_grad_(False)


@torch.no_grad()
def other_views(
    target: Target, camera: Camera, styles: Styles, rays: Rays
) -> tuple[FieldOutput, Float[Tensor, "1 rays 3"], Float[Tensor, "1 rays"]]:
    """Rendered features, target colours and weights of rays from other cameras; see the module.

    The background changes by the median of the image's. If it were free, parts of the subject
    would turn into background where the shape is too small for the image.
    """
    generator = target.generator
    field = rendered_features(generator, styles, rays)
    view = View(generator.render(styles, camera, target.side), camera.to(target.image))
    points = rays.at(field.depth[..., None])[:, :, 0]
    own, shown = _change_at(target, points, view)
    reflected = _reflected(points, generator.config.poses.yaw_mean)
    other, mirrored = _change_at(target, reflected, view)
    mirrored = mirrored & ~shown & (target.config.mirror_weight > 0)
    change = own * shown[..., None] + other * mirrored[..., None]
    behind = (target.image - view.out.image).transpose(0, 1)[:, ~view.solid[:, 0]]
    if behind.shape[1]:
        solid = field.opacity - field.last_weight > SOLID
        change = torch.where(solid[..., None], change, behind.median(dim=1).values)
    mirror_weight, keep_weight = target.config.mirror_weight, target.config.keep_weight
    weights = torch.where(mirrored, mirror_weight, keep_weight).masked_fill(shown, 1.0)
    return field, _colors(target, generator, styles, rays, field) + change, weights


def _change_at(
    target: Target, points: Float[Tensor, "1 n 3"], view: View
) -> tuple[Float[Tensor, "1 n 3"], Bool[Tensor, "1 n"]]:
    """Difference of the target from its rendering at world points, and which ones `view` shows."""
    place, distance = view.camera.project(points)

    def lookup(image: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
        return sample_image(image, place[:, None], mode)[:, :, 0].transpose(1, 2)

    near = (distance - lookup(view.out.depth, "nearest")[..., 0]).abs() < HIDDEN
    interior = lookup(view.interior.to(points), "nearest")[..., 0] > 0.5
    shown = near & interior & (place.abs() <= 1).all(dim=-1)
    return lookup(target.image - view.out.image, "bilinear"), shown


def _reflected(points: Float[Tensor, "batch n 3"], front: float) -> Float[Tensor, "batch n 3"]:
    """The points mirrored left to right, at the vertical plane of cameras at the yaw `front`.

    The prior's mean is the front of the subjects, also where learned cameras have turned both.
    """
    normal = points.new_tensor([math.cos(front), 0.0, -math.sin(front)])
    return points - 2 * (points @ normal)[..., None] * normal


def random_rays(target: Target, draws: torch.Generator) -> Rays:
    """As many rays as the image has pixels, each pixel from one of many random cameras."""
    side = target.side
    cameras = target.generator.config.poses.sample(_CAMERAS, draws).to(target.image)
    pixels = torch.randperm(side**2, generator=draws, device=draws.device)
    pixels = pixels.to(target.image.device)
    rays = (camera.rays(side, side) for camera in cameras)
    return Rays.cat([each[pixels[i::_CAMERAS]] for i, each in enumerate(rays)])


@torch.no_grad()
def rendered_features(generator: Generator, styles: Styles, rays: Rays) -> FieldOutput:
    """What the radiance field renders, with the background."""
    sampling = generator.sampling
    size = generator.default_chunk(1, sampling)
    return _joined(
        [
            generator.render_features(styles.shape, rays[part], sampling)
            for part in chunks(rays.count, size)
        ]
    )


def _joined(parts: list[FieldOutput]) -> FieldOutput:
    """The rays of all parts."""
    return FieldOutput(*(torch.cat(x, dim=1) for x in zip(*parts, strict=True)))


def _colors(
    target: Target, generator: Generator, styles: Styles, rays: Rays, field: FieldOutput
) -> Float[Tensor, "1 rays 3"]:
    """The image's colours from rendered features, checkpointed in chunks where memory is short."""
    chunk = target.chunk(1)

    def painted(part: slice) -> Tensor:
        feature, opacity = field.feature[:, part], field.opacity[:, part]
        rgb = generator.inr(generator.in_sight(feature, opacity), styles.appearance)
        return generator.in_front(rgb, rgb, opacity, styles, rays[part])[0]

    if chunk >= rays.count:
        return painted(slice(None))
    again = partial(checkpoint, painted, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(part) for part in chunks(rays.count, chunk)], dim=1)
