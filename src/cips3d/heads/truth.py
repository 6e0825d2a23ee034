"""The ground truth of the embedded dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cips3d.camera import Camera, PoseDistribution
from cips3d.heads.dataset import EXTENT, SyntheticHeads
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.models.types import RenderOutput


@dataclass(frozen=True)
class HeadTruth:
    """The heads of a `SyntheticHeads`, as `cips3d.data.Truth` asks for them."""

    heads: SyntheticHeads
    extent: float = EXTENT

    @property
    def poses(self) -> PoseDistribution:
        """The distribution of the dataset's cameras."""
        return self.heads.poses

    @property
    def cartoon(self) -> bool:
        """Whether the images are drawn as cartoons."""
        return self.heads.style == "cartoon"

    def render(
        self,
        indices: Sequence[int],
        camera: Camera,
        resolution: int,
        *,
        unseen: bool = False,
        device: torch.device | str = "cpu",
    ) -> RenderOutput:
        """Renders heads; unseen ones are those of the next seed."""
        heads = replace(self.heads, seed=self.heads.seed + 1) if unseen else self.heads
        batch = heads.render(indices, camera, resolution)
        image = batch.images.to(device).float() / 127.5 - 1
        opacity = batch.mask.to(device).float()
        depth = batch.depth.to(device)
        return RenderOutput(image, image, depth, opacity, torch.zeros_like(opacity))

    def reader(self) -> HeadNetwork:
        """The network that is shipped with the package."""
        return load_head_network()
