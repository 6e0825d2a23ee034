"""The table of a model: how true its pictures are, how consistent its subjects, how real its geometry, and how symmetric."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cips3d.data import ImageDataset
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.metrics import consistency, symmetry
from cips3d.metrics.features import feature_network
from cips3d.metrics.fidelity import Fidelity
from cips3d.metrics.geometry import detail, last_sample_share, non_flatness, speckle
from cips3d.metrics.views import Subjects, View
from cips3d.models.protocol import ImageGenerator

#: Largest side of the views of subjects, of which several hundred are in memory at a time, pixels.
MOST_SIDE = 128
#: What the entries of a table mean: description, unit, factor to that unit, and which way is better. FID and KID come first.
ENTRIES: dict[str, tuple[str, str, float, Literal["lower", "higher", "true"]]] = {
    "pose_error": ("angle between asked and seen camera", "°", 1, "lower"),
    "identity_consistency": ("identity seen in a subject's views, cosine", "", 1, "higher"),
    "identity_between": ("the same between different subjects", "", 1, "true"),
    "warp_error": ("colour difference of views warped by depth", "", 1, "lower"),
    "depth_error": ("depth against the depth seen in the picture", "world units", 1, "lower"),
    "depth_correlation": ("the same, correlation", "", 1, "higher"),
    "depth_distance": ("distribution of depth against true heads'", "world units", 1, "lower"),
    "non_flatness": ("non-flatness score (1: a constant depth)", "", 1, "true"),
    "detail": ("difference between neighbouring pixels", "", 1, "true"),
    "speckle": ("pixels unlike their neighbourhood", "", 1, "true"),
    "last_sample_share": ("opacity on the last sample", "%", 100, "lower"),
    "mirror_jump": ("change at the frontal view, by the usual one", "", 1, "true"),
    "two_hypothesis_score": ("subjects that mirror rather than turn", "%", 100, "lower"),
    "bangs_flip": ("bangs that change sides", "%", 100, "lower"),
}


@dataclass(frozen=True)
class Evaluation:
    """A model's figures.

    Attributes:
        values: name -> value; NaN where a figure could not be had, such as the depth of nothing solid.
        reference: the same figures of the embedded heads themselves, for models of them: what a perfect model would have.
        record: what the figures depend on, JSON-ready.
    """

    values: dict[str, float]
    reference: dict[str, float]
    record: dict[str, Any]

    def lines(self) -> list[str]:
        """One table for people."""
        true = bool(self.reference)
        rows = [f"{'':<24}{'model':>10}{'true heads':>12}" if true else f"{'':<24}{'model':>10}"]
        for name, value in self.values.items():
            meaning, unit, factor, better = ENTRIES.get(
                name, ("distance of features", "", 1, "lower")
            )
            if name.startswith(("kid", "kd")):
                unit, factor = "x 10^-3", 1000
            wish = {
                "lower": "lower is better",
                "higher": "higher is better",
                "true": "best as the data has it",
            }[better]
            reference = self.reference.get(name)
            column = (
                f"{'' if reference is None else f'{reference * factor:.4g}':>12}" if true else ""
            )
            rows.append(f"{name:<24}{value * factor:>10.4g}{column}  {unit:<12} {meaning} ({wish})")
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, with null for NaN, which JSON does not have."""
        finite = [
            {k: v if math.isfinite(v) else None for k, v in table.items()}
            for table in (self.values, self.reference)
        ]
        return {"values": finite[0], "true_heads": finite[1], "record": self.record}


