"""The image that an inversion starts from, and how renderings are compared with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Camera, Rays
from cips3d.data.images import central_square, read_image
from cips3d.data.sources import upright_rgb
from cips3d.editing.similarity import Distance, pixel_distance
from cips3d.errors import UserError
from cips3d.models import rays as ray_choices
from cips3d.models.cost import automatic_chunk, device_memory
from cips3d.models.generator import Generator
from cips3d.models.types import Styles


@dataclass(frozen=True)
class Target:
    """An image and the model that has to show it.

    Attributes:
        generator: the model.
        image: the image at the model's resolution, in [-1, 1].
        features: distance of features; None for colours alone.
        feature_weight: of that distance.
    """

    generator: Generator
    image: Float[Tensor, "1 3 side side"]
    features: Distance | None
    feature_weight: float

    @property
    def side(self) -> int:
        """Side of the image, pixels."""
        return self.image.shape[-1]

    def rays(self, camera: Camera) -> Rays:
        """Rays of all pixels."""
        return camera.to(self.image).rays(self.side, self.side)

    def distance(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, " batch"]:
        """Distance of colours and features between the target and images of any size."""
        target = F.interpolate(self.image, images.shape[2:], mode="area").expand_as(images)
        loss = pixel_distance(images, target)
        if self.features is None or not self.feature_weight:
            return loss
        # at full size: a discriminator's layers for small images date from its early stages
        images, target = (
            F.interpolate(x, self.image.shape[2:], mode="bilinear") for x in (images, target)
        )
        return loss + self.feature_weight * self.features(images, target)

    def render(
        self, styles: Styles, camera: Camera, side: int
    ) -> Float[Tensor, "batch 3 side side"]:
        """Images with gradients, checkpointed in chunks of rays where memory is short."""
        chunk = self.chunk(len(styles))
        if chunk >= side * side:
            return self.generator.render(styles, camera, side, chunk=side * side).image
        styles, rays = ray_choices.paired(styles, camera.to(self.image).rays(side, side))
        generator = self.generator
        stacked = ray_choices.checkpointed(
            generator.render_rays, styles, rays, generator.sampling, None, chunk
        )
        return ray_choices.as_images(stacked, side, side).image

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
    side = generator.config.resolution
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, side).to(generator.shape_mean)
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        try:
            square = central_square(upright_rgb(image), side)
        except (OSError, ValueError) as error:  # decoded only now, or without a range
            raise UserError(f"image: cannot be read ({error}); give another") from None
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
        return (pixels.float() / 127.5 - 1).to(generator.shape_mean)
    if not isinstance(image, Tensor):
        raise UserError(
            f"image: {type(image).__name__} given; give a path, a PIL image, an array "
            "(height, width, 3) or a tensor (1, 3, side, side)"
        )
    return _resized(image, side, generator.shape_mean)


def _from_array(array: np.ndarray) -> Any:
    """A PIL image of uint8, a tensor of floats."""
    from PIL import Image

    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"image: the array has the shape {array.shape}; give (height, width, 3), red, green "
            "and blue"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"image: the array is of {array.dtype}; give uint8 from 0 to 255, or floats in [-1, 1]"
        )
    return torch.from_numpy(array.astype(np.float64)).permute(2, 0, 1)[None]


def _resized(image: Tensor, side: int, like: Tensor) -> Float[Tensor, "1 3 side side"]:
    """A checked tensor, resized to `side` pixels."""
    if image.dim() != 4 or image.shape[:2] != (1, 3) or not image.numel():
        raise UserError(
            f"image: the tensor has the shape {tuple(image.shape)}; give one image, "
            "(1, 3, side, side)"
        )
    height, width = image.shape[2:]
    if height != width:
        raise UserError(
            f"image: is {width}x{height}; give a square one, framed like the training images"
        )
    if not bool(torch.isfinite(image).all()):
        raise UserError("image: has NaN or infinite colours; give finite ones in [-1, 1]")
    if not image.is_floating_point() or float(image.abs().max()) > 1.5:
        raise UserError(
            "image: has colours far outside of [-1, 1]; give floating-point ones in that range"
        )
    image = image.to(like)
    if width == side:
        return image
    return F.interpolate(
        image, (side, side), mode="bilinear", antialias=width > side, align_corners=False
    )
