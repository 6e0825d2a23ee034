"""The measures of a model's views: one entry of `MEASURES` is one row of `cips3d eval`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cips3d.heads.network import HeadNetwork
from cips3d.metrics import consistency, geometry, symmetry
from cips3d.metrics.views import Subjects, View

#: What a value should be: as low or as high as possible, or that of the data.
Better = Literal["lower", "higher", "as the data"]


@dataclass
class Comparison:
    """Subjects to measure and what they are compared with. Shared results are computed once.

    Attributes:
        subjects: generated subjects, or unseen true ones for the reference column.
        seed: of the cameras of `view`.
        predictor: predicts pose and identity.
        network: reads heads, where the dataset shows some.
        truth: subjects of the dataset.
        offset: yaw and pitch of the subjects' own front from the dataset's, radians.
    """

    subjects: Subjects
    seed: int = 0
    predictor: consistency.Predictor | None = None
    network: HeadNetwork | None = None
    truth: Subjects | None = None
    offset: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def view(self) -> View:
        """Each subject from a random camera of its prior."""
        return self.subjects.from_prior(self.seed)

    @cached_property
    def true_view(self) -> View:
        """As `view`, of the dataset's subjects."""
        assert self.truth is not None
        return self.truth.from_prior(self.seed)

    @cached_property
    def identity(self) -> tuple[float, float]:
        assert self.predictor is not None
        return consistency.identity_consistency(self.subjects, self.predictor)

    @cached_property
    def depth(self) -> tuple[float, float]:
        assert self.network is not None
        return consistency.depth_error(self.view, self.network)


@dataclass(frozen=True)
class Measure:
    """A measure by name.

    Attributes:
        name: key in tables, logs and JSON files.
        meaning: a few words for the table.
        better: what a value should be.
        function: computes it.
        needs: attributes of `Comparison` without which it is left out.
        unit: of the printed value.
        factor: to that unit.
    """

    name: str
    meaning: str
    better: Better
    function: Callable[[Any], float]
    needs: tuple[str, ...] = ()
    unit: str = ""
    factor: float = 1.0

    def available(self, comparison: Comparison) -> bool:
        return all(getattr(comparison, name) is not None for name in self.needs)


_ROWS = (
    Measure(
        "pose_error", "angle between requested and predicted camera", "lower",
        lambda c: consistency.pose_error(c.view, c.predictor, c.offset),
        ("predictor",), "°",
    ),
    Measure(
        "identity_consistency", "identity across views of a subject, cosine", "higher",
        lambda c: c.identity[0], ("predictor",),
    ),
    Measure(
        "identity_between", "identity between different subjects, cosine", "as the data",
        lambda c: c.identity[1], ("predictor",),
    ),
    Measure(
        "warp_error", "colour difference of views warped by depth", "lower",
        lambda c: consistency.warp_error(c.subjects),
    ),
    Measure(
        "view_agreement", "depth of the front against ±30°, correlation", "higher",
        lambda c: geometry.view_agreement(c.subjects),
    ),
    Measure(
        "depth_error", "depth against depth predicted from the image", "lower",
        lambda c: c.depth[0], ("network",), "world units",
    ),
    Measure(
        "depth_correlation", "depth against predicted depth, correlation", "higher",
        lambda c: c.depth[1], ("network",),
    ),
    Measure(
        "shape_correlation", "depth against the mean true depth, correlation", "as the data",
        lambda c: geometry.shape_correlation(c.subjects, c.truth), ("truth",),
    ),
    Measure(
        "depth_distance", "distribution of depth against the true one", "lower",
        lambda c: consistency.depth_distance(c.view, c.true_view), ("truth",), "world units",
    ),
    Measure(
        "non_flatness", "non-flatness score (1: constant depth)", "as the data",
        lambda c: geometry.non_flatness(c.view.out, c.subjects.poses.radius, c.subjects.extent),
    ),
    Measure(
        "detail", "difference between neighbouring pixels", "as the data",
        lambda c: geometry.detail(c.view.out.image),
    ),
    Measure(
        "speckle", "difference from the 3×3 median", "as the data",
        lambda c: geometry.speckle(c.view.out.image),
    ),
    Measure(
        "last_sample_share", "opacity on the last sample of a ray", "lower",
        lambda c: geometry.last_sample_share(c.view.out), unit="%", factor=100,
    ),
    Measure(
        "mirror_jump", "change across the frontal view / usual change", "as the data",
        lambda c: symmetry.mirror_jump(c.subjects),
    ),
    Measure(
        "two_hypothesis_score", "subjects that mirror instead of turning", "lower",
        lambda c: symmetry.two_hypothesis_score(c.subjects), unit="%", factor=100,
    ),
    Measure(
        "bangs_flip", "bangs that change sides", "lower",
        lambda c: symmetry.bangs_flip(c.subjects, c.network), ("network",), "%", 100,
    ),
)  # fmt: skip
#: All measures by name, in the order of the table.
MEASURES = {measure.name: measure for measure in _ROWS}
#: Those that tell whether the geometry is real: see `cips3d.metrics.evaluation.geometry_table`.
GEOMETRY = ("last_sample_share", "non_flatness", "view_agreement", "shape_correlation", "speckle")
