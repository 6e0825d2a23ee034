"""Pictures of any size in constant memory: strips of rows, rendered one after the other and at once reduced to 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.export.media import depth_picture, robust_range, to_uint8
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import RenderOutput, Styles

#: What a picture shows: the INR's image, the auxiliary head's on the rendered feature ("NeRF image"), or the depth in colour.
Kind = Literal["image", "nerf", "depth"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Rays of a strip, where the networks are so narrow that rays and outputs need most of the memory (some 200 bytes a ray).
_MOST_RAYS = 2**17
#: Side in pixels, and number, of the small pictures that the range of the depth is taken from.
_PREVIEW, _PREVIEWS = 16, 8


@dataclass(frozen=True)
class PictureFormat:
    """What pictures are made of each subject and view.

    Attributes:
        height, width: pixels.
        show: the kinds of pictures, in order.
        supersample: n; every pixel is the mean of n² rays.
    """

    height: int
    width: int
    show: tuple[Kind, ...] = ("image",)
    supersample: int = 1

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise UserError(
                f"resolution: {self.height}x{self.width} has no pixels; both sides must be at least 1"
            )
        if not self.show or not set(self.show) <= set(KINDS):
            raise UserError(
                f"show: {' '.join(self.show) or 'nothing'}; give one or more of {', '.join(KINDS)}"
            )
        if self.supersample < 1:
            raise UserError(
                f"supersample: {self.supersample}; give at least 1 ray along each side of a pixel"
            )

    @staticmethod
    def of(
        generator: ImageGenerator,
        resolution: int | tuple[int, int] | None,
        show: Kind | Sequence[Kind],
        supersample: int,
    ) -> PictureFormat:
        """From a side, or (height, width), or None for the generator's training resolution.

        Raises:
            UserError: if a value is out of range.
        """
        size = generator.config.resolution if resolution is None else resolution
        height, width = (size, size) if isinstance(size, int) else size
        return PictureFormat(
            height, width, (show,) if isinstance(show, str) else tuple(show), supersample
        )


@torch.no_grad()
def picture_strips(
    generator: ImageGenerator,
    styles: Styles,
    cameras: Camera,
    form: PictureFormat,
    depths: tuple[float, float] | None = None,
) -> Iterator[UInt8[np.ndarray, "kinds batch rows width 3"]]:
    """Pictures from the top down, a strip of whole rows at a time: as many as one chunk of rays fills.

    Memory does not depend on the height. With supersampling, a picture n times as high and wide is clipped to what can be shown
    and averaged by squares of n² pixels. The mean is taken of the values that the networks make, which are display values
    (sRGB) as in the training pictures, not of linear light; this is usual for such models.

    Args:
        styles, cameras: one of either, or as many of both.
        depths: the range that the depth's colours span (see `depth_range`); by default that of these very pictures.

    Raises:
        UserError: if a camera stands within the sampled volume, or styles and cameras do not go together.
    """
    _check_outside(generator, cameras)
    if depths is None and "depth" in form.show:
        depths = depth_range(generator, styles, cameras)
    distance = cameras.to(generator.shape_mean).position.norm(dim=-1)[:, None, None, None]
    n, batch = form.supersample, max(len(styles), len(cameras))
    rows = form.height  # a generator whose pixels depend on each other renders them together
    if isinstance(generator, RayGenerator):
        rays = min(generator.default_chunk(batch, generator.sampling), _MOST_RAYS // batch)
        rows = max(1, rays // (form.width * n**2))
    for top in range(0, form.height, rows):
        window = np.s_[top * n : min(top + rows, form.height) * n, :]
        out = generator.render(styles, cameras, (form.height * n, form.width * n), window=window)
        parts = [_picture(out, kind, distance, depths) for kind in form.show]
        yield np.stack([to_uint8(F.avg_pool2d(part.float().clamp(-1, 1), n)) for part in parts])


def pictures(
    generator: ImageGenerator,
    styles: Styles,
    cameras: Camera,
    form: PictureFormat,
    depths: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "kinds batch height width 3"]:
    """Whole pictures, strip by strip; arguments as in `picture_strips`."""
    result = np.empty(
        (len(form.show), max(len(styles), len(cameras)), form.height, form.width, 3), dtype=np.uint8
    )
    fill(result, picture_strips(generator, styles, cameras, form, depths))
    return result


def fill(
    target: UInt8[np.ndarray, "kinds batch height width 3"],
    strips: Iterable[UInt8[np.ndarray, "kinds batch _ width 3"]],
    progress: Callable[[float], None] | None = None,
) -> None:
    """Writes strips into pictures from the top down.

    Args:
        progress: is told the share that is done after each strip.
    """
    top = 0
    for strip in strips:
        target[:, :, top : top + strip.shape[2]] = strip
        top += strip.shape[2]
        if progress is not None:
            progress(top / target.shape[2])


@torch.no_grad()
def depth_range(
    generator: ImageGenerator, styles: Styles, cameras: Camera
) -> tuple[float, float] | None:
    """The nearest and farthest depth of what is solid, as seen in small pictures from up to eight of the cameras.

    Depths are relative to each camera's distance from the origin: negative in front of the origin, positive behind it. One
    range for a whole video or picture keeps its frames and strips comparable; the 2nd and 98th percentile (see
    `media.depth_picture`) leave stray pixels out. None if nothing is solid.
    """
    count = max(len(styles), len(cameras))
    chosen = torch.linspace(0, count - 1, min(count, _PREVIEWS)).round().long()
    some = styles if len(styles) == 1 else styles[chosen.to(generator.shape_mean.device)]
    cameras = cameras if len(cameras) == 1 else cameras[chosen.to(cameras.fov.device)]
    out = generator.render(some, cameras, _PREVIEW)
    relative = out.depth - cameras.to(out.depth).position.norm(dim=-1)[:, None, None, None]
    solid = relative[out.solid]
    return robust_range(solid.float()) if solid.numel() else None


def _picture(
    out: RenderOutput,
    kind: Kind,
    distance: Float[Tensor, "cameras 1 1 1"],
    depths: tuple[float, float] | None,
) -> Float[Tensor, "batch 3 height width"]:
    """What is shown of a rendering, in [-1, 1]."""
    if kind != "depth":
        return out.image if kind == "image" else out.aux_image
    near, far = depths or (None, None)
    return depth_picture(out.depth - distance, out.subject_opacity, near, far)


def _check_outside(generator: ImageGenerator, cameras: Camera) -> None:
    """Raises UserError for a camera within the sampled volume."""
    nearest, extent = float(cameras.position.norm(dim=-1).min()), generator.config.networks.extent
    if nearest <= extent:
        raise UserError(
            f"camera: it comes to {nearest:.3g} from the centre, where the subject fills {extent:g} on all sides; keep it "
            "farther away (of a dolly zoom, narrow the field of view)"
        )
