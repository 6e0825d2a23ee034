"""Inversion: the camera, the styles and the tuned network that show a given picture (the future work of the paper's Section 5).

Three steps, each of which starts from the last one's result:

1. "w": several cameras at once, each with the most alike of many random subjects; camera, w_s and one w_a are fitted together,
   first on small pictures, and the most alike goes on alone. Styles move in the coordinates in which random ones are standard
   normal, and are drawn to their centre, so that the subject stays one that the model knows from all sides.
2. "w+": a w_a for each block of the implicit network (Abdal et al. 2019).
3. "tuned": the weights of the implicit network (pivotal tuning, Roich et al. 2022). The radiance field stays, so the result can
   be blended with every model that shares it. From random cameras, what the picture shows is to change as it does there, and
   the surface that only its mirrored picture shows as in that one (after Yin et al. 2023): the mirrored change, not the
   mirrored colours, whose light would come from the wrong side. The rest of the subject is held to what it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.editing.similarity import Distance, pixel_distance, usual_distance
from cips3d.errors import UserError
from cips3d.metrics.views import HIDDEN, View, looked_up
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import SOLID, RenderOutput, Styles
from cips3d.models import rays as ray_choices
from cips3d.models.cost import automatic_chunk, device_memory

Space = Literal["w", "w+", "tuned"]
SPACES: tuple[Space, ...] = ("w", "w+", "tuned")

#: Random subjects that every start camera chooses from, and cameras that are tried where none is given, as yaws of the prior in
#: standard deviations (of a uniform prior: half widths).
_BANK, _START_YAWS = 48, (-1.0, -0.5, 0.0, 0.5, 1.0)
#: Side of the small pictures that step 1 begins with, at most.
_SMALL = 32
#: Random styles whose mean and covariance make the coordinates of step 1.
_STATISTICS = 4096
#: Random cameras, some pixels of each of which tuning looks at besides the picture's.
_CAMERAS = 64


@dataclass(frozen=True)
class InversionConfig:
    """How much is done, and what counts. Weights are relative to colours' distance in units of [-1, 1]."""

    steps: tuple[int, int, int, int] = (60, 140, 40, 300)
    """of each kind: small pictures from all start cameras; the best of them at full size; w+; tuning"""
    style_rate: float = 0.08
    """of Adam, for styles in standard deviations"""
    camera_rate: float = 0.015
    """radians"""
    tuning_rate: float = 2e-3
    """of Adam, falling as a cosine"""
    feature_weight: float = 0.5
    """of the features' distance"""
    prior_weight: float = 0.01
    """of the mean square of the styles in standard deviations, and of the camera's under its prior"""
    spread_weight: float = 0.02
    """of the mean square of the difference between blocks' styles in w+"""
    keep_weight: float = 0.3
    """of the difference that tuning makes to surfaces that neither the picture nor its mirror image shows"""
    mirror_weight: float = 0.3
    """of the difference between surfaces that only the mirrored picture shows and what they would be with its change; 0 for
    subjects whose sides differ, which are then held to what they were"""


@dataclass(frozen=True)
class Inversion:
    """What a picture came to.

    Attributes:
        camera: that it was taken with.
        styles: of its subject.
        generator: the model, with a tuned implicit network after "tuned".
        loss: distance to the picture, of colours and weighted features, in units of [-1, 1].
        earlier: what the steps before came to, "w" first.
    """

    camera: Camera
    styles: Styles
    generator: Generator
    loss: float
    earlier: tuple[Inversion, ...] = ()


