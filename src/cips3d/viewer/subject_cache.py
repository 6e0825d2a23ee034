"""What clients share. Subjects: a generator and styles, from seeds, mixing, a model or a photo."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from cips3d.editing.blending import check_same_geometry, interpolate, mix_styles
from cips3d.editing.subject import Subject
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.protocol import Prepared, RayGenerator
from cips3d.models.types import Latents, Styles
from cips3d.viewer.rendering import RenderSpeed
from cips3d.viewer.requests import Choice
from cips3d.viewer.worker import Worker

#: How many subjects' styles, subjects ready for many views, and blends of the two models stay in
#: memory.
_KEPT_STYLES, _KEPT_READY, _KEPT_BLENDS = 32, 8, 8


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
        self._styles = functools.lru_cache(_KEPT_STYLES)(self._find_styles)
        self._ready = functools.lru_cache(_KEPT_READY)(self._make_ready)
        self._blended = functools.lru_cache(_KEPT_BLENDS)(self._blend)

    def find(self, choice: Choice) -> tuple[RayGenerator, Styles]:
        """The generator and the styles of one subject."""
        base = choice.photo.generator if choice.photo else self.generator
        return self._blended(base, choice.blend), self._styles(choice)

    def ready(self, choice: Choice) -> tuple[RayGenerator, Styles | Prepared]:
        """As `find`, made ready for many views."""
        return self._ready(choice)

    def forget(self) -> None:
        """Frees the memory of photos' subjects that no client shows."""
        self._styles.cache_clear()
        self._ready.cache_clear()
        self._blended.cache_clear()

    @torch.no_grad()
    def _make_ready(self, choice: Choice) -> tuple[RayGenerator, Styles | Prepared]:
        generator, styles = self.find(choice)
        return generator, generator.prepare_for(styles, math.inf)

    @torch.no_grad()
    def _find_styles(self, choice: Choice) -> Styles:
        psi, photo = (choice.psi_shape, choice.psi_appearance), choice.photo
        generator = self._blended(photo.generator if photo else self.generator, choice.blend)
        if photo:
            content = photo.generator.truncate(photo.styles, psi)
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


@dataclass(frozen=True)
class Shared:
    """What all clients share.

    Attributes:
        workers: threads for "images", for "meshes" and subjects, for "photos".
        first: first subject of each client, or its seed.
    """

    subjects: Subjects
    speed: RenderSpeed
    workers: dict[str, Worker]
    first: Subject | int
