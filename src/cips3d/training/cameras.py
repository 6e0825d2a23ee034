"""Where the cameras of generated pictures come from: a fixed prior, one that is trained, or the dataset's labels.

All draw in two steps, `draw` and `camera`: a step's random numbers are made, and can be replayed, apart from what they mean.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import Camera, PoseDistribution, is_centred, is_rigid, mirrored_label
from cips3d.data import ImageDataset
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads

#: By how much labels' radius and field of view may differ from the model's; how many of them are looked at.
_UNLIKE, _ENOUGH = 0.05, 4096


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
        self.log_std = nn.Parameter(
            torch.tensor([start.yaw_std, start.pitch_std]).clamp(min=1e-3).log()
        )

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Standard draws of the prior's kind."""
        return self.start.draw(count, generator)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """Cameras through which gradients reach mean and spread."""
        draws = draws.to(self.mean)
        unit = draws if self.start.kind == "gaussian" else 2 * draws - 1
        yaw, pitch = (self.mean + self.log_std.exp() * unit).unbind(-1)
        limit = math.pi / 2 - 1e-3  # a camera over the pole has no defined up
        return self.start.at(yaw, pitch.clamp(-limit, limit))

    def distribution(self) -> PoseDistribution:
        """The prior as it stands, in float precision."""
        (yaw, pitch), (yaw_std, pitch_std) = self.mean.tolist(), self.log_std.exp().tolist()
        return replace(
            self.start, yaw_mean=yaw, pitch_mean=pitch, yaw_std=yaw_std, pitch_std=pitch_std
        )


#: Settings of a run that looks at no labels.
WITHOUT_LABELS = (
    "cameras=prior discriminator.camera_label=false aux_discriminator.camera_label=false"
)


class DatasetCameras:
    """The camera of a random picture of the dataset, as tri-plane GANs draw theirs (EG3D, Chan et al. 2022).

    Args:
        dataset: has labels.
        mirror: half of the cameras are mirrored, as the real pictures are.
        prior: the model's, whose radius and field of view they must have: rays are sampled about that distance.

    Raises:
        UserError: if they have another radius or field of view, or a label is not of a centred pinhole camera in a rigid pose.
    """

    def __init__(
        self, dataset: SyntheticHeads | ImageDataset, mirror: bool, prior: PoseDistribution
    ) -> None:
        self.dataset, self.mirror, self.prior = dataset, mirror, prior
        if isinstance(dataset, ImageDataset) and dataset.labels is not None:
            aside = (~(is_centred(dataset.labels) & is_rigid(dataset.labels))).nonzero()
            if len(aside):
                raise UserError(
                    f"{dataset.path}: the label of {dataset.names[int(aside[0])]} is not of a rotation, a position and a "
                    f"centred pinhole camera with equal focal lengths; mend the labels, or do without (--set {WITHOUT_LABELS})"
                )
        cameras = self._some()
        radius, fov = (float(x.median()) for x in (cameras.position.norm(dim=1), cameras.fov))
        if abs(radius / prior.radius - 1) > _UNLIKE or abs(fov / prior.fov - 1) > _UNLIKE:
            scale = _height(radius, fov) / _height(prior.radius, prior.fov)
            raise UserError(
                f"{dataset.description()['name']}: its labels' cameras stand at {radius:.3g} with a field of view of {fov:.4g} "
                f"degrees, the model's at {prior.radius:g} with {prior.fov:g}; set generator.poses.radius={radius:.4g} "
                f"generator.poses.fov={fov:.4g} and generator.extent to {scale:.4g} times what it is"
            )

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 2"]:
        """Uniform numbers in [0, 1): which picture, and whether mirrored. In float64, or large datasets would have gaps."""
        return torch.rand(count, 2, generator=generator, dtype=torch.float64)

    def camera(self, draws: Float[Tensor, "count 2"]) -> Camera:
        """The pictures' cameras."""
        index, mirrored = draws.unbind(-1)
        labels = self.dataset.camera_labels((index * len(self.dataset)).long().tolist())
        if self.mirror:
            labels = torch.where((mirrored < 0.5)[:, None], mirrored_label(labels), labels)
        return Camera.from_label(labels)

    def distribution(self) -> PoseDistribution:
        """A normal prior with the mean and spread of the labels' angles, for who draws cameras from the model later."""
        yaw, pitch = self._some().yaw_pitch()
        (yaw_mean, yaw_std), (pitch_mean, pitch_std) = (
            (float(x.mean()), float(x.std(correction=0))) for x in (yaw, pitch)
        )
        return replace(
            self.prior,
            kind="gaussian",
            yaw_mean=yaw_mean,
            yaw_std=yaw_std,
            pitch_mean=pitch_mean,
            pitch_std=pitch_std,
        )

    def _some(self) -> Camera:
        return self.camera(self.draw(_ENOUGH, torch.Generator().manual_seed(0)))


def _height(radius: float, fov: float) -> float:
    """Of what a camera at that distance sees around the origin."""
    return 2 * radius * math.tan(math.radians(fov) / 2)


CameraSource = PoseDistribution | LearnedPoses | DatasetCameras
