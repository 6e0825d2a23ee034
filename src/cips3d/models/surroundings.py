"""What lies behind the subject in photographs: a far sphere, for the background "field".

A far sphere shifts against the subject by a whole image when the camera turns by the field of view,
so no part of the subject can be painted on it. Its colours are mixed with those of the implicit
network, not its features: a part of the subject is only as visible as its density is opaque.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.models.layers import FilmSiren, rgb_head, without_autocast
from cips3d.models.types import StyleCodes

#: Factor of the directions: an image with a field of view of 12° spans about [-1, 1], as the volume
#: does for the radiance field.
_SCALE = 10.0


class Surroundings(nn.Module):
    """(d, w_a) ↦ rgb in [-1, 1]: two FiLM-SIREN layers, a linear layer and tanh.

    So narrow a network shows about as many waves across an image as a blurred background has.
    """

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        self.first = FilmSiren(3, width, style_dim)
        self.second = FilmSiren(width, width, style_dim)
        self.colour = rgb_head(width, 25)

    def forward(
        self, directions: Float[Tensor, "batch rays 3"], w: StyleCodes
    ) -> Float[Tensor, "batch rays 3"]:
        """Colours of unit directions."""
        with without_autocast(directions.device):
            x = self.second(self.first(_SCALE * directions, w), w)
            return self.colour(x).tanh()


def turned(
    directions: Float[Tensor, "batch rays 3"], angle: Float[Tensor, "batch rays 1"]
) -> Float[Tensor, "batch rays 3"]:
    """Directions turned about the y axis by angles in radians."""
    x, y, z = directions.split(1, dim=-1)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([x * cos + z * sin, y, z * cos - x * sin], dim=-1)
