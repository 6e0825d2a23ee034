"""Figures that tell a failing run from a good one while it trains, and alarms on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.data import Dataset
from cips3d.metrics.geometry import non_flatness
from cips3d.metrics.symmetry import mirror_jump, two_hypothesis_score
from cips3d.metrics.views import Subjects
from cips3d.models.config import Sampling
from cips3d.models.protocol import ImageGenerator

#: Subjects, and images of the dataset, that the figures are measured on.
SUBJECTS = 16
#: Largest side of their images, pixels, so that measuring costs a run little time.
MOST_SIDE = 64


class Limit(NamedTuple):
    """A figure, on which side of which value it raises an alarm, and the alarm's text."""

    figure: str
    side: Literal["above", "below"]
    value: float
    text: str


LIMITS = (
    Limit("diversity", "below", 0.25, "collapse: the generated images are nearly all alike"),
    # a plane under a field of view of 12 degrees scores 2.4, the embedded heads 16 (test_health.py)
    Limit("non_flatness", "below", 3.0, "flat geometry: the images are painted on a plane"),
    # 0 for the embedded heads, 1 for the same mirrored (test_consistency.py) or for symmetric ones
    Limit(
        "two_hypothesis_score", "above", 0.5, "mirrored geometry: images flip at the frontal view; "
        "is the auxiliary discriminator off, or are the subjects symmetric?",
    ),
    Limit(
        "r1_penalty", "above", 10.0, "runaway R1: steep discriminators; raise objective.r1.weight "
        "or lower discriminator_lr",
    ),
)  # fmt: skip


@dataclass
class HealthMonitor:
    """Measures the averaged generator at intervals and raises each alarm once per crossing.

    Args:
        real: images of the dataset, (N, 3, R, R) uint8.
    """

    real: Tensor
    _raised: set[str] = field(default_factory=set)

    @staticmethod
    def of_dataset(dataset: Dataset) -> HealthMonitor:
        """A monitor that compares with evenly spaced images of a dataset."""
        count = min(SUBJECTS, len(dataset))
        real = torch.stack([dataset[i * len(dataset) // count] for i in range(count)])
        if real.shape[-1] > MOST_SIDE:
            small = F.interpolate(real.float(), (MOST_SIDE, MOST_SIDE), mode="area")
            real = small.round().to(torch.uint8)
        return HealthMonitor(real)

    @torch.no_grad()
    def figures(self, generator: ImageGenerator, sampling: Sampling) -> dict[str, float]:
        """Diversity, and where there is a density non-flatness and mirror symmetry as in `metrics`.

        Diversity is the standard deviation over generated images from cameras of the prior,
        averaged over pixels and channels, relative to the real images'.
        """
        draws = torch.Generator().manual_seed(0)
        latents = generator.sample_latents(SUBJECTS, draws)
        side, config = self.real.shape[-1], generator.config
        cameras = config.poses.sample(SUBJECTS, draws)
        out = generator.render(latents, cameras, side, psi=1.0, sampling=sampling)
        real = spread(self.real.float() / 127.5 - 1)
        figures = {"diversity": spread(out.image) / max(real, 1e-6)}
        if not generator.has_density:
            return figures
        subjects = Subjects.generated(generator, latents, side, sampling=sampling)
        return figures | {
            "non_flatness": non_flatness(out, config.poses.radius, config.networks.extent),
            "mirror_jump": mirror_jump(subjects),
            "two_hypothesis_score": two_hypothesis_score(subjects),
        }

    def alarms(self, figures: dict[str, float]) -> Sequence[str]:
        """One line for each limit that these figures cross and that was not crossed before."""
        lines = []
        for figure, side, limit, text in LIMITS:
            if figure not in figures:
                continue
            value = figures[figure]
            if not (value > limit if side == "above" else value < limit):
                self._raised.discard(figure)
            elif figure not in self._raised:
                self._raised.add(figure)
                lines.append(f"{text} ({figure} {value:.3g}, {side} {limit:g})")
        return lines


def spread(images: Tensor) -> float:
    """Standard deviation over the images, averaged over pixels; 0 for a single image."""
    return float(images.std(dim=0, unbiased=False).mean())
