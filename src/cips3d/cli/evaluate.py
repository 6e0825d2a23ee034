"""`cips3d eval`: the table of a model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from cips3d import pretrained
from cips3d.cli.options import Derived, at_least, check_finite, check_seed, to_device
from cips3d.cli.predictor import named_predictor
from cips3d.configuration import read_json
from cips3d.data import open_dataset
from cips3d.errors import UserError
from cips3d.files import atomic_path, check_writable
from cips3d.heads import SyntheticHeads
from cips3d.metrics.evaluation import evaluate
from cips3d.metrics.features import feature_network
from cips3d.training.launch import joined
from cips3d.training.recipe import TrainConfig


def evaluate_model(
    model: str,
    /,
    data: Derived[str] = None,
    metrics: Annotated[Derived[tuple[str, ...]], arg(metavar="NAME ...")] = None,
    count: int = 256,
    seed: int = 0,
    psi: float = 1.0,
    resolution: Derived[int] = None,
    inception_weights: Derived[Path] = None,
    predictor: Derived[str] = None,
    json_file: Derived[Path] = None,
    device: str = "auto",
) -> None:
    """Measure a model: distance to its dataset, consistency of its views, geometry, mirror symmetry.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        data: what it was trained on: "heads", "heads-cartoon", or a folder or zip of pictures. Default: what the config.json
            beside the model says, as in the folder of a run, else "heads".
        metrics: distances to measure: fid50k_full (50,000 generated pictures against all real ones), fid2k (against 2,000),
            kid50k_full; with another network's features fd2k_heads, kd2k_heads, fd2k_efficientnet and so on.
            Default: fd2k_heads and kd2k_heads for the embedded heads, and with --inception-weights fid2k and kid2k too; for
            other pictures these two, where Inception can be had.
        count: subjects that everything else is measured on.
        seed: of latents and cameras.
        psi: truncation of those subjects (distances are measured without).
        resolution: side of the pictures in pixels. Default: the model's training resolution.
        inception_weights: file with the weights of torch-fidelity's Inception, for machines without a network.
        predictor: "module:object" in Python whose methods pose and identity see these in pictures
            (cips3d.metrics.consistency.Predictor). Default: a network of our own for the embedded heads, none else.
        json_file: also write the figures, and what they depend on, to this file.
        device: cpu, cuda, mps, …; auto takes the fastest. Of `accelerate launch -m cips3d eval …` each process has its own, and
            they share the pictures of the distances.
    """
    at_least(2, count=count)
    check_seed(seed)
    check_finite(psi=psi)
    at_least(4, resolution=resolution)
    if json_file is not None:
        check_writable(json_file)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    processes = joined() if several else None
    generator = to_device(
        pretrained.load(model), device if processes is None else str(processes.device)
    )
    dataset = open_dataset(data or _trained_on(model), resolution or generator.config.resolution)
    if metrics is None:
        own = ("fd2k_heads", "kd2k_heads") if isinstance(dataset, SyntheticHeads) else ()
        metrics = own + (("fid2k", "kid2k") if not own or inception_weights is not None else ())
        if not isinstance(dataset, SyntheticHeads) and inception_weights is None:
            try:
                feature_network("inception")
            except (
                UserError
            ) as error:  # nobody asked for these: the rest of the table can be had without
                print(f"left out: {error}", file=sys.stderr)
                metrics = ()
    elif inception_weights is not None and not any(
        name.startswith(("fid", "kid")) for name in metrics
    ):
        raise UserError(
            "--inception-weights: no metric that is asked for uses Inception; add fid2k or kid2k, or leave it out"
        )
    found = evaluate(
        generator, dataset, metrics, count, seed, psi, named_predictor(predictor), inception_weights
    )
    if processes is not None:
        processes.end_training()  # NCCL complains of a group that nobody ends
        if not processes.is_main_process:
            return
    print("\n".join(found.lines()))
    if json_file is not None:
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps({"model": model} | found.as_json(), indent=2) + "\n")
        print(json_file)


def _trained_on(model: str) -> str:
    """The dataset of the run that a model lies in; of others the embedded heads."""
    if not Path(model).is_file():
        return "heads"
    try:
        return read_json(TrainConfig, Path(model).with_name("config.json")).data
    except UserError:  # there is none, or it is of something else
        return "heads"
