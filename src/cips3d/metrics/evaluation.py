"""The table of a model: fidelity, consistency of its views, geometry and mirror symmetry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cips3d.data.protocol import Dataset
from cips3d.metrics.consistency import Predictor
from cips3d.metrics.features import feature_network
from cips3d.metrics.fidelity import Fidelity, FidelityMetric
from cips3d.metrics.measures import GEOMETRY, MEASURES, Comparison, Measure
from cips3d.metrics.views import Subjects
from cips3d.models.protocol import ImageGenerator

#: Largest side of the views of subjects, pixels: hundreds of them are in memory at a time.
MAX_SIDE = 128
_ADVICE = {
    "lower": "lower is better",
    "higher": "higher is better",
    "as the data": "should match the data",
}


@dataclass(frozen=True)
class Evaluation:
    """A model's values.

    Attributes:
        values: by name; NaN where there is nothing to measure, such as the depth of empty space.
        reference: values of the dataset's own kind of subjects, which a perfect model would reach.
            Empty where the dataset has no ground truth.
        record: what the values depend on, JSON-ready.
    """

    values: dict[str, float]
    reference: dict[str, float]
    record: dict[str, Any]

    def lines(self) -> list[str]:
        """The table, to print."""
        columns = [("model", self.values)]
        if self.reference:
            columns.append(("true heads", self.reference))
        rows = [f"{'':<24}" + "".join(f"{title:>12}" for title, _ in columns)]
        for name in self.values:
            measure = MEASURES.get(name) or _distance(name)
            cells = [
                f"{column[name] * measure.factor:.4g}" if name in column else ""
                for _, column in columns
            ]
            text = f"{measure.meaning} ({_ADVICE[measure.better]})"
            numbers = "".join(f"{cell:>12}" for cell in cells)
            rows.append(f"{name:<24}{numbers}  {measure.unit:<13}{text}")
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, with null for NaN, which JSON does not have."""
        values, reference = (
            {name: value if math.isfinite(value) else None for name, value in column.items()}
            for column in (self.values, self.reference)
        )
        return {"values": values, "true_heads": reference, "record": self.record}


def _distance(name: str) -> Measure:
    """How a distance of `cips3d.metrics.fidelity` is printed."""
    unit, factor = ("x 10^-3", 1000) if FidelityMetric.parse(name).kernel else ("", 1)
    meaning = "distance between generated and real images"
    return Measure(name, meaning, "lower", lambda _: math.nan, unit=unit, factor=factor)


def evaluate(
    generator: ImageGenerator,
    dataset: Dataset,
    metrics: tuple[str, ...] = (),
    count: int = 256,
    seed: int = 0,
    psi: float = 1.0,
    predictor: Predictor | None = None,
    inception_weights: Path | None = None,
    reference: bool = True,
    measures: Sequence[str] = tuple(MEASURES),
) -> Evaluation:
    """Measures a model.

    Args:
        dataset: what it was trained on. Images are rendered at its resolution, views of subjects
            at `MAX_SIDE` at most.
        metrics: names of FID and KID metrics (see `cips3d.metrics.fidelity`), measured at ψ 1.
        count: subjects for all other measures.
        seed: of latents and cameras.
        psi: truncation of those subjects.
        predictor: predicts pose and identity; the default for datasets with ground truth is their
            own network. Without one, measures that need it are left out.
        inception_weights: see `cips3d.metrics.features.feature_network`.
        reference: also measure true subjects.
        measures: names in `MEASURES`.

    Raises:
        UserError: see `Fidelity`, and if the predictor's results have wrong shapes.
    """
    values: dict[str, float] = {}
    record: dict[str, Any] = {
        "dataset": dataset.description(), "fingerprint": dataset.fingerprint, "count": count,
        "psi": psi, "seed": seed, "predictor": None if predictor is None else str(predictor),
    }  # fmt: skip
    if metrics:
        fidelity = Fidelity(metrics, inception_weights, seed=seed)
        values |= fidelity(generator, dataset)
        record["fidelity"] = fidelity.record(dataset)
    if not generator.has_density:  # a generator of flat images has no views to compare
        return Evaluation(values, {}, record)
    side = min(dataset.resolution, MAX_SIDE)
    subjects = Subjects.generated(generator, generator.sample_latents(count, seed), side, psi)
    comparison = Comparison(subjects, seed, predictor)
    truth = dataset.truth()
    if truth is None:
        return Evaluation(values | measured(comparison, measures), {}, record)

    indices = range(min(count, len(dataset)))
    seen, unseen = (
        # the generator's volume, so that non-flatness scores are comparable
        replace(
            Subjects.true(truth, indices, side, generator.device, unseen=other),
            extent=subjects.extent,
        )
        for other in (False, True)
    )
    network = truth.reader().to(generator.device)
    record |= {
        "predictor": record["predictor"] or "heads",
        "head_network": feature_network("heads").key,
    }
    # the mean of a learned prior may have drifted
    own, true = subjects.poses, truth.poses
    offset = own.yaw_mean - true.yaw_mean, own.pitch_mean - true.pitch_mean
    comparison = Comparison(subjects, seed, predictor or network, network, seen, offset)
    values |= measured(comparison, measures)
    if not reference:
        return Evaluation(values, {}, record)
    ideal = replace(comparison, subjects=unseen, offset=(0.0, 0.0))
    return Evaluation(values, measured(ideal, measures), record)


def measured(comparison: Comparison, names: Sequence[str]) -> dict[str, float]:
    """Values of the named measures, without those for which something is missing."""
    chosen = (MEASURES[name] for name in names)
    return {m.name: m.function(comparison) for m in chosen if m.available(comparison)}


def geometry_table(generator: ImageGenerator, dataset: Dataset, count: int = 32) -> Evaluation:
    """Whether a model's geometry is real, in a few seconds: the `GEOMETRY` rows of `evaluate`.

    Args:
        dataset: usually the embedded heads at 32².
        count: subjects.
    """
    return evaluate(generator, dataset, count=count, measures=GEOMETRY)
