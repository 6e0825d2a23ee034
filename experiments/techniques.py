"""An experiment of our own: is the auxiliary discriminator still needed with later techniques?

Measures mirror symmetry with and without it: for Table 2's runs; without the reward for empty space
(the paper's own losses); and with the pose loss (pi-GAN's code), relativistic pairing (R3GAN),
DiffAugment, a learned camera prior, and discriminators that see camera labels. One seed each, since
all six runs of Table 2 with and without it have the same score, 0%: two and a half hours on two
cores.

Rows of techniques.png: one uncurated subject of each run, in the order of the file's records, yaws
from −24° to 24°.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from common import DISTANCE, RESULTS, Result, mirrors_only_without, staged, sweeps, table
from table_2 import ROWS as TABLE_2

from cips3d.export.media import save_image
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.training.objective import R2, Pose
from cips3d.training.recipe import TrainConfig

SEEDS = (0,)
Change = Callable[[TrainConfig], TrainConfig]


def discriminators(config: TrainConfig, **changes: bool) -> dict[str, DiscriminatorConfig]:
    """Both discriminators changed, as fields of the run."""
    return {
        "discriminator": replace(config.discriminator, **changes),
        "aux_discriminator": replace(config.aux_discriminator, **changes),
    }


def paper_losses(config: TrainConfig) -> TrainConfig:
    return replace(config, objective=replace(config.objective, transmittance=None))


def pose_loss(config: TrainConfig) -> TrainConfig:
    objective = replace(config.objective, pose=Pose())
    return replace(config, objective=objective, **discriminators(config, pose_head=True))


def camera_labels(config: TrainConfig) -> TrainConfig:
    return replace(config, **discriminators(config, camera_label=True))


def relativistic(config: TrainConfig) -> TrainConfig:
    r2 = R2(weight=0.2, every=16)
    return replace(config, objective=replace(config.objective, adversarial="relativistic", r2=r2))


#: What the techniques are added to: Table 2's own runs.
BASE = "table-2"
TECHNIQUES: dict[str, Change] = {
    BASE: lambda config: config,
    "paper-losses": paper_losses,
    "pose-loss": pose_loss,
    "relativistic": relativistic,
    "diffaugment": lambda config: staged(config, augment=0.5),
    "learned-cameras": lambda config: replace(config, cameras="learned"),
    "camera-labels": camera_labels,
}
FIGURES = (
    "two_hypothesis_score", "bangs_flip", "mirror_jump", DISTANCE, "pose_error",
    "depth_correlation",
)  # fmt: skip


def row(technique: str, auxiliary: bool) -> Callable[[int], TrainConfig]:
    """The run of a technique, with or without the auxiliary discriminator."""
    base = TABLE_2["full" if auxiliary else "learned"]
    return lambda seed: TECHNIQUES[technique](base(seed))


ROWS = {
    f"{technique}-{'with' if auxiliary else 'without'}": row(technique, auxiliary)
    for technique in TECHNIQUES
    for auxiliary in (False, True)
}


def main() -> None:
    claim = (
        "With each later technique, heads are mirror-symmetric without the auxiliary discriminator "
        "and not with it (ours)"
    )
    result = Result("techniques", claim)
    found = table(ROWS, FIGURES, SEEDS)
    save_image(RESULTS / "techniques.png", sweeps(found["records"]))
    scores = {name: values["two_hypothesis_score"] for name, values in found["runs"].items()}
    holds = all(
        mirrors_only_without(scores[f"{technique}-without"], scores[f"{technique}-with"])
        for technique in TECHNIQUES
        if technique != BASE
    )
    result.write(found, holds, seeds=SEEDS)


if __name__ == "__main__":
    main()
