"""`cips3d eval`: measures a model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from tyro.conf import arg

from cips3d.cli.options import Data, Derived, Device, InputFile, Model, Side, written_as
from cips3d.cli.output import finished
from cips3d.configuration import Amount, Count, Seed, read_json
from cips3d.errors import UserError
from cips3d.files import atomic_path


def evaluate_model(
    model: Model,
    /,
    data: Derived[Data] = None,
    metrics: Annotated[Derived[tuple[str, ...]], arg(metavar="NAME ...")] = None,
    count: Annotated[Count, Ge(2)] = 256,
    seed: Seed = 0,
    psi: Amount = 1.0,
    resolution: Derived[Annotated[Side, Ge(4)]] = None,
    inception_weights: Derived[InputFile] = None,
    predictor: Derived[str] = None,
    json_file: Derived[Annotated[Path, written_as()]] = None,
    device: Device = "auto",
) -> None:
    """Measure image quality, consistency and geometry.

    Prints distances to the dataset, consistency between views, geometry and mirror symmetry.
    `accelerate launch -m cips3d eval …` shares the images of the distances among processes.

    Args:
        data: Training data: "heads", "heads-cartoon", or a folder or zip of images. Default: from
            the config.json next to the model, as in a run's folder; otherwise "heads".
        metrics: Distances to measure: fid50k_full (50k generated images against all real
            ones), fid2k (2k against 2k), kid50k_full; with other features fd2k_heads,
            kd2k_heads, fd2k_efficientnet and so on. precision, recall, density and coverage tell
            fidelity from diversity (recall2k_heads); fid3d50k_full pools eight views of each
            subject. Default: fd2k_heads, kd2k_heads, recall2k_heads and coverage2k_heads for the
            embedded heads, with --inception-weights also fid2k and kid2k; for other images fid2k
            and kid2k if Inception is available.
        count: Subjects for all other measures.
        seed: Seed of latents and cameras.
        psi: Truncation of these subjects (distances are measured without).
        resolution: Side of the images in pixels. Default: the training resolution.
        inception_weights: File with the weights of torch-fidelity's Inception, for machines
            without a network connection.
        predictor: "module:object" in Python with methods pose and identity for images
            (cips3d.metrics.consistency.Predictor), for faces also landmarks
            (cips3d.metrics.faces.FacePredictor). Default: the bundled network for embedded heads,
            none for other data.
        json_file: Also write the figures, and what they depend on, to this file.

    Examples:
        cips3d eval heads
        cips3d eval runs/mine/model.safetensors --data photos.zip --metrics fid50k_full
    """
    others = ("_heads", "_efficientnet")
    uses_inception = metrics is None or not all(name.endswith(others) for name in metrics)
    if inception_weights is not None and not uses_inception:
        raise UserError(
            "--inception-weights: none of --metrics uses Inception; "
            "add fid2k or kid2k, or leave it out"
        )

    from cips3d.cli.loading import load_model, named_predictor
    from cips3d.data import open_dataset
    from cips3d.metrics.evaluation import evaluate
    from cips3d.training.launch import joined

    processes = joined() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    generator = load_model(model, device if processes is None else str(processes.device))
    dataset = open_dataset(data or _trained_on(model), resolution or generator.config.resolution)
    if metrics is None:
        metrics = _default_metrics(dataset.truth() is not None, inception_weights is not None)
    judge = None if predictor is None else named_predictor(predictor)
    found = evaluate(generator, dataset, metrics, count, seed, psi, judge, inception_weights)
    if processes is not None:
        processes.end_training()  # NCCL complains about a group that is never ended
        if not processes.is_main_process:
            return
    print("\n".join(found.lines()))
    if json_file is None:
        print(f"try next: cips3d eval {model} --json-file figures.json")
        return
    with atomic_path(json_file) as temporary:
        temporary.write_text(
            json.dumps({"model": model} | found.as_json(), indent=2) + "\n", encoding="utf-8"
        )
    finished(json_file, "docs/metrics.md explains each figure")


def _default_metrics(is_heads: bool, has_inception: bool) -> tuple[str, ...]:
    """The distances that can be measured without a download."""
    inception = ("fid2k", "kid2k")
    if is_heads:
        own = ("fd2k_heads", "kd2k_heads", "recall2k_heads", "coverage2k_heads")
        return (*own, *(inception if has_inception else ()))
    if not has_inception:
        from cips3d.metrics.features import feature_network

        try:
            feature_network("inception")
        except UserError as error:  # nobody asked for it: the rest can be measured without
            print(f"left out: {error}", file=sys.stderr)
            return ()
    return inception


def _trained_on(model: str) -> str:
    """The dataset of the run that a model's file belongs to; otherwise the embedded heads."""
    from cips3d.training.recipe import TrainConfig

    if not Path(model).is_file():
        return "heads"
    try:
        return read_json(TrainConfig, Path(model).with_name("config.json")).data
    except UserError:  # there is no such file, or it is something else
        return "heads"
