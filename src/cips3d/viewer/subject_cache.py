"""Subjects: a generator and styles, from seeds, style mixing, a second model or a photo."""

from __future__ import annotations

import functools
import itertools

import torch

from cips3d.editing.blending import check_same_geometry, interpolate, mix_styles
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Latents, Styles
from cips3d.viewer.requests import Choice

#: How many subjects' styles and how many blends of the two models stay in memory.
_KEPT_STYLES, _KEPT_BLENDS = 32, 8


class Subjects:
    """Finds what a subject is rendered with, and remembers the last few.

    The discriminator helps with photos. Raises UserError if the two models cannot be blended.
    """

    def __init__(
        self,
        generator: RayGenerator,
        other: RayGenerator | None = None,
        discriminator: ProgressiveDiscriminator | None = None,
    ) -> None:
        if other is not None:
            check_same_geometry(generator, other)
        self.generator, self.other, self.discriminator = generator, other, discriminator
        self._inversions: dict[int | None, tuple[RayGenerator, Styles]] = {}
        self._numbers = itertools.count()
        self._styles = functools.lru_cache(_KEPT_STYLES)(self._find_styles)
        self._blended = functools.lru_cache(_KEPT_BLENDS)(self._blend)

    def add(self, generator: RayGenerator, styles: Styles) -> int:
        """Adds a photo's subject; returns its number for `Choice.inversion`."""
        number = next(self._numbers)
        self._inversions[number] = generator, styles
        return number

    def remove(self, number: int | None) -> None:
        """Forgets a photo's subject; its number then means the seeds' subject."""
        if self._inversions.pop(number, None) is not None:
            self._styles.cache_clear()
            self._blended.cache_clear()

    def find(self, choice: Choice) -> tuple[RayGenerator, Styles]:
        """The generator and the styles of one subject."""
        base, _ = self._inversions.get(choice.inversion, (self.generator, None))
        return self._blended(base, choice.blend), self._styles(choice)

    @torch.no_grad()
    def _find_styles(self, choice: Choice) -> Styles:
        psi = (choice.psi_shape, choice.psi_appearance)
        base, inverted = self._inversions.get(choice.inversion, (self.generator, None))
        generator = self._blended(base, choice.blend)
        if inverted is not None:
            content = base.truncate(inverted, psi)
        else:
            content = generator.map(self._latents(choice.shape_seed, choice.appearance_seed), psi)
        if choice.mix_from >= generator.style_blocks:
            return content
        second = self._latents(choice.shape_seed, choice.mix_seed)
        return mix_styles(generator, content, second, choice.mix_from, psi)

    def _latents(self, shape_seed: int, appearance_seed: int) -> Latents:
        """z_s of one seed, z_a of another; with equal seeds, those of `cips3d sample --count 1`."""
        sample = self.generator.sample_latents
        return Latents(sample(1, shape_seed).shape, sample(1, appearance_seed).appearance)

    def _blend(self, base: RayGenerator, amount: float) -> RayGenerator:
        return base if self.other is None or amount == 0 else interpolate(base, self.other, amount)
