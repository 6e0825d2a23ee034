"""DiffAugment (Zhao et al. 2020): the same random changes to real and to generated images.

Colour (brightness, saturation, contrast), translation and cutout, differentiable. Draws are made
beforehand, so that a step can be replayed. Main and auxiliary image of a subject share their draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

#: Side of the blanked square as a share of the image's, the CIPS-3D authors' (DiffAugment: 0.5).
CUTOUT = 0.2


@dataclass(frozen=True)
class AugmentDraws:
    """Random numbers of one batch, one row per image, all in [0, 1).

    Attributes:
        colour: brightness, saturation and contrast.
        shift: translation, rows and columns.
        cutout: position of the cut-out square, row and column.
        applied: which images are changed at all.
    """

    colour: Float[Tensor, "batch 3"]
    shift: Float[Tensor, "batch 2"]
    cutout: Float[Tensor, "batch 2"]
    applied: Bool[Tensor, " batch"]

    @staticmethod
    def sample(seeds: list[int], probability: float = 1.0) -> AugmentDraws:
        """One image's draws per seed, on the CPU; each image is changed with this probability."""
        rows = torch.stack(
            [torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        return AugmentDraws(rows[:, :3], rows[:, 3:5], rows[:, 5:7], rows[:, 7] < probability)


def diff_augment(
    images: Float[Tensor, "batch 3 h w"], draws: AugmentDraws
) -> Float[Tensor, "batch 3 h w"]:
    """Changes colours, then moves images by up to an eighth of their size, then blanks a square.

    Args:
        images: in [-1, 1].
        draws: one row per image.
    """
    draws = AugmentDraws(*(value.to(images.device) for value in vars(draws).values()))
    brightness, saturation, contrast = draws.colour.to(images.dtype)[..., None, None, None].unbind(
        1
    )
    x = images + (brightness - 0.5)
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (saturation * 2) + mean
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean
    x = _cut_out(_moved(x, draws.shift), draws.cutout)
    return torch.where(draws.applied[:, None, None, None], x, images)


def _moved(
    x: Float[Tensor, "batch 3 h w"], shift: Float[Tensor, "batch 2"]
) -> Float[Tensor, "batch 3 h w"]:
    """Images moved by whole pixels, up to an eighth of their size each way; the rest is 0."""
    batch, _, height, width = x.shape
    offsets = []
    for axis, size in enumerate((height, width)):
        reach = int(size / 8 + 0.5)
        offset = (shift[:, axis] * (2 * reach + 1)).floor().long() - reach
        # the first and last rows of the padded image are empty: what lies outside reads them
        offsets.append(
            (torch.arange(size, device=x.device) + offset[:, None] + 1).clamp(0, size + 1)
        )
    rows, columns = offsets
    image = torch.arange(batch, device=x.device)[:, None, None]
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(
    x: Float[Tensor, "batch 3 h w"], position: Float[Tensor, "batch 2"]
) -> Float[Tensor, "batch 3 h w"]:
    """Images with a square set to 0.

    Of a square that is partly outside, the part inside and the border next to it are set.
    """
    batch, _, height, width = x.shape
    inside = []
    for axis, size in enumerate((height, width)):
        length = int(size * CUTOUT + 0.5)
        first = (position[:, axis] * (size + 1 - length % 2)).floor().long() - length // 2
        cut = (torch.arange(length, device=x.device) + first[:, None]).clamp(0, size - 1)
        inside.append(
            torch.zeros(batch, size, device=x.device, dtype=torch.bool).scatter(1, cut, True)
        )
    rows, columns = inside
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])
