"""The measures of a model's views: one entry of `MEASURES` is one row of `cips3d eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from torch import Tensor

from cips3d.heads.network import HeadNetwork
from cips3d.metrics import consistency, disentanglement, faces, geometry, symmetry
from cips3d.metrics.disentanglement import Recombined
from cips3d.metrics.views import Subjects, View

#: What a value should be.
Better = Literal["lower is better", "higher is better", "should match the data"]
_LOWER, _HIGHER, _AS_DATA = get_args(Better)


@dataclass
class Comparison:
    """Subjects to measure and what they are compared with. Shared results are computed once."""

    subjects: Subjects  # generated ones, or unseen true ones for the reference column
    seed: int = 0  # of the cameras of `view`
    predictor: consistency.Predictor | None = None
    network: HeadNetwork | None = None  # where the dataset shows heads
    truth: Subjects | None = None  # subjects of the dataset
    offset: tuple[float, float] = (0.0, 0.0)  # of their front from the dataset's, radians
    recombined: Recombined | None = None  # the subjects with codes of each other

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
    def turn(self) -> consistency.Turn:
        assert self.predictor is not None
        return consistency.turn(self.subjects, self.predictor)

    @cached_property
    def face(self) -> faces.Relief | None:
        """None without a predictor that finds the parts of faces."""
        return faces.relief(self.subjects, self.predictor)

    @cached_property
    def depth(self) -> tuple[float, float]:
        assert self.network is not None
        return consistency.depth_error(self.view, self.network)

    @cached_property
    def relief(self) -> Tensor:
        return geometry.relief(self.subjects)

    def share_of_appearance(self, read: disentanglement.Reader) -> float:
        """The appearance code's share of the change of what is read."""
        assert self.network is not None and self.recombined is not None
        views = self.view, self.recombined, self.true_view
        return disentanglement.share_of_appearance(read, self.network, *views)


@dataclass(frozen=True)
class Measure:
    """A measure by name, which is its key in tables, logs and JSON files."""

    name: str
    meaning: str  # a few words for the table
    better: Better
    function: Callable[[Any], float]  # of a `Comparison`
    needs: tuple[str, ...] = ()  # attributes of `Comparison` without which it is left out
    unit: str = ""  # of the printed value, which is the value times `factor`
    factor: float = 1.0


# One measure per entry reads as a table.
# fmt: off
_ROWS = (
    Measure("pose_error", "angle between requested and predicted camera", _LOWER,
            lambda c: consistency.pose_error(c.view, c.predictor, c.offset), ("predictor",), "°"),
    Measure("pose_slope", "yaw seen per yaw asked, over ±25°; best 1", _AS_DATA,
            lambda c: c.turn.slope, ("predictor",)),
    Measure("pose_correlation", "yaw seen and yaw asked, over ±25°", _HIGHER,
            lambda c: c.turn.correlation, ("predictor",)),
    Measure("found_share", "of these views, those with a subject", _HIGHER,
            lambda c: c.turn.found_share, ("predictor",), "%", 100),
    Measure("identity_consistency", "identity across views of a subject, cosine", _HIGHER,
            lambda c: c.identity[0], ("predictor",)),
    Measure("identity_between", "identity between different subjects, cosine", _AS_DATA,
            lambda c: c.identity[1], ("predictor",)),
    Measure("warp_error", "colour difference of views warped by depth", _LOWER,
            lambda c: consistency.warp_error(c.subjects)),
    Measure("view_agreement", "depth of the front against ±30°, correlation", _HIGHER,
            lambda c: geometry.view_agreement(c.subjects)),
    Measure("depth_error", "depth against depth predicted from the image", _LOWER,
            lambda c: c.depth[0], ("network",), "world units"),
    Measure("depth_correlation", "depth against predicted depth, correlation", _HIGHER,
            lambda c: c.depth[1], ("network",)),
    Measure("shape_correlation", "depth against the mean true depth, correlation", _AS_DATA,
            lambda c: geometry.shape_correlation(c.subjects, c.truth), ("truth",)),
    Measure("depth_distance", "distribution of depth against the true one", _LOWER,
            lambda c: consistency.depth_distance(c.view, c.true_view), ("truth",), "world units"),
    Measure("non_flatness", "non-flatness score (1: constant depth)", _AS_DATA,
            lambda c: geometry.non_flatness(
                c.view.out, c.subjects.poses.radius, c.subjects.extent)),
    Measure("detail", "difference between neighbouring pixels", _AS_DATA,
            lambda c: geometry.detail(c.view.out.image)),
    Measure("speckle", "difference from the 3×3 median", _AS_DATA,
            lambda c: geometry.speckle(c.view.out.image)),
    Measure("last_sample_share", "opacity on the last sample of a ray", _LOWER,
            lambda c: geometry.last_sample_share(c.view.out), (), "%", 100),
    Measure("mirror_jump", "change across the frontal view / usual change", _AS_DATA,
            lambda c: symmetry.mirror_jump(c.subjects)),
    Measure("two_hypothesis_score", "subjects that mirror instead of turning", _LOWER,
            lambda c: symmetry.two_hypothesis_score(c.subjects), (), "%", 100),
    Measure("bangs_flip", "bangs that change sides", _LOWER,
            lambda c: symmetry.bangs_flip(c.subjects, c.network), ("network",), "%", 100),
    Measure("relief", "the middle stands out from the ring around it", _AS_DATA,
            lambda c: float(c.relief.nanmean()), (), "world units"),
    Measure("hollow_share", "subjects whose middle lies behind the ring", _LOWER,
            lambda c: geometry.hollow_share(c.relief), (), "%", 100),
    Measure("convexity", "faces whose nose is nearer than eyes and cheeks", _HIGHER,
            lambda c: c.face.convexity, ("face",), "%", 100),
    Measure("nose_height", "nose above the plane of the other parts", _AS_DATA,
            lambda c: c.face.nose_height, ("face",), "world units"),
    Measure("appearance_change", "image change by another appearance code", _AS_DATA,
            lambda c: disentanglement.image_change(c.view, c.recombined.other_appearance),
            ("recombined",)),
    Measure("shape_change", "image change by another shape code", _AS_DATA,
            lambda c: disentanglement.image_change(c.view, c.recombined.other_shape),
            ("recombined",)),
    Measure("appearance_share", "change of colours that is the appearance code's", _HIGHER,
            lambda c: c.share_of_appearance(disentanglement.colours),
            ("recombined", "network", "truth")),
    Measure("shape_leak", "change of forms that is the appearance code's", _LOWER,
            lambda c: c.share_of_appearance(disentanglement.forms),
            ("recombined", "network", "truth")),
)
# fmt: on
#: All measures by name, in the order of the table.
MEASURES = {measure.name: measure for measure in _ROWS}
#: Those that tell whether the geometry is real: see `cips3d.metrics.evaluation.geometry_table`.
GEOMETRY = ("last_sample_share", "non_flatness", "view_agreement", "shape_correlation", "speckle")


def measured(comparison: Comparison, names: Sequence[str]) -> dict[str, float]:
    """Values of the named measures, without those for which something is missing."""
    chosen = (MEASURES[name] for name in names)
    return {
        measure.name: measure.function(comparison)
        for measure in chosen
        if all(getattr(comparison, part) is not None for part in measure.needs)
    }
