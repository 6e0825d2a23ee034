"""Where the cameras of generated images come from: a fixed prior, a learned one, or labels.

All draw in two steps, `draw` and `camera`, so that the random numbers of a step can be replayed.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Camera, PoseDistribution, below_pole, mirrored_label
from cips3d.data import Dataset
from cips3d.errors import UserError

#: Largest relative difference between the labels' radius or field of view and the model's.
_TOLERANCE = 0.05
#: Labels that radius, field of view and angles are estimated from.
_ENOUGH = 4096
#: Settings of a run that uses no labels.
WITHOUT_LABELS = (
    "cameras=prior discriminator.camera_label=false aux_discriminator.camera_label=false"
)


class LearnedPoses(nn.Module):
    """A camera prior whose mean and spread are learned (CAMPARI, Niemeyer & Geiger 2021).

    The gradient reaches them through the rays. Turning all subjects and all cameras by one angle
    changes no image, so nothing fixes the means, while the spreads are meaningful.

    Args:
        start: where training starts; "gaussian" or "uniform".
    """

    def __init__(self, start: PoseDistribution) -> None:
        super().__init__()
        self.start = start
        self.mean = nn.Parameter(torch.tensor([start.yaw_mean, start.pitch_mean]))
        # as a logarithm it stays positive and learns at a pace that does not depend on its size
        spread = torch.tensor([start.yaw_std, start.pitch_std])
        self.log_std = nn.Parameter(spread.clamp(min=1e-3).log())

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Standard draws of the prior's kind."""
        return self.start.draw(count, generator)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """Cameras through which gradients reach mean and spread."""
        draws = draws.to(self.mean)
        unit = draws if self.start.kind == "gaussian" else 2 * draws - 1
        yaw, pitch = (self.mean + self.log_std.exp() * unit).unbind(-1)
        return self.start.at(yaw, below_pole(pitch))

    def distribution(self) -> PoseDistribution:
        """The prior as it is now, in float precision."""
        (yaw, pitch), (yaw_std, pitch_std) = self.mean.tolist(), self.log_std.exp().tolist()
        return replace(
            self.start, yaw_mean=yaw, pitch_mean=pitch, yaw_std=yaw_std, pitch_std=pitch_std
        )


class DatasetCameras:
    """The camera of a random image of the dataset, as in tri-plane GANs (EG3D, Chan et al. 2022).

    Args:
        dataset: has labels.
        mirror: mirror half of the cameras, as the real images are.
        prior: the model's, whose radius and field of view the labels must have.

    Raises:
        UserError: if labels have another radius or field of view, or are not of a centred pinhole
            camera in a rigid pose.
    """

    def __init__(self, dataset: Dataset, mirror: bool, prior: PoseDistribution) -> None:
        self.dataset, self.mirror, self.prior = dataset, mirror, prior
        name = dataset.description()["name"]
        dataset.check_cameras()
        cameras = self._sampled()
        radius, fov = float(cameras.position.norm(dim=1).median()), float(cameras.fov.median())
        if max(abs(radius / prior.radius - 1), abs(fov / prior.fov - 1)) > _TOLERANCE:
            # what a camera sees around the origin is proportional to radius · tan(fov / 2)
            tangents = [math.tan(math.radians(degrees) / 2) for degrees in (fov, prior.fov)]
            scale = radius * tangents[0] / (prior.radius * tangents[1])
            raise UserError(
                f"{name}: its labels' cameras are at {radius:.3g} with a field of view of "
                f"{fov:.4g} degrees, the model's at {prior.radius:g} with {prior.fov:g}; set "
                f"generator.poses.radius={radius:.4g} generator.poses.fov={fov:.4g} and "
                f"generator.networks.extent to {scale:.4g} times its value"
            )

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Uniform draws in [0, 1): which image, and whether mirrored."""
        # float32 would skip images of large datasets
        like = {"dtype": torch.float64, "device": generator.device}
        return torch.rand(count, 2, generator=generator, **like)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """The images' cameras."""
        index, mirrored = draws.unbind(-1)
        labels = self.dataset.camera_labels((index * len(self.dataset)).long().tolist())
        if self.mirror:
            labels = torch.where((mirrored < 0.5)[:, None], mirrored_label(labels), labels)
        return Camera.from_label(labels)

    def distribution(self) -> PoseDistribution:
        """A normal prior with the mean and spread of the labels' angles, for the saved model."""
        yaw, pitch = self._sampled().yaw_pitch()
        names = ("yaw_mean", "yaw_std", "pitch_mean", "pitch_std")
        values = yaw.mean(), yaw.std(correction=0), pitch.mean(), pitch.std(correction=0)
        fitted = {name: float(value) for name, value in zip(names, values, strict=True)}
        return replace(self.prior, kind="gaussian", **fitted)

    def _sampled(self) -> Camera:
        return self.camera(self.draw(_ENOUGH, torch.Generator().manual_seed(0)))


CameraSource = PoseDistribution | LearnedPoses | DatasetCameras
