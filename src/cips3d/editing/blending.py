"""3D-aware stylisation (paper Section 4.5): models between a base model and one transferred from it; subjects with two styles.

Both kinds of interpolation of the paper are one here: every block of the implicit network has an amount, 0 for the base model's
weights, 1 for the transferred model's. A constant amount is its "linearly interpolating all INR layers" (Fig. 13c); 0 below a
block and 1 from it on is its "replacing the higher layers" (Fig. 13b; layer swapping, Pinkney & Adler 2020).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Latents, Styles


def interpolate(
    base: ImageGenerator,
    other: ImageGenerator,
    amount: float | Sequence[float],
    mapping: float | None = None,
) -> Generator:
    """A model between two: its implicit network, appearance mapping and mean appearance are (1 − a)·base + a·other.

    Args:
        base, other: models with the same NeRF, such as one and what `cips3d finetune` made of it. They are left as they are.
        amount: a for all blocks, or one for each block of the implicit network with its tRGB; outside [0, 1] it exaggerates.
        mapping: a of appearance mapping and mean styles; by default that of the first block.

    Returns:
        A generator with the base model's camera prior, exactly equal to one of the two at 0 and at 1.

    Raises:
        UserError: if an amount is not finite, their number is not that of the blocks, the models' NeRFs differ or their
            implicit networks have other sizes.
    """
    check_same_geometry(base, other)
    assert isinstance(base, Generator)
    blocks = base.style_blocks
    amounts = (
        [float(amount)] * blocks if isinstance(amount, int | float) else [float(a) for a in amount]
    )
    if len(amounts) != blocks:
        raise UserError(
            f"amounts: {len(amounts)} given for {blocks} blocks; give one for each, or a single one"
        )
    mapping = amounts[0] if mapping is None else mapping
    for a in (*amounts, mapping):
        if not math.isfinite(a):
            raise UserError(f"amount: {a} is not a number; 0 is the first model, 1 the second")
    blended = copy.deepcopy(base)
    theirs = other.state_dict()
    with torch.no_grad():
        for name, tensor in blended.state_dict().items():
            tensor.copy_(
                _between(tensor, theirs[name].to(tensor), _amount_of(name, base, amounts, mapping))
            )
    return blended


def swap_layers(content: ImageGenerator, style: ImageGenerator, from_block: int) -> Generator:
    """The content model with the style model's blocks from `from_block` on: its structure, the other's colours and textures.

    Raises:
        UserError: if there is no such block, or see `interpolate`.
    """
    blocks = content.style_blocks
    if not 0 <= from_block <= blocks:
        raise UserError(
            f"from_block: {from_block}; it must lie in 0 (all of the second model) to {blocks} (none of it)"
        )
    return interpolate(content, style, [float(i >= from_block) for i in range(blocks)])


def mix_styles(
    generator: ImageGenerator,
    content: Latents | Styles,
    style: Latents | Styles,
    from_block: int,
    psi: float | tuple[float, float] = 1.0,
) -> Styles:
    """Styles of subjects with others' appearance in the blocks from `from_block` on (style mixing, Karras et al. 2019).

    Args:
        content: shape, and the appearance of the blocks before.
        style: the appearance of the blocks from there on; as many, or one.
        psi: truncation of latents (see `Generator.map`); styles, such as an inverted picture's, are taken as they are.

    Raises:
        UserError: if the generator has no implicit network or no such block.
    """
    blocks = generator.style_blocks
    if not blocks:
        name = generator.config.networks.architecture
        raise UserError(f"model: a {name} has no blocks that could have styles of their own")
    if not 0 <= from_block <= blocks:
        raise UserError(
            f"from_block: {from_block}; it must lie in 0 to {blocks}, the number of blocks"
        )
    first, second = (
        codes if isinstance(codes, Styles) else generator.map(codes, psi)
        for codes in (content, style)
    )
    earlier, later = (
        [w] * blocks if isinstance(w, Tensor) else list(w)
        for w in (first.appearance, second.appearance)
    )
    return Styles(
        first.shape, [*earlier[:from_block], *(w.expand_as(earlier[0]) for w in later[from_block:])]
    )


def check_same_geometry(base: ImageGenerator, other: ImageGenerator) -> None:
    """Raises UserError, which names the first difference, if two models cannot be blended."""
    for generator in (base, other):
        if not generator.geometry_parts:
            name = generator.config.networks.architecture
            raise UserError(f"models: a {name} cannot be blended; give models of cips-3d")
    for name, ours in vars(base.config.networks).items():
        theirs = getattr(other.config.networks, name, None)
        if ours != theirs:
            raise UserError(
                f"models: they cannot be blended: {name} is {ours} and {theirs}; give a model and "
                "what cips3d finetune made of it"
            )
    if base.config.sampling != other.config.sampling:
        raise UserError("models: they cannot be blended, since their samples per ray differ")
    prefixes = tuple(f"{part}." for part in base.geometry_parts)
    weights = other.state_dict()
    for name, tensor in base.state_dict().items():
        if name.startswith(prefixes) and not torch.equal(tensor, weights[name].to(tensor)):
            raise UserError(
                f"models: they cannot be blended, since their NeRFs differ ({name}); give a model "
                "and what cips3d finetune made of it, or two that were made of the same one"
            )


def _amount_of(name: str, generator: Generator, amounts: Sequence[float], mapping: float) -> float:
    """The amount that an entry of the state_dict is blended with."""
    match name.split("."):
        case ["inr", "blocks", index, *_]:
            return amounts[int(index)]
        case ["inr", "to_rgb", index, *_]:
            return amounts[int(index) + generator.networks.rgb_from_block]
    return (
        mapping  # of what is not the same in both: appearance mapping, mean styles, auxiliary head
    )


def _between(base: Tensor, other: Tensor, amount: float) -> Tensor:
    """(1 − a)·base + a·other, to the bit at 0 and 1."""
    if amount in (0.0, 1.0):
        return other if amount else base
    return torch.lerp(base, other, amount)
