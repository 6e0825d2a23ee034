"""Inversion: the camera, styles and tuned network that show a given image (future work in the
paper's Section 5).

Each step starts from the result of the one before:

1. "w": starts from several cameras, each with the most similar of many random subjects. Camera,
   w_s and one w_a are fitted together, first on small images; the best hypothesis continues alone.
   Styles move in coordinates in which random ones are standard normal, and are drawn to their
   centre, so that the subject remains one that the model knows from all sides.
2. "w+": a w_a for each block of the implicit network (Abdal et al. 2019).
3. "tuned": the weights of the implicit network (`cips3d.editing.tuning`). The radiance field stays,
   so the result can be blended with every model that shares it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Camera
from cips3d.editing.similarity import Distance, default_distance, pixel_distance
from cips3d.editing.style_space import MAX_PITCH, Hypotheses, StyleSpace
from cips3d.editing.target import InversionConfig, Target, image_tensor
from cips3d.editing.tuning import tune
from cips3d.errors import UserError
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Styles

Space = Literal["w", "w+", "tuned"]
SPACES: tuple[Space, ...] = ("w", "w+", "tuned")

#: Random subjects that every start camera chooses from.
_BANK = 48
#: Default start cameras: yaws in standard deviations of the prior (half widths of a uniform one).
_START_YAWS = (-1.0, -0.5, 0.0, 0.5, 1.0)
#: Largest side of the small images that step 1 begins with.
_SMALL = 32


@dataclass(frozen=True)
class Inversion:
    """The subject and camera of an image."""

    camera: Camera
    styles: Styles
    generator: Generator
    """the model; after "tuned" with its own implicit network"""
    loss: float
    """distance of colours and weighted features to the image, in units of [-1, 1]"""
    earlier: tuple[Inversion, ...] = ()
    """results of the earlier steps, "w" first"""


def invert(
    generator: ImageGenerator,
    image: Any,
    space: Space = "tuned",
    *,
    start: Camera | None = None,
    features: Distance | None = None,
    discriminator: ProgressiveDiscriminator | None = None,
    config: InversionConfig | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Inversion:
    """Finds the subject and the camera of an image.

    Args:
        generator: a model of architecture cips-3d; it is not changed.
        image: framed like the training images; resized to the model's resolution. A path, a PIL
            image or an array (height, width, 3) of uint8, of which the central square is used; or a
            square image with colours in [-1, 1]: an array of floats, or a tensor
            (1, 3, side, side).
        space: the last step, see the module.
        start: cameras to start from, such as a pose network's. Default: the camera that the
            discriminator predicts, if it predicts poses, or several of the prior.
        features: distance of features (see `cips3d.editing.similarity`). Default: the
            discriminator's; without one LPIPS if it is installed, or colours alone.
        discriminator: the one that the generator was trained with.
        config: numbers of steps and weights.
        seed: of all random draws.
        progress: called after every step with the share that is done, in [0, 1], and the space.

    Raises:
        UserError: if the image is not one of these, or the generator has another architecture.
    """
    config = config or InversionConfig()
    if not isinstance(generator, Generator):
        raise UserError(
            f"model: a {generator.config.networks.architecture} cannot be inverted; "
            "give one of architecture cips-3d"
        )
    pixels = image_tensor(image, generator)
    if features is None and config.feature_weight:
        features = default_distance(discriminator, pixels.device, pixels.shape[-1])
    target = Target(generator, pixels, features, config)
    draws = torch.Generator().manual_seed(seed)
    done, total = itertools.count(1), sum(config.steps[: 2 + SPACES.index(space)])

    def after_step(current: Space) -> None:
        if progress is not None:
            progress(next(done) / total, current)

    cameras, small = _start_cameras(target, start, discriminator), min(_SMALL, target.side)
    found = nearest_subjects(target, StyleSpace(generator, draws), cameras, draws)
    found = fit(target, found, config.steps[0], small, 1.0, partial(after_step, "w"))
    found = found[losses(target, found, small).argmin()[None]]
    found = fit(target, found, config.steps[1], target.side, 0.5, partial(after_step, "w"))
    results = [_result(target, generator, found)]
    if space != "w":
        after = partial(after_step, "w+")
        found = fit(target, found.per_block(), config.steps[2], target.side, 0.5, after)
        results.append(_result(target, generator, found))
    if space == "tuned":
        after = partial(after_step, "tuned")
        tuned = tune(target, found.camera(), found.styles(), draws, after)
        results.append(_result(target, tuned, found))
    return replace(results[-1], earlier=tuple(results[:-1]))


def _start_cameras(
    target: Target, start: Camera | None, discriminator: ProgressiveDiscriminator | None
) -> Camera:
    poses = target.generator.config.poses
    if start is not None:
        return start.to(target.image)
    with torch.no_grad():
        angles = None if discriminator is None else discriminator.predicted_poses(target.image)
    if angles is not None:  # it has learned them from the generator's own cameras
        yaw, pitch = angles.unbind(-1)
        return poses.at(yaw, pitch.clamp(-MAX_PITCH, MAX_PITCH))
    yaws = target.image.new_tensor([poses.yaw_mean + poses.yaw_std * x for x in _START_YAWS])
    return poses.at(yaws, poses.pitch_mean)


@torch.no_grad()
def nearest_subjects(
    target: Target, space: StyleSpace, cameras: Camera, draws: torch.Generator
) -> Hypotheses:
    """For each camera the random subject that is most similar to the target."""
    generator, side = target.generator, min(_SMALL, target.side)
    small = F.interpolate(target.image, (side, side), mode="area")
    bank = generator.map(generator.sample_latents(_BANK, draws), 0.7)
    chosen = []
    for camera in cameras:
        images = generator.render(bank, camera, side).image
        chosen.append(int(pixel_distance(images, small.expand_as(images)).argmin()))
    assert isinstance(bank.appearance, Tensor)
    shape = space.shape.coordinates(bank.shape)[chosen]
    appearance = space.appearance.coordinates(bank.appearance)[chosen]
    return Hypotheses(*cameras.yaw_pitch(), shape, appearance[:, None], space)


def fit(
    target: Target,
    found: Hypotheses,
    steps: int,
    side: int,
    rate: float,
    after_step: Callable[[], None],
) -> Hypotheses:
    """The hypotheses, fitted independently of each other with Adam and a cosine schedule.

    Args:
        side: of the rendered images, pixels.
        rate: factor of the configuration's learning rates.
    """
    found = found.map(lambda x: x.detach().clone().requires_grad_())
    styles, angles = [found.shape, found.appearance], [found.yaw, found.pitch]
    groups = [
        {"params": styles, "lr": target.config.style_rate * rate},
        {"params": angles, "lr": target.config.camera_rate * rate},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses(target, found, side).sum().backward(inputs=[*styles, *angles])
        optimizer.step()
        schedule.step()
        after_step()
    return found.map(Tensor.detach)


def losses(target: Target, found: Hypotheses, side: int) -> Float[Tensor, " hypotheses"]:
    """Distance to the target and penalties of unusual codes, at `side` pixels."""
    loss = target.distance(target.render(found.styles(), found.camera(), side))
    loss = loss + target.config.prior_weight * found.prior_penalty()
    return loss + target.config.spread_weight * found.spread_penalty()


@torch.no_grad()
def _result(target: Target, generator: Generator, found: Hypotheses) -> Inversion:
    camera, styles = found.camera(), found.styles()
    image = generator.render(styles, camera, target.side).image
    return Inversion(camera, styles, generator, float(target.distance(image)))
