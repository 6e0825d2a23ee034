"""What experiments share: training runs, made once and resumed if interrupted; tables over seeds; results as files."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from cips3d import pretrained
from cips3d.cli.train import train_here
from cips3d.configuration import to_dict
from cips3d.data import SyntheticHeads
from cips3d.files import atomic_path
from cips3d.metrics.evaluation import evaluate
from cips3d.models.generator import Generator
from cips3d.training.config import TrainConfig
from cips3d.training.presets import preset
from cips3d.training.trainer import MODEL_FILE

matplotlib.use("Agg")

#: Where results go (committed), and where runs go (not committed).
RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/experiments")
SEEDS = (0, 1, 2)
#: Thousands of real pictures shown at 16² and at 32² in every comparison: about ten minutes on two cores for CIPS-3D.
KIMG = (30.0, 60.0)


def small_config(name: str = "heads-32", seed: int = 0, **changes: Any) -> TrainConfig:
    """A preset of the embedded heads at 32² cut to `KIMG`, with its own distances on the way and some fields changed."""
    base = preset(name)
    first, second, *_ = base.stages
    stages = replace(first, kimg=KIMG[0]), replace(second, kimg=KIMG[1])
    return replace(base, stages=stages, seed=seed, sample_kimg=30.0, metrics=("fd2k_heads",), metrics_kimg=10.0, **changes)


def staged(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The same run with fields of all stages changed."""
    return replace(config, stages=tuple(replace(stage, **changes) for stage in config.stages))


def run_folder(config: TrainConfig) -> Path:
    """Where the run of a configuration is: equal runs of several experiments are made once, changed ones anew."""
    digest = hashlib.blake2b(json.dumps(to_dict(config), sort_keys=True).encode(), digest_size=6).hexdigest()
    return RUNS / f"{config.generator.architecture}-{config.seed}-{digest}"


def trained(config: TrainConfig) -> Generator:
    """The model of a run, which is made, or continued, if it is not there."""
    folder = run_folder(config)
    if not (folder / MODEL_FILE).exists():
        print(f"training {folder}", flush=True)
        train_here(config, folder)
    return pretrained.load(folder / MODEL_FILE)


def logged(config: TrainConfig, figure: str) -> tuple[list[float], list[float]]:
    """Thousands of pictures shown, and a figure of the run's log there."""
    lines = [json.loads(line) for line in (run_folder(config) / "log.jsonl").read_text().splitlines()]
    points = [(line["images"] / 1000, line[figure]) for line in lines if figure in line]
    return [x for x, _ in points], [y for _, y in points]


def table(
    rows: Mapping[str, Callable[[int], TrainConfig]],
    figures: tuple[str, ...],
    seeds: tuple[int, ...] = SEEDS,
    seen: Callable[[Generator], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains every row with every seed and measures what comes out.

    Args:
        rows: name -> the configuration for a seed.
        figures: names of figures (see `cips3d.metrics.evaluation`), of which a generator without views has only distances.
        seen: called with every generator, in the order of rows and seeds.

    Returns:
        "runs": row -> figure -> a value for each seed (null where there is none); "medians": row -> figure -> their median.
    """
    runs: dict[str, dict[str, list[float | None]]] = {}
    for row, config in rows.items():
        runs[row] = {figure: [] for figure in figures}
        for seed in seeds:
            generator = trained(config(seed))
            heads = SyntheticHeads(resolution=32)
            found = evaluate(generator, heads, ("fd2k_heads", "kd2k_heads"), reference=False).as_json()["values"]
            for figure in figures:
                runs[row][figure].append(found.get(figure))
            print(row, seed, {figure: found.get(figure) for figure in figures}, flush=True)
            seen(generator)
    medians = {row: {figure: _median(values) for figure, values in of_row.items()} for row, of_row in runs.items()}
    return {"medians": medians, "runs": runs}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def clearly_mirrored(without: list[float | None], with_it: list[float | None]) -> bool:
    """Whether most subjects of every run mirror without the auxiliary discriminator, and few of any run with it."""
    return all(x is not None and x > 0.5 for x in without) and all(x is not None and x < 0.1 for x in with_it)


class Result:
    """Writes what an experiment found: NAME.json, with the time it took and where, and NAME.png.

    Args:
        name: of the experiment, as its file's.
        claim: the paper's, in one sentence with its place.
    """

    def __init__(self, name: str, claim: str) -> None:
        self.name, self.claim, self.began = name, claim, time.time()

    def write(self, values: Any, holds: bool | None, figure: Figure | None = None, seeds: tuple[int, ...] = ()) -> None:
        """Writes both files.

        Args:
            values: JSON-ready.
            holds: whether the claim does here; None where that cannot be said.
        """
        content = {
            "experiment": self.name, "claim": self.claim, "holds": holds, "values": values, "seeds": seeds,
            # runs that were there already are not in it
            "minutes": round((time.time() - self.began) / 60, 1), "finished": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__,
        }  # fmt: skip
        path = RESULTS / f"{self.name}.json"
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        if figure is not None:
            with atomic_path(path.with_suffix(".png")) as temporary:
                figure.savefig(temporary, dpi=110, bbox_inches="tight")
        print(f"{self.claim}\nholds: {holds}\n{path}")
