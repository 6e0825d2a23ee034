"""How much a rendered picture is like a given one: colours at several scales, and a network's features."""

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

#: (B, 3, R, R) pictures and as many others -> (B,) distances.
Distance = Callable[[Tensor, Tensor], Tensor]

#: Halvings of a picture whose colours are compared besides its own.
_HALVINGS = 2
#: Pixels, below which VGG has nothing left to look at.
_LPIPS_SIDE = 32
logger = logging.getLogger(__name__)


def pixel_distance(
    a: Float[Tensor, "batch 3 res res"], b: Float[Tensor, "batch 3 res res"]
) -> Float[Tensor, " batch"]:
    """Root mean square difference of colours, at full, half and quarter size, in units of [-1, 1].

    The small ones let a subject that is out of place find its way.
    """
    total = _root_mean_square(a - b)
    for _ in range(_HALVINGS):
        if min(a.shape[2:]) < 2:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + _root_mean_square(a - b)
    return total


def _root_mean_square(x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, " batch"]:
    """By a norm, whose gradient at 0 is 0, where that of a square root is infinite."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3)) / x[0].numel() ** 0.5


def discriminator_distance(discriminator: ProgressiveDiscriminator) -> Distance:
    """Distance of the features of a discriminator, which knows what matters in its domain.

    Of every block's activations, each pixel's vector scaled to length 1, as LPIPS has it (Zhang et al. 2018), the mean squared
    difference; pictures larger than the discriminator takes are reduced first.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(
            *(discriminator.features(discriminator.reduced(x)) for x in (a, b)), strict=True
        )
        parts = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
            for x, y in pairs
        ]
        return torch.stack(parts).mean(dim=0)

    return distance


def lpips_distance(device: torch.device, side: int) -> Distance:
    """LPIPS with VGG (Zhang et al. 2018), by the package of that name, which fetches its weights.

    Args:
        side: of the pictures, pixels.

    Raises:
        UserError: if the package is missing, its weights cannot be had, or the pictures are too small for VGG.
    """
    if side < _LPIPS_SIDE:
        raise UserError(
            f"features lpips: it takes pictures of {_LPIPS_SIDE}² and more, the model makes {side}²; take another"
        )
    try:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports] (a package that users may have)

        network = LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except ImportError as error:
        raise UserError(
            f"features lpips: {error}; pip install lpips torchvision, or take another"
        ) from None
    except (OSError, RuntimeError) as error:  # no network; a torchvision of another torch
        raise UserError(
            f"features lpips: it cannot be loaded ({first_line(error)}); take another"
        ) from None
    return lambda a, b: network(a.float(), b.float()).flatten()


def usual_distance(
    discriminator: ProgressiveDiscriminator | None, device: torch.device, side: int
) -> Distance | None:
    """Of the discriminator's features; without one LPIPS, if it is installed and can be had; else none.

    Args:
        side: of the pictures, pixels.
    """
    if discriminator is not None:
        return discriminator_distance(discriminator)
    if find_spec("lpips") is None or side < _LPIPS_SIDE:
        return None
    try:
        return lpips_distance(device, side)
    except UserError as error:
        logger.warning("%s; colours alone count", error)
        return None
