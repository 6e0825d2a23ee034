"""Images of any size in constant memory: strips of rows, each reduced to 8 bits at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cips3d.camera import Camera
from cips3d.configuration import Configuration, Count
from cips3d.errors import UserError
from cips3d.export.media import depth_map, robust_range, to_uint8
from cips3d.models.adaptive import TOLERANCE
from cips3d.models.ops.precision import Precision
from cips3d.models.protocol import ImageGenerator, Prepared, RayGenerator
from cips3d.models.types import Styles

#: What an image shows: the INR's image, the auxiliary head's ("NeRF image"), or the depth map.
Kind = Literal["image", "nerf", "depth"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Depths of the brightest and the darkest colour, relative to the camera's distance.
Range = tuple[float, float]
#: Rays of a strip of narrow networks, where rays and outputs need most of the memory (about 200
#: bytes a ray).
_MOST_RAYS = 2**17
#: Side in pixels, and number, of the small images that the depth range is taken from.
_PREVIEW, _PREVIEWS = 16, 8


@dataclass(frozen=True)
class ImageFormat(Configuration):
    """What is rendered of each subject and view."""

    label: ClassVar[str] = "image"

    height: Count
    width: Count
    show: tuple[Kind, ...] = ("image",)
    """kinds of images, in order"""
    supersample: Count = 1
    """n, for the mean of n² rays per pixel"""
    adaptive: bool = False
    """whether smooth parts are interpolated, see `cips3d.models.adaptive`"""
    precision: Precision = "auto"
    """of the implicit network, see `cips3d.models.ops.precision`"""

    def check(self) -> None:
        if not self.show:
            raise UserError(f"show: nothing; give one or more of {', '.join(KINDS)}")


def image_format(
    generator: ImageGenerator,
    resolution: int | tuple[int, int] | None,
    show: Kind | Sequence[Kind] = "image",
    supersample: int = 1,
    adaptive: bool = False,
    precision: Precision = "auto",
) -> ImageFormat:
    """The format of a side, a (height, width), or None for the generator's training resolution."""
    size = generator.config.resolution if resolution is None else resolution
    height, width = size if isinstance(size, tuple) else (size, size)
    kinds = (show,) if isinstance(show, str) else tuple(show)
    return ImageFormat(height, width, kinds, supersample, adaptive, precision)


def ready(
    generator: ImageGenerator, styles: Styles | Prepared, form: ImageFormat, views: int
) -> Styles | Prepared:
    """A subject made ready for this many views of a format, if that pays."""
    if isinstance(styles, Prepared):
        return styles
    samples = generator.sampling.coarse + generator.sampling.fine
    pixels = form.height * form.width * form.supersample**2
    return generator.prepare_for(styles, views * pixels * samples, form.precision)


@torch.no_grad()
def image_strips(
    generator: ImageGenerator,
    styles: Styles | Prepared,
    cameras: Camera,
    form: ImageFormat,
    depths: Range | None = None,
) -> Iterator[UInt8[np.ndarray, "kinds batch rows width 3"]]:
    """Images from the top down, in strips of as many whole rows as one chunk of rays fills.

    Memory does not depend on the height. Supersampling renders n times as many rows and columns,
    clips them to the range that can be shown, and averages squares of n² pixels. As usual for such
    models, it averages display values (sRGB), as in the training images, not linear light.

    Args:
        styles, cameras: one of either, or as many of both.
        depths: range of the depth's colours; by default the `depth_range` of these images.

    Raises:
        UserError: if a camera is inside the sampled volume, or the numbers of styles and cameras do
            not match.
    """
    nearest = float(cameras.position.norm(dim=-1).min()) if len(cameras) else math.inf
    extent = generator.config.networks.extent
    if nearest <= extent:
        raise UserError(
            f"camera: it comes within {nearest:.3g} of the centre and the subject extends to "
            f"{extent:g}; keep it farther away (for a dolly zoom, use a narrower field of view)"
        )
    if depths is None and "depth" in form.show:
        depths = depth_range(generator, styles, cameras)
    distance = _distance(cameras.to(generator.like))
    styles = ready(generator, styles, form, len(cameras))
    n, batch = form.supersample, max(len(styles), len(cameras))
    rows = form.height  # a generator whose pixels depend on each other renders them together
    if isinstance(generator, RayGenerator):
        rays = _MOST_RAYS // max(1, batch)
        if not form.adaptive:  # which needs high strips
            rays = min(generator.default_chunk(batch, generator.sampling), rays)
        rows = max(1, rays // (form.width * n**2))
    size, tolerance = (form.height * n, form.width * n), TOLERANCE if form.adaptive else 0.0
    for top in range(0, form.height, rows):
        window = np.s_[top * n : min(top + rows, form.height) * n, :]
        out = generator.render(
            styles, cameras, size, window=window, tolerance=tolerance, precision=form.precision
        )
        images = {"image": out.image, "nerf": out.aux_image}
        if "depth" in form.show:
            near, far = depths or (None, None)
            images["depth"] = depth_map(out.depth - distance, out.subject_opacity, near, far)
        parts = [F.avg_pool2d(images[kind].float().clamp(-1, 1), n) for kind in form.show]
        yield np.stack([to_uint8(part) for part in parts])


def whole_images(
    generator: ImageGenerator,
    styles: Styles | Prepared,
    cameras: Camera,
    form: ImageFormat,
    depths: Range | None = None,
) -> UInt8[np.ndarray, "kinds batch height width 3"]:
    """Whole images, strip by strip; arguments as in `image_strips`."""
    batch = max(len(styles), len(cameras))
    images = np.empty((len(form.show), batch, form.height, form.width, 3), dtype=np.uint8)
    fill(images, image_strips(generator, styles, cameras, form, depths))
    return images


def fill(
    target: UInt8[np.ndarray, "kinds batch height width 3"],
    strips: Iterable[UInt8[np.ndarray, "kinds batch _ width 3"]],
) -> None:
    """Writes strips into images from the top down."""
    top = 0
    for strip in strips:
        target[:, :, top : top + strip.shape[2]] = strip
        top += strip.shape[2]


@torch.no_grad()
def depth_range(
    generator: ImageGenerator, styles: Styles | Prepared, cameras: Camera
) -> Range | None:
    """The 2nd to 98th percentile of solid pixels' depths in small images of up to eight cameras.

    Depths are relative to each camera's distance from the origin, negative in front of the origin.
    Use one range for all frames of a video and all strips of an image, so their colours agree. None
    if nothing is solid.
    """
    count = max(len(styles), len(cameras))
    chosen = torch.linspace(0, count - 1, min(count, _PREVIEWS)).round().long()
    some = styles
    if isinstance(styles, Styles) and len(styles) > 1:
        some = styles[chosen.to(generator.device)]
    cameras = cameras if len(cameras) == 1 else cameras[chosen.to(cameras.fov.device)]
    out = generator.render(some, cameras, _PREVIEW)
    solid = (out.depth - _distance(cameras.to(out.depth)))[out.solid]
    return robust_range(solid.float()) if solid.numel() else None


def _distance(cameras: Camera) -> Float[Tensor, "cameras 1 1 1"]:
    """Distances from the origin, which broadcast over images."""
    return cameras.position.norm(dim=-1)[:, None, None, None]
