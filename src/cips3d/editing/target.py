"""The image that an inversion starts from, the settings, and the distance to renderings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cips3d.camera import Camera
from cips3d.configuration import Configuration, NonNegative
from cips3d.data.images import central_square, read_image
from cips3d.data.pixels import upright_rgb
from cips3d.editing.similarity import Distance, pixel_distance
from cips3d.errors import UserError
from cips3d.models.cost import automatic_chunk, device_memory
from cips3d.models.generator import Generator
from cips3d.models.rays import as_images, checkpointed, paired
from cips3d.models.types import Styles

_Steps = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class InversionConfig(Configuration):
    """Numbers of steps, learning rates and weights relative to the distance of colours."""

    label: ClassVar[str] = "inversion"

    steps: tuple[_Steps, _Steps, _Steps, _Steps] = (60, 140, 40, 300)
    """on small images from all start cameras; on the best one at full size; of w+; of tuning"""
    style_rate: NonNegative = 0.08
    """learning rate (Adam) of styles, in standard deviations"""
    camera_rate: NonNegative = 0.015
    """of camera angles, radians"""
    tuning_rate: NonNegative = 2e-3
    """of the weights in tuning, falling along a cosine"""
    feature_weight: NonNegative = 0.5
    """of the distance of features"""
    prior_weight: NonNegative = 0.01
    """of the mean squares of styles and camera in standard deviations of their prior"""
    spread_weight: NonNegative = 0.02
    """of the mean squared difference between the blocks' styles in w+"""
    keep_weight: NonNegative = 0.3
    """of changes, in tuning, to surfaces that neither the image nor its mirror image shows"""
    mirror_weight: NonNegative = 0.3
    """of the mirrored change, in tuning, on surfaces that only the mirror image shows; 0 for
    asymmetric subjects, whose hidden side then stays as it was"""


@dataclass(frozen=True)
class Target:
    """An image and the model that has to show it."""

    generator: Generator
    image: Float[Tensor, "1 3 side side"]
    """at the model's resolution, in [-1, 1]"""
    features: Distance | None
    """distance of features; None for colours alone"""
    config: InversionConfig

    @property
    def side(self) -> int:
        """Side of the image, pixels."""
        return self.image.shape[-1]

    def distance(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, " batch"]:
        """Distance of colours and features between the target and images of any size."""
        target = F.interpolate(self.image, images.shape[2:], mode="area").expand_as(images)
        loss = pixel_distance(images, target)
        if self.features is None or not self.config.feature_weight:
            return loss
        # at full size: a discriminator's layers for small images date from its early stages
        images, target = (
            F.interpolate(x, self.image.shape[2:], mode="bilinear") for x in (images, target)
        )
        return loss + self.config.feature_weight * self.features(images, target)

    def render(
        self, styles: Styles, camera: Camera, side: int
    ) -> Float[Tensor, "batch 3 side side"]:
        """Images with gradients, checkpointed in chunks of rays where memory is short."""
        chunk, generator = self.chunk(len(styles)), self.generator
        if chunk >= side * side:
            return generator.render(styles, camera, side, chunk=side * side).image
        styles, rays = paired(styles, camera.to(self.image).rays(side, side))
        sampling = generator.sampling
        stacked = checkpointed(generator.render_rays, styles, rays, sampling, None, chunk)
        return as_images(stacked, side, side).image

    def chunk(self, batch: int) -> int:
        """Rays of each of `batch` images whose activations fit in memory."""
        memory = device_memory(self.image.device)
        return automatic_chunk(self.generator.config, batch, self.generator.sampling, memory)


def image_tensor(image: Any, generator: Generator) -> Float[Tensor, "1 3 side side"]:
    """The image to invert, at a model's resolution and on its device.

    Args:
        image: a path, a PIL image or an array (height, width, 3) of uint8, of which the central
            square is used; or a square image with colours in [-1, 1]: an array of floats, or a
            tensor (1, 3, side, side).

    Raises:
        UserError: if it is none of these.
    """
    side, like = generator.config.resolution, generator.like
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, side).to(like)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        try:
            square = central_square(upright_rgb(image), side)
        except (OSError, ValueError) as error:  # decoded only now, or without a range
            raise UserError(f"image: cannot be read ({error}); give another") from None
        image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
    fault = _fault(image)
    if fault is not None:
        raise UserError(f"image: {fault}")
    image = image.to(like)
    width = image.shape[3]
    if width == side:
        return image
    return F.interpolate(
        image, (side, side), mode="bilinear", antialias=width > side, align_corners=False
    )


def _from_array(array: np.ndarray) -> Image.Image | Tensor:
    """A PIL image of uint8, a tensor of floats."""
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"image: the array has the shape {array.shape}; give (height, width, 3), red, green "
            "and blue"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if np.issubdtype(array.dtype, np.floating):
        return torch.from_numpy(array.astype(np.float64)).permute(2, 0, 1)[None]
    raise UserError(
        f"image: the array is of {array.dtype}; give uint8 from 0 to 255, or floats in [-1, 1]"
    )


def _fault(image: Any) -> str | None:
    """What is wrong with a tensor, and what to give instead."""
    if not isinstance(image, Tensor):
        return (
            f"{type(image).__name__} given; give a path, a PIL image, an array (height, width, 3) "
            "or a tensor (1, 3, side, side)"
        )
    if image.dim() != 4 or image.shape[:2] != (1, 3) or not image.numel():
        return f"the tensor has the shape {tuple(image.shape)}; give one image, (1, 3, side, side)"
    height, width = image.shape[2:]
    if height != width:
        return f"is {width}x{height}; give a square one, framed like the training images"
    if not bool(torch.isfinite(image).all()):
        return "has NaN or infinite colours; give finite ones in [-1, 1]"
    if not image.is_floating_point() or float(image.abs().max()) > 1.5:
        return "has colours far outside of [-1, 1]; give floating-point ones in that range"
    return None
