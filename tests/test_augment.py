"""DiffAugment: equal to the authors', differentiable, the same for real and generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cips3d.training.augment import AugmentDraws, diff_augment

SEEDS = [3, 1, 4, 1, 5, 9]


def images(count: int = 6, size: int = 16) -> torch.Tensor:
    return (
        torch.rand(
            count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        * 2
        - 1
    )


def test_equals_the_authors() -> None:
    units = {
        key: torch.from_numpy(value)
        for key, value in np.load(Path(__file__).parent / "data" / "units.npz").items()
    }
    colour = torch.cat([units[f"diffaug.draw{i}.rand"].flatten(1) for i in range(3)], dim=1)
    # their integer draws as the middle of the interval of [0, 1) that gives them: shifts in -2…2,
    # offsets in 0…15
    shift = torch.cat(
        [(units[f"diffaug.draw{i}.randint"].flatten(1) + 2.5) / 5 for i in (3, 4)], dim=1
    )
    cutout = torch.cat(
        [(units[f"diffaug.draw{i}.randint"].flatten(1) + 0.5) / 16 for i in (5, 6)], dim=1
    )
    found = diff_augment(
        units["diffaug.x"], AugmentDraws(colour, shift, cutout, torch.ones(4, dtype=torch.bool))
    )
    assert (found - units["diffaug.y"]).abs().max() < 1e-6


def test_gradients_reach_every_pixel_that_is_left() -> None:
    draws = AugmentDraws.sample(SEEDS[:2])
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, draws), images(2, 4).requires_grad_())


def test_a_picture_is_changed_by_its_own_draws_alone() -> None:
    whole = diff_augment(images(), AugmentDraws.sample(SEEDS))
    for i, seed in enumerate(SEEDS):
        torch.testing.assert_close(
            diff_augment(images()[i : i + 1], AugmentDraws.sample([seed])), whole[i : i + 1]
        )


def test_probability_is_the_share_of_changed_pictures() -> None:
    seeds = list(range(1000))
    draws = AugmentDraws.sample(seeds, 0.3)
    x = images(1, 8).expand(1000, -1, -1, -1)
    changed = (diff_augment(x, draws) != x).any(dim=(1, 2, 3))
    assert torch.equal(changed, draws.applied)
    assert abs(changed.float().mean() - 0.3) < 0.05
    assert not AugmentDraws.sample(seeds, 0.0).applied.any()
