"""The table of a model: fidelity, consistency of its views, geometry and mirror symmetry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cips3d.data.protocol import Dataset
from cips3d.metrics.consistency import Predictor
from cips3d.metrics.disentanglement import Recombined
from cips3d.metrics.features import feature_network
from cips3d.metrics.fidelity import Fidelity, FidelityMetric
from cips3d.metrics.measures import GEOMETRY, MEASURES, Comparison, Measure, measured
from cips3d.metrics.views import Subjects
from cips3d.models.protocol import ImageGenerator

#: Largest side of the views of subjects, pixels: hundreds of them are in memory at a time.
MAX_SIDE = 128
#: The meaning of the measures in `cips3d.metrics.neighbours`, for the table.
NEIGHBOURHOODS = {
    "precision": "generated images near a real one",
    "recall": "real images near a generated one",
    "density": "real neighbours of generated images",
    "coverage": "real images with a generated neighbour",
}


@dataclass(frozen=True)
class Evaluation:
    """A model's values."""

    #: By name; NaN where there is nothing to measure, such as the depth of empty space.
    values: dict[str, float]
    #: Values of unseen true subjects, which a perfect model would reach; empty without any.
    reference: dict[str, float]
    #: What the values depend on, JSON-ready.
    record: dict[str, Any]

    def lines(self) -> list[str]:
        """The table, to print."""
        columns = {"model": self.values, "true heads": self.reference}
        columns = {title: column for title, column in columns.items() if column or title == "model"}
        rows = [f"{'':<24}" + "".join(f"{title:>12}" for title in columns)]
        for name in self.values:
            measure = MEASURES.get(name) or _distance(name)
            row = f"{name:<24}"
            for column in columns.values():
                cell = f"{column[name] * measure.factor:.4g}" if name in column else ""
                row += f"{cell:>12}"
            row += f"  {measure.unit:<13}{measure.meaning} ({measure.better})"
            rows.append(row)
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything and the table, with null for NaN, which JSON does not have."""
        values, reference = (
            {name: value if math.isfinite(value) else None for name, value in column.items()}
            for column in (self.values, self.reference)
        )
        return {
            "values": values,
            "true_heads": reference,
            "record": self.record,
            "table": [line.rstrip() for line in self.lines()],
        }


def _distance(name: str) -> Measure:
    """How a metric of `cips3d.metrics.fidelity` is printed."""
    kind = FidelityMetric.parse(name).kind
    if kind in NEIGHBOURHOODS:
        return Measure(name, NEIGHBOURHOODS[kind], "higher is better", lambda _: math.nan)
    unit, factor = ("x 10^-3", 1000) if kind == "kernel" else ("", 1)
    meaning = "distance between generated and real images"
    return Measure(name, meaning, "lower is better", lambda _: math.nan, unit=unit, factor=factor)


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
        metrics: names of FID, KID and others (see `cips3d.metrics.fidelity`), measured at ψ 1.
        count, psi: number and truncation of the subjects for all other measures.
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
    latents = generator.sample_latents(count, seed)
    others = (
        replace(latents, appearance=latents.appearance.roll(1, dims=0)),
        replace(latents, shape=latents.shape.roll(1, dims=0)),
    )
    subjects, *recombined = (
        Subjects.generated(generator, codes, side, psi) for codes in (latents, *others)
    )
    comparison = Comparison(subjects, seed, predictor, recombined=Recombined(*recombined))
    truth = dataset.truth()
    if truth is None:
        return Evaluation(values | measured(comparison, measures), {}, record)

    def true(indices: Sequence[int], **options: Any) -> Subjects:
        """True heads in the generator's volume, so that non-flatness scores are comparable."""
        heads = Subjects.true(truth, indices, side, generator.device, **options)
        return replace(heads, extent=subjects.extent)

    indices = range(min(count, len(dataset)))
    next_ones = [*indices[-1:], *indices[:-1]]
    mixed = ((indices, next_ones), (next_ones, indices))
    record["predictor"] = record["predictor"] or "heads"
    record["head_network"] = feature_network("heads").key
    network = truth.reader().to(generator.device)
    # the mean of a learned prior may have drifted
    own, data = subjects.poses, truth.poses
    offset = own.yaw_mean - data.yaw_mean, own.pitch_mean - data.pitch_mean
    comparison = replace(
        comparison, predictor=predictor or network, network=network, truth=true(indices),
        offset=offset,
    )  # fmt: skip
    values |= measured(comparison, measures)
    ideal = replace(
        comparison,
        subjects=true(indices, unseen=True),
        recombined=Recombined(*(true(i, unseen=True, colours_of=j) for i, j in mixed)),
        offset=(0.0, 0.0),
    )
    return Evaluation(values, measured(ideal, measures) if reference else {}, record)


def geometry_table(generator: ImageGenerator, dataset: Dataset, count: int = 32) -> Evaluation:
    """Whether a model's geometry is real, in a few seconds: the `GEOMETRY` rows of `evaluate`."""
    return evaluate(generator, dataset, count=count, measures=GEOMETRY)
