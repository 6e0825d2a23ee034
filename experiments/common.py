"""What experiments share: training runs, made once and resumed if interrupted; tables over seeds; results as files."""

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
from dataclasses import MISSING, fields, is_dataclass, replace
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
from cips3d.cli.train import train_here
from cips3d.configuration import to_dict
from cips3d.export.media import image_grid, save_image
from cips3d.export.sheets import orbit_cameras
from cips3d.files import atomic_path
from cips3d.heads import SyntheticHeads
from cips3d.metrics.evaluation import evaluate
from cips3d.training.presets import preset, without_pose_loss
from cips3d.training.recipe import TrainConfig
from cips3d.training.trainer import MODEL_FILE

matplotlib.use("Agg")

#: Where results go, and what each run came to (both committed; a run is not made again while its record is there), and where
#: runs go (not committed).
RESULTS = Path(__file__).parent / "results"
RECORDS = RESULTS / "runs"
RUNS = Path("runs/experiments")
#: Distances of generated pictures from the heads, of runs and along them.
DISTANCE, KERNEL_DISTANCE = "fd2k_heads", "kd2k_heads"
#: Views of a record's picture, degrees.
YAWS = tuple(range(-24, 25, 6))
SEEDS = (0, 1, 2)
#: Of the rows of a figure of curves, so that equal curves show.
_LINES = ("o-", "s--", "^-", "D--", "x:")
#: Of each model, that views, geometry and symmetry are measured on.
SUBJECTS = 96
#: Thousands of real pictures shown at 16² and at 32² in every comparison, 16 in a step: with figures half an hour on a core.
KIMG, BATCH = (40.0, 20.0), 16


def small_config(name: str = "heads-32", seed: int = 0, **changes: Any) -> TrainConfig:
    """A preset of the embedded heads at 32² cut to `KIMG`, with its own distances on the way and some fields changed.

    The losses are the paper's, but for the reward for empty space, without the pose loss; rates at 32² suit the smaller batch.
    """
    base = without_pose_loss(preset(name))
    first, second, *_ = base.stages
    second = replace(second, kimg=KIMG[1], batch=BATCH, generator_lr=3e-4, discriminator_lr=3e-3)
    cut = replace(
        base, stages=(replace(first, kimg=KIMG[0], batch=BATCH), second), seed=seed, sample_kimg=30.0, metrics=(DISTANCE,),
        metrics_kimg=20.0,
    )  # fmt: skip
    return replace(cut, **changes)


def staged(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The same run with fields of all stages changed."""
    return replace(config, stages=tuple(replace(stage, **changes) for stage in config.stages))


def run_name(config: TrainConfig) -> str:
    """The name of the run of a configuration: equal runs of several experiments are made once, changed ones anew."""
    digest = hashlib.blake2b(
        json.dumps(_chosen(config), sort_keys=True).encode(), digest_size=6
    ).hexdigest()
    return f"{config.generator.architecture}-{config.seed}-{digest}"


def _chosen(config: Any) -> Any:
    """What of a configuration is not its class's default, so that a field that is added later does not rename runs."""
    if isinstance(config, tuple):
        return [_chosen(entry) for entry in config]
    if not is_dataclass(config):
        return config
    chosen = {}
    for entry in fields(config):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if getattr(config, entry.name) != default:
            chosen[entry.name] = _chosen(getattr(config, entry.name))
    return chosen


def measure(config: TrainConfig) -> dict[str, Any]:
    """Trains a configuration, or goes on with its run in `RUNS`, measures the model and records what came out in `RECORDS`.

    Returns:
        "figures": name -> value (see `cips3d.metrics.evaluation`; null where there is none), and "true_heads", the same of the
        heads themselves; "curve": thousands of pictures shown and `DISTANCE` there, in pairs; "minutes" of training, "commit";
        "measured", what the figures depend on. Beside it, the record NAME.png shows one subject, not picked.
    """
    record = RECORDS / f"{run_name(config)}.json"
    if record.exists():
        return json.loads(record.read_text())
    folder = RUNS / run_name(config)
    print(f"training {folder}, unless it has ended", flush=True)
    train_here(config, folder, processes=1)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    generator = pretrained.load(folder / MODEL_FILE).to(device)
    found = evaluate(
        generator, SyntheticHeads(resolution=32), (DISTANCE, KERNEL_DISTANCE), SUBJECTS
    ).as_json()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    speeds = {line["resolution"]: line["images_per_second"] for line in log if "resolution" in line}
    content = {
        "figures": found["values"],
        "true_heads": found["true_heads"],
        "curve": [(line["images"] / 1000, line[DISTANCE]) for line in log if DISTANCE in line],
        "minutes": round(
            sum(1000 * stage.kimg / speeds[stage.resolution] for stage in config.stages) / 60, 1
        ),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True
        ).stdout.strip(),
        "measured": found["record"],
        "config": to_dict(config),
    }
    if "nerf" in generator.parts:
        with torch.inference_mode():
            out = generator.render(
                generator.sample_latents(1, 1), orbit_cameras(generator, YAWS), 64
            )
        save_image(record.with_suffix(".png"), image_grid(out.image, columns=len(YAWS)))
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return content


