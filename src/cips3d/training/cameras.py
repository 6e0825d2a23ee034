"""Where the cameras of generated pictures come from: a fixed prior, one that is trained, or the dataset's labels.

All draw in two steps, `draw` and `camera`: a step's random numbers are made, and can be replayed, apart from what they mean.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Camera, PoseDistribution, mirrored_label
from cips3d.data import ImageDataset, SyntheticHeads


class LearnedPoses(nn.Module):
    """A camera prior whose mean and spread are trained with the generator (CAMPARI, Niemeyer & Geiger 2021).

    The gradient reaches them through the rays. Turning all subjects and all cameras by one angle changes no picture, so
    the means say where the cameras are relative to the subjects' own axes, which nothing fixes; the spreads are meaningful.

    Args:
        start: where training starts; "gaussian" or "uniform".
    """

    def __init__(self, start: PoseDistribution) -> None:
        super().__init__()
        self.start = start
        self.mean = nn.Parameter(torch.tensor([start.yaw_mean, start.pitch_mean]))
        # as a logarithm it stays positive and learns at a pace that does not depend on its size
        self.log_std = nn.Parameter(torch.tensor([start.yaw_std, start.pitch_std]).clamp(min=1e-3).log())

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Standard draws of the prior's kind."""
        return self.start.draw(count, generator)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """Cameras through which gradients reach mean and spread."""
        draws = draws.to(self.mean)
        unit = draws if self.start.kind == "gaussian" else 2 * draws - 1
        yaw, pitch = (self.mean + self.log_std.exp() * unit).unbind(-1)
        limit = math.pi / 2 - 1e-3  # a camera over the pole has no defined up
        return Camera.orbit(yaw, pitch.clamp(-limit, limit), self.start.radius, self.start.fov)

    def distribution(self) -> PoseDistribution:
        """The prior as it stands, in float precision."""
        (yaw, pitch), (yaw_std, pitch_std) = self.mean.tolist(), self.log_std.exp().tolist()
        return replace(self.start, yaw_mean=yaw, pitch_mean=pitch, yaw_std=yaw_std, pitch_std=pitch_std)


class DatasetCameras:
    """The camera of a random picture of the dataset, as tri-plane GANs draw theirs (EG3D, Chan et al. 2022).

    Args:
        dataset: has labels.
        mirror: half of the cameras are mirrored, as the real pictures are.
    """

    def __init__(self, dataset: SyntheticHeads | ImageDataset, mirror: bool) -> None:
        self.dataset, self.mirror = dataset, mirror

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Uniform numbers in [0, 1): which picture, and whether mirrored. In float64, or large datasets would have gaps."""
        return torch.rand(count, 2, generator=generator, dtype=torch.float64)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """The pictures' cameras.

        Raises:
            UserError: if a label is of a camera that is no centred pinhole.
        """
        index, mirrored = draws.unbind(-1)
        labels = self.dataset.camera_labels((index * len(self.dataset)).long().tolist())
        if self.mirror:
            labels = torch.where((mirrored < 0.5)[:, None], mirrored_label(labels), labels)
        return Camera.from_label(labels)


CameraSource = PoseDistribution | LearnedPoses | DatasetCameras
