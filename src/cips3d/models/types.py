"""Inputs and outputs of a rendering: codes, styles, random draws, rays and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from cips3d.camera import Rays
from cips3d.models.config import Sampling
from cips3d.records import TensorRecord

# Shapes that occur all over the models.
Points = Float[Tensor, "batch points 3"]
Samples = Float[Tensor, "batch rays samples"]
StyleCodes = Float[Tensor, "batch w"]

#: A pixel shows the subject where the subject absorbs more of the light than this.
SOLID = 0.5
#: Truncation: one ψ, or one each for shape and appearance.
Psi = float | tuple[float, float]
#: Truncation wherever people look at subjects, in Python and on the command line.
DEFAULT_PSI = 0.7


@dataclass(frozen=True)
class Latents(TensorRecord):
    """A batch of latent codes, samples of a standard normal distribution."""

    shape: Float[Tensor, "batch zs"]
    """codes z_s"""
    appearance: Float[Tensor, "batch za"]
    """codes z_a"""


@dataclass(frozen=True)
class Styles(TensorRecord):
    """A batch of mapped codes."""

    shape: Float[Tensor, "batch ws"]
    """codes w_s"""
    appearance: Float[Tensor, "batch wa"] | Sequence[Float[Tensor, "batch wa"]]
    """codes w_a for all blocks of the implicit network, or a sequence with one for each"""


@dataclass(frozen=True)
class RayDraws(TensorRecord):
    """Every random number of a rendering, so that a ray's colour is independent of its neighbours.

    Indexing selects rays.
    """

    axis: ClassVar[int] = 1

    jitter: Float[Tensor, "batch rays coarse"]
    """uniform draws that move the stratified samples"""
    importance: Float[Tensor, "batch rays fine"]
    """uniform draws for the importance samples"""
    coarse_noise: Float[Tensor, "batch rays coarse"] | None = None
    """density noise of the coarse pass, per world unit"""
    noise: Float[Tensor, "batch rays all"] | None = None
    """density noise of all samples in order of depth, per world unit"""
    turn: Float[Tensor, "batch rays 1"] | None = None
    """angles about the y axis by which the background "field" is turned, radians"""
    visible_share: float = 1.0
    """share of the samples that counts as visible where tensors have no values (torch's meta
    device, on which costs are counted)"""

    @staticmethod
    def sample(
        batch: int,
        rays: int,
        sampling: Sampling,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> RayDraws:
        """Draws for whole images, on the generator's device (the CPU without one).

        Args:
            noise_std: standard deviation of the density noise, per world unit; 0 for none.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        like: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.float32}
        coarse, fine = sampling.coarse, sampling.fine
        jitter = torch.rand(batch, rays, coarse, **like)
        # one draw in each of `fine` equal parts of the CDF: the distribution of independent draws,
        # with less noise
        parts = torch.arange(fine, device=device)
        importance = (torch.rand(batch, rays, fine, **like) + parts) / max(1, fine)
        if noise_std == 0:
            return RayDraws(jitter, importance)
        coarse_noise = torch.randn(batch, rays, coarse, **like) * noise_std if fine else None
        noise = torch.randn(batch, rays, coarse + fine, **like) * noise_std
        return RayDraws(jitter, importance, coarse_noise, noise)

    @staticmethod
    def even(rays: Rays, sampling: Sampling) -> RayDraws:
        """No jitter, no noise, evenly spread importance samples: the meaning of `draws=None`."""
        origins = rays.origins
        spread = torch.arange(sampling.fine, dtype=origins.dtype, device=origins.device) + 0.5
        return RayDraws(
            jitter=origins.new_full((*origins.shape[:2], sampling.coarse), 0.5),
            importance=(spread / sampling.fine).expand(*origins.shape[:2], -1),
        )


@dataclass(frozen=True)
class RayOutput(TensorRecord):
    """What a generator renders for each ray."""

    rgb: Float[Tensor, "batch rays 3"]
    """colours of the INR"""
    aux_rgb: Float[Tensor, "batch rays 3"]
    """colours of the auxiliary head on the rendered feature"""
    depth: Float[Tensor, "batch rays"]
    """expected depth along the ray, Σ w t + (1 − Σ w)·far, world units"""
    opacity: Float[Tensor, "batch rays"]
    """Σ w in [0, 1]"""
    last_weight: Float[Tensor, "batch rays"]
    """the deepest sample's part of Σ w; near 1 where the ray sees nothing but the far plane"""
    feature: Float[Tensor, "batch rays feature"]
    """rendered features V_r"""

    def stacked(self) -> Float[Tensor, "batch rays 9"]:
        """rgb, aux_rgb, depth, opacity and last_weight side by side."""
        scalars = torch.stack([self.depth, self.opacity, self.last_weight], dim=-1)
        # under autocast colours have 16 bits, which hold only a handful of a head's depths
        return torch.cat([self.rgb.to(scalars), self.aux_rgb.to(scalars), scalars], dim=-1)


def to_uint8(
    images: Float[Tensor, "batch 3 height width"],
) -> UInt8[np.ndarray, "batch height width 3"]:
    """8-bit images from images in [-1, 1], rounded and clipped; NaN becomes black."""
    levels = (images.detach().float() * 127.5 + 127.5).nan_to_num(0.0).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class RenderOutput(TensorRecord):
    """A batch of images. Depth, opacity and last_weight are as in `RayOutput`."""

    image: Float[Tensor, "batch 3 height width"]
    """INR images in [-1, 1], not clamped"""
    aux_image: Float[Tensor, "batch 3 height width"]
    """images of the auxiliary head"""
    depth: Float[Tensor, "batch 1 height width"]
    opacity: Float[Tensor, "batch 1 height width"]
    last_weight: Float[Tensor, "batch 1 height width"]

    @property
    def subject_opacity(self) -> Float[Tensor, "batch 1 height width"]:
        """Opacity without the deepest sample, which some backgrounds make opaque; in [0, 1]."""
        return self.opacity - self.last_weight

    @property
    def solid(self) -> Bool[Tensor, "batch 1 height width"]:
        """Where the subject is: it absorbs most of the light."""
        return self.subject_opacity > SOLID

    def to_pil(self) -> list[Any]:
        """The images as `PIL.Image.Image`s, one per batch entry."""
        from PIL import Image

        return [Image.fromarray(np.ascontiguousarray(array)) for array in to_uint8(self.image)]

    def __repr__(self) -> str:
        count, _, height, width = self.image.shape
        noun = "image" if count == 1 else "images"
        return f"RenderOutput({count} {noun} of {height}x{width}, {self.image.device})"

    def _repr_png_(self) -> bytes:
        """The images side by side, as notebooks show them."""
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(np.concatenate([*to_uint8(self.image)], axis=1)).save(file, "png")
        return file.getvalue()
