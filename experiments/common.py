"""What experiments share: training runs with their records, tables over seeds, and result files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from cips3d import pretrained
from cips3d.configuration import from_dict, to_dict
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid, orbit_cameras
from cips3d.files import atomic_path
from cips3d.heads import SyntheticHeads
from cips3d.metrics.evaluation import evaluate
from cips3d.storage import read_tensors, weights_digest
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.loop import train
from cips3d.training.presets import preset, without_code_terms, without_pose_loss
from cips3d.training.recipe import TrainConfig
from cips3d.training.run import Run

matplotlib.use("Agg")

#: Result files and the records of runs, both committed. A run that has a record is not trained
#: again.
RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "runs"
#: Run directories, not committed.
RUNS = Path("runs/experiments")
#: Distances between generated images and the embedded heads, at the end of a run and on its way.
DISTANCE, KERNEL_DISTANCE = "fd2k_heads", "kd2k_heads"
#: Yaws of a record's image, degrees.
YAWS = tuple(range(-24, 25, 6))
SEEDS = (0, 1, 2)
#: Line styles of the rows of a figure, so that equal curves stay visible.
_LINES = ("o-", "s--", "^-", "D--", "x:")
#: Subjects of each model that views, geometry and symmetry are measured on.
SUBJECTS = 96
#: Length of every run at 16² and at 32² in thousands of real images, and its batch: half an hour
#: on one core, measuring included.
KIMG, BATCH = (40.0, 20.0), 16


# ---------------------------------------------------------------- configurations
def small_config(name: str = "heads-32", seed: int = 0, **changes: Any) -> TrainConfig:
    """A preset for the embedded heads at 32², cut to `KIMG`, with some fields changed.

    The losses are the paper's plus the reward for empty space, without pose loss and code terms.
    The learning rates at 32² suit the smaller batch.
    """
    base = without_code_terms(without_pose_loss(preset(name)))
    first, second, *_ = base.stages
    second = replace(second, kimg=KIMG[1], batch=BATCH, generator_lr=3e-4, discriminator_lr=3e-3)
    stages = (replace(first, kimg=KIMG[0], batch=BATCH), second)
    cut = replace(
        base, stages=stages, seed=seed, sample_kimg=30.0, metrics=(DISTANCE,), metrics_kimg=20.0
    )
    return replace(cut, **changes)


def staged(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The same run with fields of all stages changed."""
    return replace(config, stages=tuple(replace(stage, **changes) for stage in config.stages))


# ---------------------------------------------------------------- runs and records
def run_name(config: TrainConfig) -> str:
    """The name of a configuration's run.

    A record is found by the configuration in it, not by its name, so that a new form of the
    configuration does not lose any: convert the records, keep their names. A configuration without
    a record gets a name from its hash. Experiments that share a configuration share the run.

    Raises:
        UserError: if a record's configuration cannot be read.
    """
    kind = f"{config.generator.networks.architecture}-{config.seed}"
    for path in sorted(RECORDS.glob(f"{kind}-*.json")):
        if _stored(path) == config:
            return path.stem
    content = json.dumps(to_dict(config), sort_keys=True)
    return f"{kind}-{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"


@cache
def _stored(record: Path) -> TrainConfig:
    """The configuration in a record; fields that are newer than the record have their defaults."""
    return from_dict(
        TrainConfig, json.loads(record.read_text(encoding="utf-8"))["config"], str(record)
    )


