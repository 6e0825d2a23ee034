"""Transfer and stylisation (Sections 4.4, 4.5; Fig. 13): two new looks, each from 300 images.

The bundled model learns the embedded heads as cartoons, and avatars that are not ours: DiceBear's
"lorelei" by Lisa Wischofsky (CC0). The avatars are drawn with npm packages (avatars.mjs; needs node
and npm) and are not committed. Half an hour for each look on a core with AVX-512, and a quarter of
an hour for the distances before and after.

Along a run, distances are to the 300 images; before and after it, to 2,000 others of the same look,
which a model that memorises the 300 would not approach.

Rows of transfer_LOOK.png: each of four heads in the base model's look and in the new one, from five
yaws. blend_LOOK.png: from one model to the other in five steps. swap_LOOK.png: base model, base
model with its upper blocks replaced, new look.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, RUNS, Result, bundled_digest, log_curve, read_log, train_run
from matplotlib.figure import Figure

import cips3d
from cips3d import pretrained
from cips3d.data import open_dataset
from cips3d.editing.blending import swap_layers
from cips3d.editing.comparisons import amounts_sheet, views_sheet
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import load_head_network
from cips3d.metrics.consistency import pose_error
from cips3d.metrics.fidelity import Fidelity
from cips3d.metrics.views import Subjects
from cips3d.models.protocol import ImageGenerator
from cips3d.training.launch import default_processes, run_in_processes
from cips3d.training.presets import transfer
from cips3d.training.recipe import TrainConfig

IMAGES, HELD_OUT, SIDE, KIMG = 300, 2000, 64, 20.0
DISTANCES = {"cartoon": "fd2k_heads", "avatars": "fd2k_efficientnet"}
#: Seed of the cartoons' heads. The bundled model was trained on those of seed 0.
SEED = 2
HEADS, VIEWS, YAW, SUBJECTS = 4, 5, 30.0, 64
#: Exact versions: others may draw other avatars.
_NPM_PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/lorelei@9.4.3", "@resvg/resvg-js@2.6.2")
#: Largest pose error of the cartoons, degrees.
POSE_ERROR = 5.0


def main() -> None:
    claim = "With the NeRF frozen, a few images teach a new look; shape and pose stay (Section 4.4)"
    result = Result("transfer", claim, of_bundled=True)
    base = cips3d.load("heads")
    # missing packages are reported before the first run
    measures = {look: Fidelity((distance,)) for look, distance in DISTANCES.items()}
    folders = {look: images(look) for look in DISTANCES}
    values: dict[str, Any] = {}
    for look, distance in DISTANCES.items():
        few, others = folders[look]
        config = configuration(base, few, distance)
        transferred, curve = trained(config, RUNS / f"transfer-{look}-{bundled_digest()}")
        start = measures[look](base, open_dataset(str(few), SIDE))[distance]
        unseen = open_dataset(str(others), SIDE)
        before, after = (measures[look](g, unseen)[distance] for g in (base, transferred))
        values[look] = {
            "distance": distance,
            "before": before,
            "after": after,
            "curve": [(0.0, start), *curve],
            **compared(base, transferred),
        }
        draw(look, base, transferred)
    learned = all(values[look]["after"] < values[look]["before"] / 2 for look in DISTANCES)
    shapes_stay = all(values[look]["depth_change"] == 0 for look in DISTANCES)
    # the network that reads poses does not know avatars
    poses_stay = values["cartoon"]["pose_error_after"] < POSE_ERROR
    result.write(values, learned and shapes_stay and poses_stay, drawn(values), seeds=(0,))


def configuration(base: ImageGenerator, data: Path, distance: str) -> TrainConfig:
    """The run that transfers the bundled model to a folder of images."""
    discriminators = pretrained.load_discriminators("heads")
    config = transfer(base.config, "heads", str(data), discriminators, KIMG)
    return replace(config, metrics=(distance,), metrics_kimg=2.5)


def images(look: str) -> tuple[Path, Path]:
    """Folders with the look's images, those to learn from and others; made if they are missing."""
    few, others = RUNS / f"images-{look}", RUNS / f"images-{look}-held-out"
    if len(list(few.glob("*.png"))) == IMAGES and len(list(others.glob("*.png"))) == HELD_OUT:
        return few, others
    if look == "cartoon":
        heads = SyntheticHeads(resolution=SIDE, seed=SEED, style="cartoon")
        for i in range(IMAGES + HELD_OUT):
            path = (few if i < IMAGES else others) / f"{i:04d}.png"
            save_image(path, heads[i].permute(1, 2, 0).numpy())
        return few, others
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed; install node and npm, which draw the avatars")
    packages = RUNS / "avatars"
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "install", "--silent", *_NPM_PACKAGES], cwd=packages, check=True)
    shutil.copy(Path(__file__).parent / "avatars.mjs", packages)  # node looks for packages there
    for folder, first, count in ((few, 0, IMAGES), (others, IMAGES, HELD_OUT)):
        arguments = [str(folder.resolve()), str(first), str(count), str(SIDE)]
        subprocess.run(["node", "avatars.mjs", *arguments], cwd=packages, check=True)
    return few, others


def trained(config: TrainConfig, folder: Path) -> tuple[ImageGenerator, list[tuple[float, float]]]:
    """The transferred model, and its distance to the new images along the run.

    Resumes an interrupted run and keeps a finished one.
    """
    run_in_processes(default_processes(config.stages), train_run, config, folder)
    (distance,) = config.metrics
    model = pretrained.load(folder / pretrained.MODEL_FILE)
    return model, log_curve(read_log(folder), distance)


def compared(base: ImageGenerator, transferred: ImageGenerator) -> dict[str, float]:
    """What changed for the same shape codes."""
    latents = base.sample_latents(SUBJECTS, 0)
    camera = base.config.poses.sample(SUBJECTS, torch.Generator().manual_seed(0))
    network = load_head_network()
    depths, errors = [], []
    for generator in (base, transferred):
        with torch.inference_mode():
            depths.append(generator.render(latents, camera, SIDE, psi=1.0).depth)
        view = Subjects.generated(generator, latents, SIDE).from_prior(0)
        errors.append(pose_error(view, network))
    return {
        "depth_change": float((depths[0] - depths[1]).abs().max()),
        "pose_error_before": errors[0],
        # read by a network that knows heads and cartoons, not avatars
        "pose_error_after": errors[1],
    }


def draw(look: str, base: ImageGenerator, transferred: ImageGenerator) -> None:
    """Writes the sheets of a look."""
    latents = base.sample_latents(HEADS, 1)
    swapped = swap_layers(base, transferred, from_block=base.style_blocks // 2)
    sheets = {
        "transfer": views_sheet(
            [base, transferred], latents, YAW, VIEWS, SIDE, labels=("base", "transferred")
        ),
        "blend": amounts_sheet(base, transferred, latents, VIEWS, SIDE),
        "swap": views_sheet(
            [base, swapped, transferred],
            latents[:2],
            YAW,
            VIEWS,
            SIDE,
            labels=("base", "swapped", "transferred"),
        ),
    }
    for kind, sheet in sheets.items():
        save_image(RESULTS / f"{kind}_{look}.png", sheet)


def drawn(values: dict[str, Any]) -> Figure:
    """Distances over the images shown, a curve per look."""
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    for look, entry in values.items():
        axes.plot(*zip(*entry["curve"], strict=True), "o-", label=f"{look} ({entry['distance']})")
    labels = {"xlabel": "thousands of images shown", "ylabel": "distance to the new images"}
    axes.set(yscale="log", **labels)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
