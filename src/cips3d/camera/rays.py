"""Rays, and the middle of the part of each that is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.records import TensorRecord


@dataclass(frozen=True)
class Rays(TensorRecord):
    """A batch of rays `origin + t·direction`; indexing selects rays of every batch entry."""

    axis: ClassVar[int] = 1

    origins: Float[Tensor, "batch rays 3"]
    """world positions"""
    directions: Float[Tensor, "batch rays 3"]
    """unit vectors"""
    centres: Float[Tensor, "batch rays 3"] | None = None
    """the middle of the sampled part of each ray; None for the point that is as far from its origin
    as the world's origin is. Cameras give them, more precisely than origins and directions can
    from afar."""

    def at(self, t: Float[Tensor, "batch rays samples"]) -> Float[Tensor, "batch rays samples 3"]:
        """The points origins + t·directions."""
        return torch.addcmul(self.origins[:, :, None], t[..., None], self.directions[:, :, None])

    def centred(self) -> tuple[Rays, Float[Tensor, "batch rays"]]:
        """The same rays with their centres as origins, and the depths of the centres.

        Depths from there are small however far away a camera is, so they keep their digits. Where a
        camera moves along its axis, points at such depths stay in place.
        """
        if self.centres is None:
            distance = self.origins.square().sum(dim=-1).sqrt()
            centres = torch.addcmul(self.origins, distance[..., None], self.directions)
        else:
            centres = self.centres
            distance = ((centres - self.origins) * self.directions).sum(dim=-1)
        return Rays(centres, self.directions, centres), distance

    @property
    def count(self) -> int:
        """Rays per batch entry, N."""
        return self.origins.shape[1]