def measure_all(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """`measure` of each, one run on each core: together they show more pictures than one run that shares the cores.

    Beside an accelerator one after the other.
    """
    if torch.accelerator.is_available():
        return [measure(config) for config in configs]
    with (
        one_thread_each(),
        ProcessPoolExecutor(torch.get_num_threads(), multiprocessing.get_context("spawn")) as pool,
    ):
        return list(pool.map(measure, configs))


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that are started in the block have one thread each: they read these variables when they import torch."""
    outside = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= outside


def table(
    rows: Mapping[str, Callable[[int], TrainConfig]],
    figures: tuple[str, ...],
    seeds: tuple[int, ...] = SEEDS,
) -> dict[str, Any]:
    """Trains every row with every seed and measures what comes out.

    Args:
        rows: name -> the configuration for a seed.
        figures: names of figures (see `cips3d.metrics.evaluation`), of which a generator without views has only distances.

    Returns:
        "runs": row -> figure -> a value for each seed (null where there is none); "medians": row -> figure -> their median;
        "true_heads": figure -> value of the heads themselves, where they have one;
        "records": row -> the names of its runs in `RECORDS`; "minutes" that all runs took on a core each.
    """
    configs = {row: [config(seed) for seed in seeds] for row, config in rows.items()}
    # seed by seed, so that a call that is interrupted leaves something of every row
    ordered = [of_row[i] for i in range(len(seeds)) for of_row in configs.values()]
    found = {
        run_name(config): content
        for config, content in zip(ordered, measure_all(ordered), strict=True)
    }
    records = {row: [run_name(config) for config in of_row] for row, of_row in configs.items()}
    runs = {
        row: {figure: [found[name]["figures"].get(figure) for name in names] for figure in figures}
        for row, names in records.items()
    }
    medians = {
        row: {figure: _median(values) for figure, values in of_row.items()}
        for row, of_row in runs.items()
    }
    true = next((content["true_heads"] for content in found.values() if content["true_heads"]), {})
    return {
        "medians": medians, "runs": runs, "true_heads": {figure: true[figure] for figure in figures if figure in true},
        "records": records, "minutes": round(sum(content["minutes"] for content in found.values()), 1),
    }  # fmt: skip


def of_bundled_model(*others: str) -> str:
    """A name for what is kept of the bundled model: another one when it, its discriminators or these files change."""
    model = f"bundled/{pretrained.BUNDLED['heads']}"
    hashed = hashlib.blake2b(digest_size=4)
    for name in (model, str(pretrained.discriminators_file(Path(model))), *others):
        with as_file(files("cips3d") / name) as path:
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


def sweeps(records: Mapping[str, Sequence[str]]) -> UInt8[np.ndarray, "height width 3"]:
    """The pictures of a table's records, one below the other."""
    return np.concatenate(
        [
            np.asarray(Image.open(RECORDS / f"{name}.png"))
            for names in records.values()
            for name in names
        ]
    )


def curves(
    rows: Mapping[str, Callable[[int], TrainConfig]], seeds: tuple[int, ...] = SEEDS
) -> Figure:
    """`DISTANCE` over the pictures shown, a line per run, a colour per row; of runs that are recorded.

    Lines break where the resolution changes: each distance is from heads of its own stage's size.
    """
    figure = Figure(figsize=(5.5, 3.4))
    axes = figure.subplots()
    for i, (row, config) in enumerate(rows.items()):
        for seed in seeds:
            points = measure(config(seed))["curve"]
            for small in (True, False):
                part = [point for point in points if (point[0] <= KIMG[0]) == small]
                label = row if small and seed == seeds[0] else None
                axes.plot(
                    *zip(*part, strict=True),
                    _LINES[i % len(_LINES)],
                    color=f"C{i}",
                    label=label,
                    markersize=4,
                )
    axes.axvline(KIMG[0], color="0.8")
    axes.set(xlabel="thousands of pictures shown", ylabel=DISTANCE, yscale="log")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def clearly_mirrored(without: list[float | None], with_it: list[float | None]) -> bool:
    """Whether most subjects of every run mirror without the auxiliary discriminator, and few of any run with it."""
    return all(x is not None and x > 0.5 for x in without) and all(
        x is not None and x < 0.1 for x in with_it
    )


class Result:
    """Writes what an experiment found: NAME.json, with the time it took and where, and NAME.png.

    Args:
        name: of the experiment, as its file's.
        claim: the paper's, in one sentence with its place.
        of_bundled: whether the values are of the bundled model, which the file then names: they are old when it changes.
    """

    def __init__(self, name: str, claim: str, *, of_bundled: bool = False) -> None:
        self.name, self.claim, self.began = name, claim, time.time()
        self.model = {"model": of_bundled_model()} if of_bundled else {}

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
            holds: whether the claim does here; None where that cannot be said.
        """
        content = {
            "experiment": self.name, "claim": self.claim, "holds": holds, "values": values, "seeds": seeds, **self.model,
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
