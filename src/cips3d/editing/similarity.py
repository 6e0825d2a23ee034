"""Distances between a rendered image and a target: colours at several scales, and features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.errors import UserError, first_line
from cips3d.models.discriminator import ProgressiveDiscriminator

#: Two batches of images, (B, 3, R, R) -> (B,) distances.
Distance = Callable[[Tensor, Tensor], Tensor]

#: Number of times that the images are halved and compared again.
_HALVINGS = 2
#: Smallest side that survives VGG's poolings, pixels.
_LPIPS_SIDE = 32
logger = logging.getLogger(__name__)


def pixel_distance(
    a: Float[Tensor, "batch 3 res res"], b: Float[Tensor, "batch 3 res res"]
) -> Float[Tensor, " batch"]:
    """Sum of the root mean square differences at full, half and quarter size, units of [-1, 1].

    The smaller sizes give a gradient to a subject that is out of place.
    """
    total = _root_mean_square(a - b)
    for _ in range(_HALVINGS):
        if min(a.shape[2:]) < 2:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + _root_mean_square(a - b)
    return total


def psnr(a: Float[Tensor, "*any"], b: Float[Tensor, "*any"]) -> float:
    """Peak signal-to-noise ratio of colours, clamped to [-1, 1], in decibels; at most 100."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean()
    return min(100.0, float(10 * (4 / error).log10()))


def _root_mean_square(x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " batch"]:
    # the gradient of a norm is 0 at 0, that of a square root infinite
    return torch.linalg.vector_norm(x, dim=(1, 2, 3)) / x[0].numel() ** 0.5


def discriminator_distance(discriminator: ProgressiveDiscriminator) -> Distance:
    """Distance of a discriminator's features, which have learned what matters in its domain.

    The mean squared difference of every block's activations, with each pixel's vector normalised
    as in LPIPS (Zhang et al. 2018). Images larger than the discriminator's are downsampled first.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        ours, theirs = (discriminator.features(discriminator.reduced(x)) for x in (a, b))
        parts = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
            for x, y in zip(ours, theirs, strict=True)
        ]
        return torch.stack(parts).mean(dim=0)

    return distance


def lpips_distance(device: torch.device, side: int) -> Distance:
    """LPIPS with VGG (Zhang et al. 2018) for images of `side` pixels.

    It comes from the package lpips, which downloads its weights.

    Raises:
        UserError: if the package or its weights are missing, or the images are too small for VGG.
    """
    fault = f"needs images of at least {_LPIPS_SIDE}², the model's are {side}²"
    if side >= _LPIPS_SIDE:
        try:
            from lpips import LPIPS  # pyright: ignore[reportMissingImports] (optional)

            network = LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
            return lambda a, b: network(a.float(), b.float()).flatten()
        except ImportError as error:
            fault = f"{error}; pip install lpips torchvision"
        except (OSError, RuntimeError) as error:  # no network; a torchvision for another torch
            fault = f"cannot be loaded ({first_line(error)})"
    raise UserError(f"features lpips: {fault}; choose another distance")


def default_distance(
    discriminator: ProgressiveDiscriminator | None, device: torch.device, side: int
) -> Distance | None:
    """The discriminator's; without one LPIPS if it is available at `side` pixels; or None."""
    if discriminator is not None:
        return discriminator_distance(discriminator)
    if find_spec("lpips") is None or side < _LPIPS_SIDE:
        return None
    try:
        return lpips_distance(device, side)
    except UserError as error:
        logger.warning("%s; only colours are compared", error)
        return None
