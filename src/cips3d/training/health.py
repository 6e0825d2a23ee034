"""Figures that tell a failing run from a good one while it trains, and alarms on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Limit:
    """A figure, the value at which it raises an alarm, and the alarm's text."""

    figure: str
    value: float
    above: bool
    text: str

    def is_crossed(self, figures: dict[str, float]) -> bool:
        """Whether the figure is there and on the wrong side."""
        value = figures.get(self.figure)
        return value is not None and (value > self.value if self.above else value < self.value)


LIMITS = (
    Limit("diversity", 0.25, False, "collapse: the generated images are nearly all alike"),
    # a plane under a field of view of 12 degrees scores 2.4, the embedded heads 16 (test_health.py)
    Limit("non_flatness", 3.0, False, "flat geometry: the images are painted on a plane"),
    # 0 for the embedded heads, 1 for the same mirrored (test_consistency.py) or for symmetric ones
    Limit(
        "two_hypothesis_score",
        0.5,
        True,
        "mirrored geometry: images flip at the frontal view; is the auxiliary discriminator off, "
        "or are the subjects symmetric?",
    ),
    Limit(
        "r1_penalty",
        10.0,
        True,
        "runaway R1: steep discriminators; raise objective.r1.weight or lower discriminator_lr",
    ),
)


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
        """Diversity, non-flatness and mirror symmetry of fixed subjects.

        Returns:
            "diversity": standard deviation over generated images from cameras of the prior,
            averaged over pixels and channels, in units of the real images'. Where the generator has
            a density also "non_flatness", "mirror_jump" and "two_hypothesis_score" as in
            `cips3d.metrics`.
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
        for limit in LIMITS:
            crossed = limit.is_crossed(figures)
            if crossed and limit.figure not in self._raised:
                value, side = figures[limit.figure], "above" if limit.above else "below"
                lines.append(f"{limit.text} ({limit.figure} {value:.3g}, {side} {limit.value:g})")
            if limit.figure in figures:
                (self._raised.add if crossed else self._raised.discard)(limit.figure)
        return lines


def spread(images: Tensor) -> float:
    """Standard deviation over the images, averaged over pixels; 0 for a single image."""
    return float(images.std(dim=0, unbiased=False).mean())