def evaluate(
    generator: ImageGenerator,
    dataset: SyntheticHeads | ImageDataset,
    metrics: tuple[str, ...] = (),
    count: int = 256,
    seed: int = 0,
    psi: float = 1.0,
    predictor: consistency.Predictor | None = None,
    inception_weights: Path | None = None,
    reference: bool = True,
) -> Evaluation:
    """Measures a model.

    Args:
        dataset: what it was trained on; pictures are rendered at its resolution, views of subjects at `MOST_SIDE` at most.
        metrics: names of FID and KID metrics (see `cips3d.metrics.fidelity`); these are always measured at ψ 1.
        count: subjects that everything else is measured on.
        seed: of latents and cameras.
        psi: truncation of those subjects.
        predictor: sees pose and identity in pictures; for the embedded heads, natural or cartoon, their own network by default.
            Without one these figures are left out.
        inception_weights: see `cips3d.metrics.features.feature_network`.
        reference: measure true heads too.

    Raises:
        UserError: see `Fidelity`, and if the predictor's results have wrong shapes.
    """
    values: dict[str, float] = {}
    record: dict[str, Any] = {
        "dataset": dataset.description(), "fingerprint": dataset.fingerprint, "count": count, "psi": psi, "seed": seed,
        "predictor": None if predictor is None else str(predictor),
    }  # fmt: skip
    if metrics:
        fidelity = Fidelity(metrics, inception_weights, seed=seed)
        values |= fidelity(generator, dataset)
        record["fidelity"] = fidelity.record(dataset)
    if not generator.has_density:  # a generator of flat pictures has no views to compare
        return Evaluation(values, {}, record)
    device, extent = generator.shape_mean.device, generator.config.networks.extent
    side = min(dataset.resolution, MOST_SIDE)
    subjects = Subjects.generated(generator, generator.sample_latents(count, seed), side, psi)
    if not isinstance(dataset, SyntheticHeads):
        return Evaluation(values | _figures(subjects, seed, predictor, None, None), {}, record)
    network = load_head_network().to(device)
    record |= {
        "predictor": record["predictor"] or "heads",
        "head_network": feature_network("heads").key,
    }

    def true(heads_seed: int, indices: range) -> Subjects:
        heads = SyntheticHeads(dataset.size, side, heads_seed, dataset.style, dataset.poses)
        return replace(
            Subjects.true(heads, indices, device), extent=extent
        )  # as the generator's, for the non-flatness score

    indices = range(min(count, len(dataset)))
    truth = true(dataset.seed, indices).from_prior(seed)
    own, heads = subjects.poses, dataset.poses
    turned = (
        own.yaw_mean - heads.yaw_mean,
        own.pitch_mean - heads.pitch_mean,
    )  # a learned prior may have drifted
    values |= _figures(subjects, seed, predictor or network, network, truth, turned)
    if not reference:
        return Evaluation(values, {}, record)
    unseen = true(dataset.seed + 1, indices)
    return Evaluation(values, _figures(unseen, seed, predictor or network, network, truth), record)


def _figures(
    subjects: Subjects,
    seed: int,
    predictor: consistency.Predictor | None,
    network: HeadNetwork | None,
    truth: View | None,
    turned: tuple[float, float] = (0.0, 0.0),
) -> dict[str, float]:
    """The figures of some subjects: those for which there are a predictor, the heads' network and true heads."""
    view = subjects.from_prior(seed)
    out = view.out
    values: dict[str, float] = {}
    if predictor is not None:
        values["pose_error"] = consistency.pose_error(view, predictor, turned)
        within, between = consistency.identity_consistency(subjects, predictor)
        values |= {"identity_consistency": within, "identity_between": between}
    values["warp_error"] = consistency.warp_error(subjects)
    if network is not None:
        values["depth_error"], values["depth_correlation"] = consistency.depth_error(view, network)
    if truth is not None:
        values["depth_distance"] = consistency.depth_distance(view, truth)
    values["non_flatness"] = non_flatness(out, subjects.poses.radius, subjects.extent)
    values["detail"] = detail(out.image)
    values["speckle"] = speckle(out.image)
    values["last_sample_share"] = last_sample_share(out)
    values["mirror_jump"] = symmetry.mirror_jump(subjects)
    values["two_hypothesis_score"] = symmetry.two_hypothesis_score(subjects)
    if network is not None:
        values["bangs_flip"] = symmetry.bangs_flip(subjects, network)
    return values
