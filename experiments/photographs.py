"""Photographs (ours): faces by another network, and the AT&T faces, of which 400 are all there are.

A model learns 4,000 images of a DCGAN at 64², then its look is transferred to the 400 photographs.
MediaPipe's face mesh and MobileFaceNet judge both, as `cips3d eval --predictor` does. See
faces/images.py for the images and their terms; none of them is committed. Needs `make faces`.

photographs_dcgan.png, photographs_att.png: 24 uncurated subjects, two in a row, each from five yaws
and the depth from there. The runs lie in runs/experiments/photographs-NAME. A run that is there
goes on with its own configuration and is judged as it is.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, RUNS, Result, read_log, train_run, training_minutes
from faces.images import SIDE, att_faces, dcgan_faces

from cips3d import pretrained
from cips3d.configuration import read_json, with_settings
from cips3d.errors import UserError
from cips3d.export.media import depth_map, save_image
from cips3d.export.sheets import Sheet, image_grid, orbit_cameras
from cips3d.models.protocol import ImageGenerator
from cips3d.training.launch import default_processes, run_in_processes
from cips3d.training.presets import preset, transfer
from cips3d.training.recipe import TrainConfig
from cips3d.training.run import CONFIG_FILE

#: Thousands of photographs shown in the transfer.
KIMG = 20.0
SUBJECTS, SHOWN, YAWS = 256, 24, (-25.0, -12.5, 0.0, 12.5, 25.0)
DISTANCE = "fd2k_efficientnet"
#: Judges models of faces in its own environment: `make faces`.
JUDGE = Path(".venv-faces/bin/cips3d")
#: What docs/training.md recommends for photographs.
SETTINGS = (
    "mirror=true",
    "generator.networks.background=field",
    "objective.transmittance.target=0.25",
    "objective.opacity.weight=0.5",
    "objective.convexity.weight=0.5",
)
#: Least value of a figure, and the bounds of the slope.
LEAST = {"pose_correlation": 0.9, "found_share": 0.95, "convexity": 0.9}
SLOPE = (0.8, 1.2)


def main() -> None:
    claim = (
        "A model of faces turns as asked over ±25°: a correlation of at least "
        f"{LEAST['pose_correlation']:g} and a slope of {SLOPE[0]:g} to {SLOPE[1]:g} between the "
        f"yaws asked and seen. A face is found in {LEAST['found_share']:.0%} of its views, and the "
        f"nose is nearer than eyes and cheeks in {LEAST['convexity']:.0%} (ours)"
    )
    result = Result("photographs", claim)
    if not JUDGE.exists():
        raise UserError(f"{JUDGE}: there is no such program; run make faces")
    data = {"dcgan": dcgan_faces(RUNS / "faces"), "att": att_faces(RUNS / "faces")}
    values: dict[str, Any] = {}
    for name in data:
        folder = RUNS / f"photographs-{name}"
        config = configuration(name, folder, data)
        run_in_processes(default_processes(config.stages), train_run, config, folder)
        model = folder / pretrained.MODEL_FILE
        minutes = training_minutes(config, read_log(folder))
        values[name] = {"minutes": minutes, **judged(model, data[name])}
        save_image(RESULTS / f"photographs_{name}.png", sheet(pretrained.load(model)))
    result.write(values, all(holds(found["values"]) for found in values.values()), seeds=(0,))


def configuration(name: str, folder: Path, data: dict[str, Path]) -> TrainConfig:
    """That of the run in the folder; of a new one if there is none."""
    if (folder / CONFIG_FILE).exists():
        return read_json(TrainConfig, folder / CONFIG_FILE)
    if name == "dcgan":
        faces = replace(preset("heads-64"), data=str(data[name]))
        return with_settings(faces, SETTINGS, "SETTINGS")
    start = str(RUNS / "photographs-dcgan" / pretrained.MODEL_FILE)
    base, judges = pretrained.load(start), pretrained.load_discriminators(start)
    return transfer(base.config, start, str(data[name]), judges, KIMG, "heads-64")


def judged(model: Path, data: Path) -> dict[str, Any]:
    """What `cips3d eval` finds with the predictor of faces, in the environment that it needs."""
    out = model.with_name("faces.json")
    command = [JUDGE, "eval", model, "--data", data, "--count", SUBJECTS, "--metrics", DISTANCE]
    command += ["--predictor", "experiments.faces.predictor:faces", "--json-file", out]
    subprocess.run([*map(str, command)], check=True)
    return json.loads(out.read_text(encoding="utf-8"))


def holds(values: dict[str, float | None]) -> bool:
    """Whether the model turns as asked, shows faces and is convex."""
    slope = values["pose_slope"]
    enough = all((values[name] or 0.0) >= least for name, least in LEAST.items())
    return enough and slope is not None and SLOPE[0] <= slope <= SLOPE[1]


@torch.inference_mode()
def sheet(generator: ImageGenerator) -> Sheet:
    """Uncurated subjects, two in a row: each from `YAWS`, and the depth from there."""
    latents, cameras = generator.sample_latents(SHOWN, 0), orbit_cameras(generator, YAWS)
    cells = []
    for i in range(SHOWN):
        out = generator.render(latents[i], cameras, SIDE, psi=1.0)
        cells += [out.image, depth_map(out.depth, out.subject_opacity)]
    return image_grid(torch.cat(cells), columns=4 * len(YAWS))


if __name__ == "__main__":
    main()