def invert(
    generator: ImageGenerator,
    image: Tensor,
    space: Space = "tuned",
    *,
    start: Camera | None = None,
    features: Distance | None = None,
    discriminator: ProgressiveDiscriminator | None = None,
    config: InversionConfig | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Inversion:
    """Finds the subject of a picture and the camera that it was taken with.

    Args:
        generator: a cips-3d; it is left as it is.
        image: (1, 3, side, side) colours in [-1, 1], framed as those that the model was trained on; compared at the model's
            resolution.
        space: how far to go (see above).
        start: cameras to start from, such as a pose network's; by default the one that the discriminator sees, if it tells
            poses, or several of the prior.
        features: distance of features (see `cips3d.editing.similarity`); by default of the discriminator's, without one LPIPS
            if it is installed, without that colours alone count.
        discriminator: that the generator was trained against.
        config: how much is done.
        seed: of all draws.
        progress: called with the share that is done, in [0, 1], and the step's name.

    Raises:
        UserError: if the picture is not one square picture of finite colours in about [-1, 1], or the generator has no implicit
            network or no density.
    """
    config = config or InversionConfig()
    generator, target = _checked(generator, image)
    if features is None and config.feature_weight:
        features = usual_distance(discriminator, target.device, target.shape[-1])
    work = _Work(
        generator, target, features, config, torch.Generator().manual_seed(seed), space, progress
    )
    codes = work.fitted(
        work.first_codes(_start_cameras(generator, target, start, discriminator)), 0
    )
    codes = work.fitted(codes.best(work.losses(codes, small=True)), 1)
    found = work.result(codes)
    if space != "w":
        codes = work.fitted(codes.by_block(), 2)
        found = replace(work.result(codes), earlier=(found,))
    if space == "tuned":
        found = replace(work.tuned(codes), earlier=(*found.earlier, replace(found, earlier=())))
    return found


class _Codes(nn.Module):
    """Cameras and styles of several hypotheses, as what is fitted: angles, and styles in standard deviations.

    Args:
        yaw, pitch: (K,) radians.
        shape, appearance: (K, ws) and (K, blocks, wa); one block for all of them in "w".
    """

    def __init__(
        self, space: _StyleSpace, yaw: Tensor, pitch: Tensor, shape: Tensor, appearance: Tensor
    ) -> None:
        super().__init__()
        self.space = space
        self.yaw, self.pitch = nn.Parameter(yaw), nn.Parameter(pitch)
        self.shape, self.appearance = nn.Parameter(shape), nn.Parameter(appearance)

    def camera(self) -> Camera:
        return self.space.poses.at(self.yaw, self.pitch.clamp(-1.5, 1.5))

    def styles(self) -> Styles:
        w = self.space.appearance.styles(self.appearance)
        return Styles(
            self.space.shape.styles(self.shape), w[:, 0] if w.shape[1] == 1 else list(w.unbind(1))
        )

    @torch.no_grad()
    def fixed(self) -> tuple[Camera, Styles]:
        """Both as they are now."""
        return self.camera(), self.styles()

    def best(self, losses: Float[Tensor, " hypotheses"]) -> _Codes:
        """The hypothesis of the smallest loss alone."""
        index = losses.argmin()[None]
        return _Codes(
            self.space,
            *(
                p.detach()[index].clone()
                for p in (self.yaw, self.pitch, self.shape, self.appearance)
            ),
        )

    def by_block(self) -> _Codes:
        """The same styles, to be fitted for each block."""
        yaw, pitch, shape, appearance = (
            p.detach().clone() for p in (self.yaw, self.pitch, self.shape, self.appearance)
        )
        return _Codes(
            self.space, yaw, pitch, shape, appearance.expand(-1, self.space.blocks, -1).clone()
        )

    def prior(self) -> Float[Tensor, " hypotheses"]:
        """How far camera and styles are from the usual: mean squares in standard deviations."""
        poses = self.space.poses
        camera = torch.zeros_like(self.yaw)
        if poses.kind == "gaussian" and min(poses.yaw_std, poses.pitch_std) > 0:
            yaw, pitch = (
                (self.yaw - poses.yaw_mean) / poses.yaw_std,
                (self.pitch - poses.pitch_mean) / poses.pitch_std,
            )
            camera = yaw.square() + pitch.square()
        return camera + self.shape.square().mean(dim=1) + self.appearance.square().mean(dim=(1, 2))

    def spread(self) -> Float[Tensor, " hypotheses"]:
        """Mean squared difference of blocks' styles from their mean, in standard deviations."""
        return (
            (self.appearance - self.appearance.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))
        )


class _StyleSpace:
    """Coordinates of styles in which random ones are standard normal: w = w̄ + u·L, with L Lᵀ their covariance."""

    def __init__(self, generator: Generator, draws: torch.Generator) -> None:
        self.poses: PoseDistribution = generator.config.poses
        self.blocks = generator.style_blocks
        with torch.no_grad():
            styles = generator.map(generator.sample_latents(_STATISTICS, draws))
        assert isinstance(styles.appearance, Tensor)
        self.shape, self.appearance = _Normal(styles.shape), _Normal(styles.appearance)


