"""3D-aware stylisation (paper Section 4.5): blended models, and subjects with two styles.

Both interpolations of the paper are one function: every block of the implicit network has an
amount, 0 for the base model's weights, 1 for the transferred model's. A constant amount is
"linearly interpolating all INR layers" (Fig. 13c). 0 below a block and 1 from it on is "replacing
the higher layers" (Fig. 13b; layer swapping, Pinkney & Adler 2020).
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
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles


def interpolate(
    base: ImageGenerator,
    other: ImageGenerator,
    amount: float | Sequence[float],
    mapping: float | None = None,
) -> Generator:
    """The model (1 − a)·base + a·other: implicit network, appearance mapping and mean appearance.

    Args:
        base, other: models with the same NeRF, such as a model and its `cips3d finetune`. They are
            not changed.
        amount: a for all blocks, or one for each block of the implicit network and its tRGB. Values
            outside [0, 1] extrapolate.
        mapping: a of appearance mapping and mean styles. Default: that of the first block.

    Returns:
        A generator with the base model's camera prior; bit-exact copies of the weights at 0 and 1.

    Raises:
        UserError: if an amount is not finite, there is not one per block, the models' NeRFs differ
            or their networks have different sizes.
    """
    check_same_geometry(base, other)
    assert isinstance(base, Generator)
    blocks = base.style_blocks
    values = torch.as_tensor(amount, dtype=torch.float64)
    amounts = values.tolist() if values.dim() else [float(values)] * blocks
    if len(amounts) != blocks:
        raise UserError(
            f"amounts: {len(amounts)} given for {blocks} blocks; give one, or one per block"
        )
    mapping = amounts[0] if mapping is None else mapping
    for a in (*amounts, mapping):
        if not math.isfinite(a):
            raise UserError(f"amount: {a} is not finite; 0 is the first model, 1 the second")
    blended = copy.deepcopy(base)
    blended.record = None  # no training run made it
    theirs = other.state_dict()
    with torch.no_grad():
        for name, tensor in blended.state_dict().items():
            match name.split("."):
                case ["inr", "blocks", index, *_]:
                    a = amounts[int(index)]
                case ["inr", "to_rgb", index, *_]:
                    a = amounts[int(index) + base.networks.rgb_from_block]
                case _:  # appearance mapping, mean styles and auxiliary head; the rest is equal
                    a = mapping
            if a != 0:  # not lerp at 0 and 1, which would round
                new = theirs[name].to(tensor)
                tensor.copy_(new if a == 1 else torch.lerp(tensor, new, a))
    return blended


def swap_layers(content: ImageGenerator, style: ImageGenerator, from_block: int) -> Generator:
    """The content model with the style model's blocks from `from_block` on.

    It keeps the structure of the one and takes colours and textures of the other.

    Raises:
        UserError: if there is no such block, or as `interpolate`.
    """
    _check_block(from_block, content.style_blocks)
    return interpolate(
        content, style, [float(i >= from_block) for i in range(content.style_blocks)]
    )


def mix_styles(
    generator: ImageGenerator,
    content: Latents | Styles,
    style: Latents | Styles,
    from_block: int,
    psi: Psi = DEFAULT_PSI,
) -> Styles:
    """Styles with another subject's appearance from a block on (style mixing, Karras et al. 2019).

    Args:
        content: shape, and appearance of the blocks before `from_block`.
        style: appearance of the blocks from `from_block` on; as many as `content`, or one.
        psi: truncation of latents; styles are used as they are.

    Raises:
        UserError: if the generator has no implicit network or no such block.
    """
    blocks = generator.style_blocks
    if not blocks:
        name = generator.config.networks.architecture
        raise UserError(f"model: a {name} has no blocks with styles of their own")
    _check_block(from_block, blocks)
    first, second = (
        codes if isinstance(codes, Styles) else generator.map(codes, psi)
        for codes in (content, style)
    )
    before, after = (
        [w] * blocks if isinstance(w, Tensor) else list(w)
        for w in (first.appearance, second.appearance)
    )
    later = [w.expand_as(before[0]) for w in after[from_block:]]
    return Styles(first.shape, [*before[:from_block], *later])


def _check_block(from_block: int, blocks: int) -> None:
    if not 0 <= from_block <= blocks:
        raise UserError(
            f"from_block is {from_block}; it must lie in 0 (all blocks of the second) to {blocks} "
            "(none)"
        )


def check_same_geometry(base: ImageGenerator, other: ImageGenerator) -> None:
    """Raises UserError with the first difference if two models cannot be blended."""
    for generator in (base, other):
        if not generator.geometry_parts:
            name = generator.config.networks.architecture
            raise UserError(f"models: a {name} cannot be blended; give cips-3d models")
    difference = _difference(base, other)
    if difference:
        raise UserError(
            f"models: cannot be blended, since {difference}; give a model and its finetuned "
            "version (cips3d finetune), or two versions of one model"
        )


def _difference(base: ImageGenerator, other: ImageGenerator) -> str | None:
    for name, ours in vars(base.config.networks).items():
        theirs = getattr(other.config.networks, name, None)
        if ours != theirs:
            return f"{name} is {ours} and {theirs}"
    if base.config.sampling != other.config.sampling:
        return "their samples per ray differ"
    weights = other.state_dict()
    prefixes = tuple(f"{part}." for part in base.geometry_parts)
    for name, tensor in base.state_dict().items():
        if name.startswith(prefixes) and not torch.equal(tensor, weights[name].to(tensor)):
            return f"their NeRFs differ ({name})"
    return None