def measure(config: TrainConfig) -> dict[str, Any]:
    """Trains a configuration, measures the model and writes the record; resumes a run in `RUNS`.

    Returns:
        The record: "figures", name -> value (see `cips3d.metrics.evaluation`; null where there is
        none); "true_heads", the same of the heads themselves; "curve", pairs of thousands of images
        shown and `DISTANCE`; "minutes" of training; "commit"; "measured", what the figures depend
        on; "config". The image NAME.png next to it shows one uncurated subject.
    """
    name = run_name(config)
    record = RECORDS / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    folder = RUNS / name
    print(f"training {folder}, unless it is finished", flush=True)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    generator = pretrained.load(train_run(config, folder)).to(device)
    heads = SyntheticHeads(resolution=32)
    found = evaluate(generator, heads, (DISTANCE, KERNEL_DISTANCE), SUBJECTS).as_json()
    log = read_log(folder)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True
    )
    content = {
        "figures": found["values"],
        "true_heads": found["true_heads"],
        "curve": log_curve(log, DISTANCE),
        "minutes": training_minutes(config, log),
        "commit": commit.stdout.strip(),
        "measured": found["record"],
        "config": to_dict(config),
    }
    if generator.has_density:
        cameras = orbit_cameras(generator, YAWS)
        with torch.inference_mode():
            out = generator.render(generator.sample_latents(1, 1), cameras, 64, psi=1.0)
        save_image(record.with_suffix(".png"), image_grid(out.image, columns=len(YAWS)))
    write_json(record, content, indent=1)
    return content