class _Normal:
    """A normal distribution fitted to samples, its smallest variances raised so that the map can be inverted."""

    def __init__(self, samples: Float[Tensor, "count width"]) -> None:
        self.mean = samples.mean(dim=0)
        values, vectors = torch.linalg.eigh(
            torch.cov(samples.T.cpu().double())
        )  # Apple's GPUs have no float64
        deviations = values.clamp(min=float(values.max()) * 1e-4).sqrt()
        self.matrix = (vectors * deviations).T.to(samples)
        self.inverse = (vectors / deviations).to(samples)

    def styles(self, u: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.mean + u @ self.matrix

    def coordinates(self, w: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return (w - self.mean) @ self.inverse


class _Work:
    """One picture's inversion: what all its steps need."""

    def __init__(
        self,
        generator: Generator,
        target: Float[Tensor, "1 3 side side"],
        features: Distance | None,
        config: InversionConfig,
        draws: torch.Generator,
        space: Space,
        progress: Callable[[float, str], None] | None,
    ) -> None:
        self.generator, self.target, self.features, self.config, self.draws = (
            generator,
            target,
            features,
            config,
            draws,
        )
        self.space = _StyleSpace(generator, draws)
        self.done, self.of = 0, sum(config.steps[: 2 + SPACES.index(space)])
        self.progress = progress

    # ---------------------------------------------------------------- step 1 and 2
    @torch.no_grad()
    def first_codes(self, cameras: Camera) -> _Codes:
        """For each start camera the most alike of the bank's subjects."""
        side = min(_SMALL, self.target.shape[-1])
        target = F.interpolate(self.target, (side, side), mode="area")
        bank = self.generator.map(self.generator.sample_latents(_BANK, self.draws), 0.7)
        chosen = []
        for i in range(len(cameras)):
            images = self.generator.render(bank, cameras[i], side).image
            chosen.append(int(pixel_distance(images, target.expand_as(images)).argmin()))
        assert isinstance(bank.appearance, Tensor)
        shape, appearance = (
            self.space.shape.coordinates(bank.shape),
            self.space.appearance.coordinates(bank.appearance),
        )
        yaw, pitch = cameras.yaw_pitch()
        return _Codes(
            self.space, yaw.clone(), pitch.clone(), shape[chosen], appearance[chosen][:, None]
        )

    def fitted(self, codes: _Codes, kind: int) -> _Codes:
        """The codes after Adam with a rate that falls as a cosine; hypotheses do not see each other.

        Args:
            kind: of steps, as in `InversionConfig.steps`.
        """
        small, steps = kind == 0, self.config.steps[kind]
        rate, camera_rate = self.config.style_rate, self.config.camera_rate
        later = 1.0 if small else 0.5
        optimizer = torch.optim.Adam(
            [
                {"params": [codes.shape, codes.appearance], "lr": rate * later},
                {"params": [codes.yaw, codes.pitch], "lr": camera_rate * later},
            ],
            betas=(0.9, 0.99),
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            self.losses(codes, small).sum().backward(inputs=list(codes.parameters()))
            optimizer.step()
            schedule.step()
            self._tell(SPACES[max(0, kind - 1)])
        return codes

    def losses(self, codes: _Codes, small: bool) -> Float[Tensor, " hypotheses"]:
        """Distance to the picture and what keeps the codes usual."""
        side = min(_SMALL, self.target.shape[-1]) if small else self.target.shape[-1]
        out = self._rendered(self.generator, codes.styles(), codes.camera(), side)
        loss = self._distance(out.image) + self.config.prior_weight * codes.prior()
        return loss + self.config.spread_weight * codes.spread()

    def result(self, codes: _Codes) -> Inversion:
        return self._found(self.generator, *codes.fixed())

    @torch.no_grad()
    def _found(self, generator: Generator, camera: Camera, styles: Styles) -> Inversion:
        image = generator.render(styles, camera, self.target.shape[-1]).image
        return Inversion(camera, styles, generator, float(self._distance(image)))

    # ---------------------------------------------------------------- step 3
    def tuned(self, codes: _Codes) -> Inversion:
        """The implicit network fitted to the picture, with camera and styles as they are.

        Nothing else is tuned, so what the radiance field renders is found once, and a step runs the implicit network alone.
        """
        camera, styles = codes.fixed()
        generator = copy.deepcopy(self.generator)
        parameters = list(generator.inr.requires_grad_(True).parameters())
        steps = self.config.steps[3]
        optimizer = torch.optim.Adam(parameters, lr=self.config.tuning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        features, wanted, weights = self._elsewhere(camera, styles)
        features = torch.cat(
            [self._rendered_features(styles, self._rays(camera))[0], features], dim=1
        )
        side = self.target.shape[-1]
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            here, elsewhere = self._painted(generator, features, styles).split(side * side, dim=1)
            loss = self._distance(here.transpose(1, 2).unflatten(2, (side, side))).sum()
            loss = loss + (weights * (elsewhere - wanted).abs().mean(dim=2)).mean()
            loss.backward(inputs=parameters)
            optimizer.step()
            schedule.step()
            self._tell("tuned")
        return self._found(generator.requires_grad_(False), camera, styles)

    @torch.no_grad()
    def _elsewhere(
        self, camera: Camera, styles: Styles
    ) -> tuple[Float[Tensor, "1 rays feature"], Float[Tensor, "1 rays 3"], Float[Tensor, "1 rays"]]:
        """Rays from other cameras: their features, the colours that tuning should give them, and how much that counts.

        A surface that the picture shows takes the change there, from wherever it is seen; one that only the mirrored picture
        shows takes that one's change; the rest of the subject stays. The background changes as most of the picture's: free,
        it would take parts of the subject where the found shape is too small for it.
        """
        generator, side, config = self.generator, self.target.shape[-1], self.config
        rays = self._random_rays()
        features, depth, opacity = self._rendered_features(styles, rays)
        here = View(generator.render(styles, camera, side), camera.to(self.target))
        points = rays.at(depth[..., None])[:, :, 0]
        own, seen = self._change_at(points, here)
        other, mirrored = self._change_at(_mirrored(points, generator.config.poses.yaw_mean), here)
        mirrored = mirrored & ~seen & (config.mirror_weight > 0)
        change = own * seen[..., None] + other * mirrored[..., None]
        behind = (self.target - here.out.image).transpose(0, 1)[:, ~here.solid[:, 0]]
        if behind.shape[1]:
            change = torch.where((opacity > SOLID)[..., None], change, behind.median(dim=1).values)
        weights = torch.where(mirrored, config.mirror_weight, config.keep_weight).masked_fill(
            seen, 1.0
        )
        return features, self._painted(generator, features, styles) + change, weights

    def _change_at(
        self, points: Float[Tensor, "1 n 3"], here: View
    ) -> tuple[Float[Tensor, "1 n 3"], Bool[Tensor, "1 n"]]:
        """What the picture changes at world points, and which of them it shows.

        Args:
            here: the subject as it was found, from the picture's camera.
        """
        place, distance = here.camera.project(points)

        def there(image: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
            return looked_up(image, place[:, None], mode)[:, :, 0].transpose(1, 2)

        near = (distance - there(here.out.depth, "nearest")[..., 0]).abs() < HIDDEN
        inner = there(here.inner.to(points), "nearest")[..., 0] > 0.5
        shown = near & inner & (place.abs() <= 1).all(dim=-1)
        return there(self.target - here.out.image, "bilinear"), shown

    def _rays(self, camera: Camera) -> Rays:
        side = self.target.shape[-1]
        return camera.to(self.target).rays(side, side)

    def _random_rays(self) -> Rays:
        """As many rays as a picture has, of pixels of many random cameras."""
        cameras = self.generator.config.poses.sample(_CAMERAS, self.draws)
        pixels = torch.randperm(self.target.shape[-1] ** 2, generator=self.draws).to(
            self.target.device
        )
        parts = [self._rays(cameras[i])[pixels[i::_CAMERAS]] for i in range(_CAMERAS)]
        return Rays.cat(parts)

    @torch.no_grad()
    def _rendered_features(
        self, styles: Styles, rays: Rays
    ) -> tuple[Float[Tensor, "1 rays feature"], Float[Tensor, "1 rays"], Float[Tensor, "1 rays"]]:
        """What the radiance field renders (V_r), depth, and the subject's opacity."""
        sampling = self.generator.sampling
        parts = []
        for part in ray_choices.chunks(rays.count, self.generator.default_chunk(1, sampling)):
            field = self.generator.render_features(styles.shape, rays[part], sampling)
            parts.append((field.feature, field.depth, field.opacity - field.last_weight))
        features, depth, opacity = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
        return features, depth, opacity

    def _painted(
        self, generator: Generator, features: Float[Tensor, "1 rays feature"], styles: Styles
    ) -> Float[Tensor, "1 rays 3"]:
        """Colours, with gradients in chunks of rays where memory is short."""
        chunk = self._chunk(1)
        if chunk >= features.shape[1]:
            return generator.inr(features, styles.appearance)
        again = partial(checkpoint, generator.inr, use_reentrant=False, preserve_rng_state=False)
        return torch.cat(
            [again(part, styles.appearance) for part in features.split(chunk, dim=1)], dim=1
        )

    # ---------------------------------------------------------------- shared
    def _distance(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, " batch"]:
        target = F.interpolate(self.target, images.shape[2:], mode="area").expand_as(images)
        loss = pixel_distance(images, target)
        if self.features is None or not self.config.feature_weight:
            return loss
        # at the size that the network knows: a discriminator's entry for small pictures is as it was when it left that stage
        images, target = (
            F.interpolate(x, self.target.shape[2:], mode="bilinear") for x in (images, target)
        )
        return loss + self.config.feature_weight * self.features(images, target)

    def _rendered(
        self, generator: Generator, styles: Styles, camera: Camera, side: int
    ) -> RenderOutput:
        """Pictures with gradients, in chunks of rays where memory is short."""
        chunk = self._chunk(len(styles))
        if chunk >= side * side:
            return generator.render(styles, camera, side, chunk=side * side)
        styles, rays = ray_choices.paired(styles, camera.to(self.target).rays(side, side))
        stacked = ray_choices.checkpointed(
            generator.render_rays, styles, rays, generator.sampling, None, chunk
        )
        return ray_choices.as_images(stacked, side, side)

    def _chunk(self, batch: int) -> int:
        """Rays of each of `batch` pictures whose activations memory holds."""
        memory = device_memory(self.target.device)
        return automatic_chunk(self.generator.config, batch, self.generator.sampling, memory)

    def _tell(self, step: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done / self.of, step)


def _mirrored(points: Float[Tensor, "batch n 3"], front: float) -> Float[Tensor, "batch n 3"]:
    """The points on the subject's other side: beyond the upright plane that a camera at the yaw `front` looks along.

    The middle of the prior is where subjects are seen from the front, also where training has turned both (learned cameras).
    """
    normal = points.new_tensor([math.cos(front), 0.0, -math.sin(front)])
    return points - 2 * (points @ normal)[..., None] * normal


def _checked(
    generator: ImageGenerator, image: Tensor
) -> tuple[Generator, Float[Tensor, "1 3 side side"]]:
    """The picture at the model's resolution and on its device."""
    if not isinstance(generator, Generator):
        raise UserError(
            f"model: a {generator.config.networks.architecture} cannot be inverted; give one of architecture cips-3d"
        )
    if image.dim() != 4 or image.shape[:2] != (1, 3):
        raise UserError(
            f"picture: has the shape {tuple(image.shape)}; give one picture, (1, 3, side, side)"
        )
    if image.shape[-1] != image.shape[-2]:
        raise UserError(
            f"picture: is {image.shape[-1]}x{image.shape[-2]}; give a square one, framed as the model's own"
        )
    if not bool(torch.isfinite(image).all()):
        raise UserError(
            "picture: has colours that are NaN or infinite; give finite ones in [-1, 1]"
        )
    if not image.is_floating_point() or float(image.abs().max()) > 1.5:
        raise UserError(
            "picture: has colours far outside of [-1, 1]; give floating-point ones in that range"
        )
    side = generator.config.resolution
    image = image.to(generator.shape_mean)
    if image.shape[-1] == side:
        return generator, image
    return generator, F.interpolate(
        image, (side, side), mode="bilinear", antialias=image.shape[-1] > side, align_corners=False
    )


def _start_cameras(
    generator: Generator,
    target: Tensor,
    start: Camera | None,
    discriminator: ProgressiveDiscriminator | None,
) -> Camera:
    poses = generator.config.poses
    if start is not None:
        return start.to(target)
    with torch.no_grad():
        told = None if discriminator is None else discriminator.predicted_poses(target)
    if (
        told is not None
    ):  # it learned to tell the poses of the generator's pictures, so it speaks of the generator's cameras
        yaw, pitch = told.unbind(-1)
        return poses.at(yaw, pitch.clamp(-1.5, 1.5))
    yaws = torch.tensor([poses.yaw_mean + poses.yaw_std * x for x in _START_YAWS]).to(target)
    return poses.at(yaws, poses.pitch_mean)
