"""HeadNetwork: a small convolutional network that reads images of the embedded heads.

It is trained on the embedded dataset alone, in both styles, on images with added blur, noise and
colour shifts (experiments/head_network.py). The metrics use its features for the distance between
generated and true heads, its pose and depth as an independent measurement of the geometry, and its
traits to compare identities.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from cips3d.heads.traits import OPTIONS

#: Side of its input and of its depth maps, pixels.
SIDE, DEPTH_SIDE = 64, 32
#: Width of the features.
FEATURES = 128
#: Kinds that it classifies, and the number of classes. Sides -1, 0, +1 are classes 0, 1, 2.
KINDS: Mapping[str, int] = {
    **{name: len(options) for name, options in OPTIONS.items()},
    **{"bangs_side": 3, "earring_side": 3, "glasses": 2, "sunglasses": 2, "cartoon": 2},
}
#: Colours that it estimates, RGB in [0, 1].
COLORS = ("skin_color", "hair_color", "cloth_color", "background")
#: Kinds that differ between heads: the style of drawing does not.
_TRAITS = tuple(kind for kind in KINDS if kind != "cartoon")
#: World units per unit of the raw depth output.
_DEPTH_SCALE = 0.05
Images = Float[Tensor, "batch 3 height width"]
_WEIGHTS = Path(__file__).parent / "network.safetensors"


@dataclass(frozen=True)
class HeadReading:
    """Predictions for a batch of images."""

    features: Float[Tensor, "batch feature"]
    yaw: Float[Tensor, " batch"]  # of the camera, radians
    pitch: Float[Tensor, " batch"]
    kinds: dict[str, Float[Tensor, "batch options"]]  # logits by name, see KINDS
    colors: dict[str, Float[Tensor, "batch 3"]]  # by name, see COLORS; roughly in [0, 1]
    #: Standard deviations of the added blur (pixels of 64²) and noise (units of [-1, 1], times 10).
    damage: Float[Tensor, "batch 2"]
    #: Along the pixel's ray for a camera at radius 1, world units; meaningful on the head only.
    depth: Float[Tensor, "batch 1 32 32"]
    mask: Float[Tensor, "batch 1 32 32"]  # probability that the pixel shows the head


class HeadNetwork(nn.Module):
    """Convolutions down to 4×4, linear heads, and a U-Net decoder for depth and mask.

    Images of any size are resized to 64² first (bilinear, antialiased).
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96, 128)  # at 64², then after each halving
        self.stem = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.stages = nn.ModuleList(_stage(a, b) for a, b in itertools.pairwise(widths[1:]))
        self.to_features = nn.Linear(widths[-1] * 16, FEATURES)
        outputs = 2 + sum(KINDS.values()) + 3 * len(COLORS) + 2
        hidden = nn.Linear(FEATURES, 256)
        self.read = nn.Sequential(nn.SiLU(), hidden, nn.SiLU(), nn.Linear(256, outputs))
        self.up = nn.ModuleList(
            nn.Conv2d(below + skip, out, 3, padding=1)
            for below, skip, out in ((128, 96, 48), (48, 64, 32), (32, 32, 16))
        )
        self.to_depth = nn.Conv2d(16, 2, 3, padding=1)
        self.identity_mean: Tensor
        width = sum(KINDS[kind] for kind in _TRAITS) + 3 * len(COLORS)
        self.register_buffer("identity_mean", torch.zeros(width))

    def forward(self, images: Images) -> HeadReading:
        """Reads square images in [-1, 1] of any size, on any device."""
        pyramid = self._pyramid(images)
        features = self.to_features(pyramid[-1].flatten(1))
        sizes = [1, 1, *KINDS.values(), *[3] * len(COLORS), 2]
        yaw, pitch, *rest, damage = self.read(features).split(sizes, dim=1)
        kinds, colors = rest[: len(KINDS)], rest[len(KINDS) :]
        x = pyramid[-1]
        for layer, skip in zip(self.up, pyramid[-2:0:-1], strict=True):
            x = F.silu(layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1)))
        depth, mask = self.to_depth(x).split(1, dim=1)
        return HeadReading(
            features, yaw[:, 0], pitch[:, 0],
            dict(zip(KINDS, kinds, strict=True)), dict(zip(COLORS, colors, strict=True)),
            damage, 1 + _DEPTH_SCALE * depth, torch.sigmoid(mask),
        )  # fmt: skip

    def features(self, images: Images) -> Float[Tensor, "batch feature"]:
        """The features alone."""
        return self.to_features(self._pyramid(images)[-1].flatten(1))

    def pose(self, images: Images) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Camera yaw and pitch, radians."""
        reading = self(images)
        return reading.yaw, reading.pitch

    def identity(self, images: Images) -> Float[Tensor, "batch identity"]:
        """Identity vectors: parallel for images of one head, orthogonal on average for two.

        They hold the probabilities of all kinds but the style, and the colours, minus their mean
        over the embedded dataset.
        """
        return _traits(self(images)) - self.identity_mean

    def set_identity_mean(self, images: Images) -> None:
        """Stores the mean of the traits over these images."""
        self.identity_mean.copy_(_traits(self(images)).mean(dim=0))

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        """Activations at 64², 32², 16², 8² and 4²."""
        images = images.to(self.identity_mean)
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        pyramid = [F.silu(self.stem(images))]
        for stage in self.stages:
            pyramid.append(stage(pyramid[-1]))
        return pyramid


def _stage(in_dim: int, out_dim: int) -> nn.Sequential:
    """Two convolutions, the first of which halves the resolution."""
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1), nn.GroupNorm(8, out_dim), nn.SiLU(),
        nn.Conv2d(out_dim, out_dim, 3, padding=1), nn.GroupNorm(8, out_dim), nn.SiLU(),
    )  # fmt: skip


def _traits(reading: HeadReading) -> Float[Tensor, "batch identity"]:
    probabilities = [reading.kinds[kind].softmax(dim=1) for kind in _TRAITS]
    return torch.cat([*probabilities, *reading.colors.values()], dim=1)


def load_head_network() -> HeadNetwork:
    """The network that is shipped with the package, in evaluation mode, on the CPU."""
    # weights made in inference mode could never pass a gradient to the images
    with torch.inference_mode(False):
        network = HeadNetwork()
        weights = load_file(_WEIGHTS)
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval().requires_grad_(False)