def train_run(config: TrainConfig, folder: Path) -> Path:
    """The model of a run that is trained, resumed or already finished."""
    keep_freed_memory()
    return train(Run(config, folder))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [
        json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def training_minutes(config: TrainConfig, log: list[dict[str, Any]]) -> float:
    """Minutes of training at the speeds in the log, without pauses and measuring."""
    speeds = {line["resolution"]: line["images_per_second"] for line in log if "resolution" in line}
    seconds = sum(1000 * stage.kimg / speeds[stage.resolution] for stage in config.stages)
    return round(seconds / 60, 1)


def log_curve(log: list[dict[str, Any]], distance: str) -> list[tuple[float, float]]:
    """Thousands of images shown and the distance there, in pairs."""
    return [(line["images"] / 1000, line[distance]) for line in log if distance in line]


def write_json(path: Path, content: Any, indent: int) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def measure_all(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """`measure` of each: one run per core, which is faster than one run that shares the cores.

    With an accelerator, one after the other.
    """
    if torch.accelerator.is_available():
        return [measure(config) for config in configs]
    with one_thread_each(), process_pool() as pool:
        return list(pool.map(measure, configs))


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in the block read these variables when they import torch."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def process_pool() -> ProcessPoolExecutor:
    """As many new processes as torch has threads."""
    return ProcessPoolExecutor(torch.get_num_threads(), multiprocessing.get_context("spawn"))


# ---------------------------------------------------------------- tables
def table(
    rows: Mapping[str, Callable[[int], TrainConfig]],
    figures: tuple[str, ...],
    seeds: tuple[int, ...] = SEEDS,
) -> dict[str, Any]:
    """Trains and measures every row with every seed.

    Args:
        rows: name -> the configuration for a seed.
        figures: names of figures (see `cips3d.metrics.evaluation`). A generator without views has
            distances only.

    Returns:
        "medians": row -> figure -> median over the seeds; "runs": row -> figure -> a value for each
        seed (null where there is none); "true_heads": figure -> value of the heads themselves where
        they have one; "records": row -> names of its runs in `RECORDS`; "minutes" of one core for
        all runs.
    """
    configs = {row: [config(seed) for seed in seeds] for row, config in rows.items()}
    # seed by seed, so that an interrupted call has something of every row
    ordered = [entries[i] for i in range(len(seeds)) for entries in configs.values()]
    found = {}
    for config, content in zip(ordered, measure_all(ordered), strict=True):
        found[run_name(config)] = content
    records = {row: [run_name(config) for config in entries] for row, entries in configs.items()}
    runs = {
        row: {figure: [found[name]["figures"].get(figure) for name in names] for figure in figures}
        for row, names in records.items()
    }
    medians = {
        row: {figure: _median(values) for figure, values in entries.items()}
        for row, entries in runs.items()
    }
    true = next((content["true_heads"] for content in found.values() if content["true_heads"]), {})
    return {
        "medians": medians,
        "runs": runs,
        "true_heads": {figure: true[figure] for figure in figures if figure in true},
        "records": records,
        "minutes": round(sum(content["minutes"] for content in found.values()), 1),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def mirrors_only_without(
    without: Sequence[float | None], with_auxiliary: Sequence[float | None]
) -> bool:
    """Whether most subjects of every run mirror without the auxiliary discriminator, few with it.

    Args:
        without, with_auxiliary: two-hypothesis scores of the runs.
    """
    mirrored = all(score is not None and score > 0.5 for score in without)
    return mirrored and all(score is not None and score < 0.1 for score in with_auxiliary)


def sweeps(records: Mapping[str, Sequence[str]]) -> UInt8[np.ndarray, "height width 3"]:
    """The images of a table's records, one below the other."""
    names = [name for entries in records.values() for name in entries]
    return np.concatenate([np.asarray(Image.open(RECORDS / f"{name}.png")) for name in names])


def curves(
    rows: Mapping[str, Callable[[int], TrainConfig]], seeds: tuple[int, ...] = SEEDS
) -> Figure:
    """`DISTANCE` over the images shown: a line per run, a colour per row. The runs have records.

    Lines break where the resolution changes: distances are measured at the stage's own resolution.
    """
    figure = Figure(figsize=(5.5, 3.4))
    axes = figure.subplots()
    for i, (row, config) in enumerate(rows.items()):
        style = {"color": f"C{i}", "markersize": 4}
        for seed in seeds:
            points = measure(config(seed))["curve"]
            for first_stage in (True, False):
                part = [point for point in points if (point[0] <= KIMG[0]) == first_stage]
                label = row if first_stage and seed == seeds[0] else None
                axes.plot(*zip(*part, strict=True), _LINES[i % len(_LINES)], label=label, **style)
    axes.axvline(KIMG[0], color="0.8")
    axes.set(xlabel="thousands of images shown", ylabel=DISTANCE, yscale="log")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


# ---------------------------------------------------------------- results
def bundled_digest(*sources: str) -> str:
    """A hash of the bundled model, its discriminators and some of the package's files."""
    _, weights = read_tensors(pretrained.model_file("heads"), "cips3d", "a cips3d model")
    texts = []
    for source in sources:
        with as_file(files("cips3d") / source) as path:
            texts.append(path.read_text(encoding="utf-8"))
    return weights_digest(weights, "".join(texts), size=4)


class Result:
    """Writes what an experiment found: NAME.json, with the time and the machine, and NAME.png.

    Args:
        name: the experiment's, as its file's.
        claim: one sentence, with its place in the paper.
        of_bundled: the values are of the bundled model. The file records its hash, since a new
            model makes them stale.
    """

    def __init__(self, name: str, claim: str, *, of_bundled: bool = False) -> None:
        self.name, self.claim, self.began = name, claim, time.time()
        self.model = {"model": bundled_digest()} if of_bundled else {}

    def write(
        self,
        values: Any,
        holds: bool | None,
        figure: Figure | None = None,
        seeds: tuple[int, ...] = (),
    ) -> None:
        """Writes both files.

        Args:
            values: JSON-ready.
            holds: whether the claim holds here; None where there is no verdict.
        """
        content = {
            "experiment": self.name,
            "claim": self.claim,
            "holds": holds,
            "values": values,
            "seeds": seeds,
            **self.model,
            "minutes": round((time.time() - self.began) / 60, 1),  # without runs that had a record
            "finished": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
        }
        path = RESULTS / f"{self.name}.json"
        write_json(path, content, indent=2)
        if figure is not None:
            with atomic_path(path.with_suffix(".png")) as temporary:
                figure.savefig(temporary, dpi=110, bbox_inches="tight")
        print(f"{self.claim}\nholds: {holds}\n{path}")
