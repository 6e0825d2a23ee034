"""Transfer and stylisation (Sections 4.4, 4.5; Fig. 13): the bundled model in two new looks, each learned from 300 pictures.

The looks are the embedded heads as cartoons, and avatars that nobody here drew: DiceBear's "lorelei" by Lisa Wischofsky (CC0),
made with the packages of npm (avatars.mjs; needs node and npm) and not committed. Half an hour for each on a core with AVX-512,
and a quarter of an hour for the distances before and after.
Distances are to the 300 pictures along a run, and to 2,000 others of the look before and after it: a model that knew the 300 by
heart would be no nearer to those.

Rows of transfer_LOOK.png: each of four heads in the base model's and in the new look, from five yaws. Of blend_LOOK.png: the
way from one model to the other in five steps. Of swap_LOOK.png: base model, its upper blocks replaced, new look.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, RUNS, Result, of_bundled_model
from matplotlib.figure import Figure

import cips3d
from cips3d import pretrained
from cips3d.cli.train import train_here
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
from cips3d.models.generator import Generator
from cips3d.training.presets import transfer
from cips3d.training.recipe import TrainConfig
from cips3d.training.trainer import MODEL_FILE

PICTURES, HELD_OUT, SIDE, KIMG = 300, 2000, 64, 20.0
DISTANCES = {"cartoon": "fd2k_heads", "avatars": "fd2k_efficientnet"}
#: The cartoons' heads are others than those that the bundled model was trained on, whose seed is 0.
SEED = 2
HEADS, VIEWS, YAW, SUBJECTS = 4, 5, 30.0, 64
#: Exact versions: others may draw other avatars.
_NPM_PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/lorelei@9.4.3", "@resvg/resvg-js@2.6.2")
#: Degrees that the cartoons' poses may be off.
POSE_ERROR = 5.0


def main() -> None:
    claim = "With the NeRF frozen, few pictures teach a new look; shape and pose stay (Section 4.4)"
    result = Result("transfer", claim, of_bundled=True)
    base = cips3d.load("heads")
    values: dict[str, Any] = {}
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    # whatever is not there is told of before the first run
    measures = {look: Fidelity((distance,)) for look, distance in DISTANCES.items()}
    folders = {look: pictures(look) for look in DISTANCES}
    for look, distance in DISTANCES.items():
        few, others = folders[look]
        config = transfer(
            base.config, "heads", str(few), pretrained.load_discriminators("heads"), KIMG
        )
        config = replace(config, metrics=(distance,), metrics_kimg=2.5)
        transferred, curve = trained(config, RUNS / f"transfer-{look}-{of_bundled_model()}")
        curve = [(0.0, measures[look](base, open_dataset(str(few), SIDE))[distance]), *curve]
        unseen = open_dataset(str(others), SIDE)
        before, after = (
            measures[look](generator, unseen)[distance] for generator in (base, transferred)
        )
        values[look] = {
            "distance": distance,
            "before": before,
            "after": after,
            "curve": curve,
        } | compared(base, transferred)
        axes.plot(*zip(*curve, strict=True), "o-", label=f"{look} ({distance})")
        draw(look, base, transferred)
    axes.set(
        xlabel="thousands of pictures shown", ylabel="distance to the new pictures", yscale="log"
    )
    axes.legend()
    learned = all(values[look]["after"] < values[look]["before"] / 2 for look in DISTANCES)
    shapes_stay = all(values[look]["depth_change"] == 0 for look in DISTANCES)
    poses_stay = (
        values["cartoon"]["pose_error_after"] < POSE_ERROR
    )  # the network that sees poses knows no avatars
    result.write(values, learned and shapes_stay and poses_stay, figure, seeds=(0,))


def pictures(look: str) -> tuple[Path, Path]:
    """Folders of the look's pictures, those to learn from and others, made if they are not there."""
    few, others = RUNS / f"pictures-{look}", RUNS / f"pictures-{look}-held-out"
    if len(list(few.glob("*.png"))) == PICTURES and len(list(others.glob("*.png"))) == HELD_OUT:
        return few, others
    if look == "cartoon":
        heads = SyntheticHeads(resolution=SIDE, seed=SEED, style="cartoon")
        for i in range(PICTURES + HELD_OUT):
            save_image(
                (few if i < PICTURES else others) / f"{i:04d}.png",
                heads[i].permute(1, 2, 0).numpy(),
            )
        return few, others
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm: is not installed, and the avatars are made with its packages; install node and npm"
        )
    packages = RUNS / "avatars"
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "install", "--silent", *_NPM_PACKAGES], cwd=packages, check=True)
    shutil.copy(Path(__file__).parent / "avatars.mjs", packages)  # where its packages are
    for folder, first, count in ((few, 0, PICTURES), (others, PICTURES, HELD_OUT)):
        arguments = [str(folder.resolve()), str(first), str(count), str(SIDE)]
        subprocess.run(["node", "avatars.mjs", *arguments], cwd=packages, check=True)
    return few, others


def trained(config: TrainConfig, folder: Path) -> tuple[Generator, list[tuple[float, float]]]:
    """The transferred model, and its distance to the new pictures along the run."""
    train_here(
        config, folder
    )  # goes on with a run that was interrupted, and takes one that has ended as it is
    (distance,) = config.metrics
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return pretrained.load(folder / MODEL_FILE), [
        (line["images"] / 1000, line[distance]) for line in log if distance in line
    ]


def compared(base: Generator, transferred: Generator) -> dict[str, float]:
    """What changed for the same shape codes."""
    latents = base.sample_latents(SUBJECTS, 0)
    camera = base.config.poses.sample(SUBJECTS, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        depths = [g.render(latents, camera, SIDE).depth for g in (base, transferred)]
    network = load_head_network()
    errors = [
        pose_error(Subjects.generated(g, latents, SIDE).from_prior(0), network)
        for g in (base, transferred)
    ]
    return {
        "depth_change": float((depths[0] - depths[1]).abs().max()),
        "pose_error_before": errors[0],
        "pose_error_after": errors[
            1
        ],  # as a network sees it that knows heads and cartoons, not avatars
    }


def draw(look: str, base: Generator, transferred: Generator) -> None:
    """The pictures of a run."""
    latents = base.sample_latents(HEADS, 1)
    save_image(
        RESULTS / f"transfer_{look}.png",
        views_sheet([base, transferred], latents, YAW, VIEWS, SIDE),
    )
    save_image(
        RESULTS / f"blend_{look}.png", amounts_sheet(base, transferred, latents, VIEWS, SIDE)
    )
    swapped = swap_layers(base, transferred, from_block=base.config.inr_blocks // 2)
    save_image(
        RESULTS / f"swap_{look}.png",
        views_sheet([base, swapped, transferred], latents[:2], YAW, VIEWS, SIDE),
    )


if __name__ == "__main__":
    main()
