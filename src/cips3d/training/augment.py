"""DiffAugment (Zhao et al. 2020): the same random changes to real and to generated images.

Colour, translation and cutout, differentiable. Draws are made beforehand, so that a step can be
replayed. Main and auxiliary image of a subject share their draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.records import TensorRecord

#: Side of the blanked square as a share of the image's, the CIPS-3D authors' (DiffAugment: 0.5).
CUTOUT = 0.2


@dataclass(frozen=True)
class AugmentDraws(TensorRecord):
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
        generator = torch.Generator("cpu")
        like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        draws = (torch.rand(8, generator=generator.manual_seed(seed), **like) for seed in seeds)
        rows = torch.stack(list(draws))
        return AugmentDraws(rows[:, :3], rows[:, 3:5], rows[:, 5:7], rows[:, 7] < probability)


def diff_augment(
    images: Float[Tensor, "batch 3 h w"], draws: AugmentDraws
) -> Float[Tensor, "batch 3 h w"]:
    """Changes colours, then moves images by up to an eighth of their size, then blanks a square.

    Images are in [-1, 1]; the draws have one row for each.
    """
    draws = draws.to(images.device)
    colour = draws.colour.to(images.dtype)[..., None, None, None]
    brightness, saturation, contrast = colour.unbind(dim=1)
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
    offsets = []
    for axis, size in enumerate(x.shape[2:]):
        reach = int(size / 8 + 0.5)
        offset = (shift[:, axis] * (2 * reach + 1)).floor().long() - reach
        # the first and last rows of the padded image are empty: what lies outside reads them
        index = torch.arange(1, size + 1, device=x.device) + offset[:, None]
        offsets.append(index.clamp(0, size + 1))
    rows, columns = offsets
    image = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(
    x: Float[Tensor, "batch 3 h w"], position: Float[Tensor, "batch 2"]
) -> Float[Tensor, "batch 3 h w"]:
    """Images with a square set to 0: its part inside the image and the border next to it."""
    inside = []
    for axis, size in enumerate(x.shape[2:]):
        length = int(size * CUTOUT + 0.5)
        first = (position[:, axis] * (size + 1 - length % 2)).floor().long() - length // 2
        cut = (torch.arange(length, device=x.device) + first[:, None]).clamp(0, size - 1)
        outside = torch.zeros(len(x), size, device=x.device, dtype=torch.bool)
        inside.append(outside.scatter(1, cut, True))
    rows, columns = inside
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])
