"""Decoded images of any kind as upright sRGB on white; kinds whose range is unknown are refused."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

#: TIFF's tag for kinds of pages, and the kinds that show the first page: smaller copies and masks.
_PAGE_KIND, _COPIES = 254, 1 | 4


class UnclearPixelsError(ValueError):
    """What an image's pixels mean is not known; the message says why, and what to do."""


def check_kind(image: Image.Image) -> None:
    """Raises UnclearPixelsError if the numbers of an image have no known range or order."""
    tags = _tags(image)
    kind = ""
    if image.mode == "F":
        kind = "floating-point numbers of unknown range as pixels"
    elif image.mode == "I" or any(kind != 1 for kind in tags.get(TiffImagePlugin.SAMPLEFORMAT, ())):
        kind = "signed or 32-bit integers of unknown range as pixels"
    elif (
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
        and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
        and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) > 8
    ):  # which Pillow 13 decodes to noise
        kind = "uncompressed planes of 16 bits"
    if kind:
        raise UnclearPixelsError(f"has {kind}; save it again, as 8-bit RGB")


def check_pages(image: Image.Image) -> None:
    """Raises UnclearPixelsError if a TIFF file has pages with other images."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    pages = image.n_frames
    for page in range(1, pages):
        image.seek(page)
        if not image.tag_v2.get(_PAGE_KIND, 0) & _COPIES:
            raise UnclearPixelsError(f"has {pages} pages; save each as a file of its own")
    image.seek(0)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF file's image; none of others."""
    return getattr(image, "tag_v2", {})


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image with its colours converted from an embedded profile of RGB or CMYK to sRGB."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        converted = ImageCms.applyTransform(image, _to_srgb(profile, image.mode, mode))
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another kind of pixels
        return image
    assert converted is not None
    return converted


@functools.lru_cache(16)
def _to_srgb(profile: bytes, mode: str, out: str) -> ImageCms.ImageCmsTransform:
    """A dataset has few profiles, and a transform takes longer to make than to apply."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, target, mode, out)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image turned upright (EXIF), on white and as sRGB; the upper eight of 16 bits are kept.

    Raises:
        UnclearPixelsError: if its numbers have no known range or order.
    """
    check_kind(image)
    tags = _tags(image)
    image = _in_srgb(ImageOps.exif_transpose(image))
    if image.mode.startswith("I;16"):  # which Pillow would clip to 255
        pixels = np.asarray(image).astype(np.int64)
        (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
        grey = pixels >> (bits - 8)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0
            grey = 255 - grey
        transparent = pixels == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
