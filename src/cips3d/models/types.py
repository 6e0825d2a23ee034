"""What goes into a rendering and what comes out: codes, styles, sampling, random draws, rays' and pictures' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cips3d.configuration import Configuration
from cips3d.errors import UserError

#: A pixel shows the subject where more of the light than this ends at it.
SOLID = 0.5


@dataclass(frozen=True)
class Latents:
    """A batch of latent codes, each a sample of a standard normal distribution.

    Attributes:
        shape: (B, shape_dim) codes z_s.
        appearance: (B, appearance_dim) codes z_a.
    """

    shape: Float[Tensor, "batch zs"]
    appearance: Float[Tensor, "batch za"]

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Latents:
        """The codes at `index`; an int keeps a batch of one."""
        if isinstance(index, int):
            return Latents(self.shape[index][None], self.appearance[index][None])
        return Latents(self.shape[index], self.appearance[index])

    def to(self, *args, **kwargs) -> Latents:
        """The same codes with `Tensor.to(*args, **kwargs)` applied."""
        return Latents(self.shape.to(*args, **kwargs), self.appearance.to(*args, **kwargs))


@dataclass(frozen=True)
class Styles:
    """A batch of mapped codes.

    Attributes:
        shape: (B, shape_style_dim) codes w_s.
        appearance: (B, appearance_style_dim) codes w_a for all blocks, or a sequence of them, one per INR block.
    """

    shape: Float[Tensor, "batch ws"]
    appearance: Float[Tensor, "batch wa"] | Sequence[Float[Tensor, "batch wa"]]

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Styles:
        """The codes at `index`; an int keeps a batch of one."""
        return self.map(lambda x: x[index][None] if isinstance(index, int) else x[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Styles:
        """Styles with `function` applied to every tensor."""
        if isinstance(self.appearance, Tensor):
            return Styles(function(self.shape), function(self.appearance))
        return Styles(function(self.shape), [function(a) for a in self.appearance])


@dataclass(frozen=True)
class Sampling(Configuration):
    """Where a ray is sampled.

    Attributes:
        coarse: stratified samples per ray, ≥ 3 (≥ 2 without fine ones).
        fine: importance samples per ray, 0 for none.
    """

    coarse: int
    fine: int

    def __post_init__(self) -> None:
        if self.coarse < (3 if self.fine else 2) or self.fine < 0:
            raise UserError(
                f"samples: {self.coarse} coarse and {self.fine} fine; take at least 3 coarse and 0 fine ones"
            )


@dataclass(frozen=True)
class RayDraws:
    """Every random number that rendering uses, drawn beforehand, so that a ray's colour never depends on its neighbours.

    Attributes:
        jitter: (B, N, coarse) uniform draws that move the stratified samples.
        importance: (B, N, fine) uniform draws for the importance samples.
        coarse_noise: (B, N, coarse) density noise of the coarse pass, already scaled, or None.
        noise: (B, N, coarse + fine) density noise of all samples in order of depth, already scaled, or None.
    """

    jitter: Float[Tensor, "batch rays coarse"]
    importance: Float[Tensor, "batch rays fine"]
    coarse_noise: Float[Tensor, "batch rays coarse"] | None = None
    noise: Float[Tensor, "batch rays all"] | None = None

    @staticmethod
    def sample(
        batch: int,
        rays: int,
        sampling: Sampling,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> RayDraws:
        """Draws for a whole picture, on the generator's device (the CPU without one).

        Args:
            noise_std: standard deviation of the density noise, per world unit; 0 for none.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        like = {"generator": generator, "device": device}
        jitter = torch.rand(batch, rays, sampling.coarse, **like)
        # one draw in each of `fine` equal parts of the CDF: the same distribution as independent draws, with less noise
        parts = torch.arange(sampling.fine, device=device)
        importance = (torch.rand(batch, rays, sampling.fine, **like) + parts) / max(
            1, sampling.fine
        )
        if noise_std == 0:
            return RayDraws(jitter, importance)
        coarse_noise = (
            torch.randn(batch, rays, sampling.coarse, **like) * noise_std if sampling.fine else None
        )
        return RayDraws(
            jitter,
            importance,
            coarse_noise,
            torch.randn(batch, rays, sampling.coarse + sampling.fine, **like) * noise_std,
        )

    @staticmethod
    def cat(parts: Sequence[RayDraws]) -> RayDraws:
        """The draws of all parts in one batch."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return RayDraws(*joined)

    def __getitem__(self, index: slice | Tensor) -> RayDraws:
        """The draws of the rays at `index`."""
        return self._map(lambda x: x[:, index])

    def to(self, *args, **kwargs) -> RayDraws:
        """The same draws with `Tensor.to(*args, **kwargs)` applied."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def _map(self, f: Callable[[Tensor], Tensor]) -> RayDraws:
        noise = [None if x is None else f(x) for x in (self.coarse_noise, self.noise)]
        return RayDraws(f(self.jitter), f(self.importance), *noise)


@dataclass(frozen=True)
class RayOutput:
    """What is known of each ray.

    Attributes:
        rgb: (B, N, 3) colours of the INR.
        aux_rgb: (B, N, 3) colours of the auxiliary head on the rendered feature (the "NeRF image").
        depth: (B, N) expected depth along the ray, Σ w t + (1 − Σ w)·far, world units.
        opacity: (B, N) Σ w in [0, 1].
        last_weight: (B, N) what of Σ w lies on the deepest sample: near 1 where the ray sees the far plane only.
        feature: (B, N, feature_dim) rendered features V_r.
    """

    rgb: Float[Tensor, "batch rays 3"]
    aux_rgb: Float[Tensor, "batch rays 3"]
    depth: Float[Tensor, "batch rays"]
    opacity: Float[Tensor, "batch rays"]
    last_weight: Float[Tensor, "batch rays"]
    feature: Float[Tensor, "batch rays feature"]

    def stacked(self) -> Float[Tensor, "batch rays 9"]:
        """rgb, aux_rgb, depth, opacity and last_weight side by side."""
        scalars = torch.stack([self.depth, self.opacity, self.last_weight], dim=-1)
        # under autocast colours have 16 bits, in which all of a head's depths are a handful of values
        return torch.cat([self.rgb.to(scalars), self.aux_rgb.to(scalars), scalars], dim=-1)


@dataclass(frozen=True)
class RenderOutput:
    """Pictures of a batch.

    Attributes:
        image: (B, 3, H, W) INR pictures in [-1, 1] (not clamped).
        aux_image: (B, 3, H, W) pictures of the auxiliary head.
        depth, opacity, last_weight: (B, 1, H, W), as in RayOutput.
    """

    image: Float[Tensor, "batch 3 height width"]
    aux_image: Float[Tensor, "batch 3 height width"]
    depth: Float[Tensor, "batch 1 height width"]
    opacity: Float[Tensor, "batch 1 height width"]
    last_weight: Float[Tensor, "batch 1 height width"]

    @property
    def subject_opacity(self) -> Float[Tensor, "batch 1 height width"]:
        """What of the light ends before the deepest sample, which some backgrounds make opaque; in [0, 1]."""
        return self.opacity - self.last_weight

    @property
    def solid(self) -> Bool[Tensor, "batch 1 height width"]:
        """Where the subject is: most of the light ends at it."""
        return self.subject_opacity > SOLID
