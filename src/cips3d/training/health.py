"""Figures that tell a failing run from a good one while it trains, and the lines that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cips3d.data import ImageDataset
from cips3d.heads import SyntheticHeads
from cips3d.metrics.geometry import non_flatness
from cips3d.metrics.symmetry import mirror_jump, two_hypothesis_score
from cips3d.metrics.views import Subjects
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Sampling

#: Subjects, and pictures of the dataset, that the figures are of.
SUBJECTS = 16
#: Their largest side in pixels, so that the figures take no part of a run's time that matters.
MOST_SIDE = 64


@dataclass(frozen=True)
class Limit:
    """A figure, the value at which it raises an alarm, and what the alarm says."""

    figure: str
    value: float
    above: bool
    says: str

    def crossed(self, figures: dict[str, float]) -> bool:
        """Whether the figure, where there is one, is on the wrong side."""
        value = figures.get(self.figure)
        return value is not None and (value > self.value if self.above else value < self.value)


LIMITS = (
    # a plane seen through a lens of 12 degrees scores 2.4, the embedded heads 16 (tests/test_alarms.py)
    Limit("diversity", 0.25, False, "collapse: the generated pictures are nearly all alike"),
    Limit("non_flatness", 3.0, False, "flat geometry: the pictures are painted on a plane"),
    # 0 for the embedded heads, 1 for the same mirrored (tests/test_consistency.py); and 1 for subjects that are symmetric
    Limit(
        "two_hypothesis_score",
        0.5,
        True,
        "mirrored geometry: pictures flip at the frontal view; is the auxiliary discriminator off, or are subjects symmetric?",
    ),
    Limit(
        "r1_penalty",
        10.0,
        True,
        "runaway R1: steep discriminators; raise r1_gamma or lower discriminator_lr",
    ),
)


@dataclass
class Watch:
    """Measures the averaged generator at intervals and says when something has gone wrong, once for each time that it does.

    Args:
        real: pictures of the dataset, (N, 3, R, R) uint8.
    """

    real: Tensor
    _raised: set[str] = field(default_factory=set)

    @staticmethod
    def of(dataset: SyntheticHeads | ImageDataset) -> Watch:
        """A watch that compares with evenly spread pictures of a dataset."""
        count = min(SUBJECTS, len(dataset))
        real = torch.stack([dataset[i * len(dataset) // count] for i in range(count)])
        if real.shape[-1] > MOST_SIDE:
            real = (
                F.interpolate(real.float(), (MOST_SIDE, MOST_SIDE), mode="area")
                .round()
                .to(torch.uint8)
            )
        return Watch(real)

    @torch.no_grad()
    def figures(self, generator: ImageGenerator, sampling: Sampling) -> dict[str, float]:
        """Diversity, non-flatness and mirror symmetry of fixed subjects.

        Returns:
            "diversity": the mean over pixels and channels of the standard deviation over generated pictures, seen from cameras
            of the prior, in units of the real pictures'; "non_flatness", "mirror_jump" and "two_hypothesis_score" as in
            `cips3d.metrics`, where the generator has a geometry.
        """
        draws = torch.Generator().manual_seed(0)
        latents = generator.sample_latents(SUBJECTS, draws)
        side = self.real.shape[-1]
        out = generator.render(
            latents, generator.config.poses.sample(SUBJECTS, draws), side, sampling=sampling
        )
        real = spread(self.real.float() / 127.5 - 1)
        figures = {"diversity": spread(out.image) / max(real, 1e-6)}
        if not generator.has_density:
            return figures
        subjects = Subjects.generated(generator, latents, side, sampling=sampling)
        return figures | {
            "non_flatness": non_flatness(
                out, generator.config.poses.radius, generator.config.networks.extent
            ),
            "mirror_jump": mirror_jump(subjects),
            "two_hypothesis_score": two_hypothesis_score(subjects),
        }

    def alarms(self, figures: dict[str, float]) -> Sequence[str]:
        """One line for each limit that these figures cross and that was not crossed before."""
        lines = []
        for limit in LIMITS:
            crossed = limit.crossed(figures)
            if crossed and limit.figure not in self._raised:
                side = "above" if limit.above else "below"
                lines.append(
                    f"{limit.says} ({limit.figure} {figures[limit.figure]:.3g}, {side} {limit.value:g})"
                )
            if limit.figure in figures:
                (self._raised.add if crossed else self._raised.discard)(limit.figure)
        return lines


def spread(images: Tensor) -> float:
    """Mean over channels and pixels of the standard deviation over the pictures; 0 for a single one."""
    return float(images.std(dim=0, unbiased=False).mean())
