"""An experiment of our own: does the auxiliary discriminator still matter with each of the later techniques?

Mirror symmetry with and without it: as Table 2 has it, without the reward for empty space (the paper's own losses), and with
the pose loss (pi-GAN's code), relativistic pairing (R3GAN), DiffAugment, a learned camera prior and discriminators that see
camera labels. One seed each, since all six runs of Table 2 with and without it have the same score, 0%: two and a half hours on
two cores. Rows of techniques.png: one subject of each run, in the order of the file's records, yaws from −24° to 24°.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common import RESULTS, Result, clearly_mirrored, small_config, staged, sweeps, table
from table_2 import ROWS as TABLE_2

from cips3d.export.media import save_image
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.training.presets import POSE_WEIGHT
from cips3d.training.recipe import TrainConfig

SEEDS = (0,)


def discriminators(**changes: bool) -> dict[str, DiscriminatorConfig]:
    """The fields with both discriminators changed."""
    base = small_config()
    return {
        name: replace(getattr(base, name), **changes)
        for name in ("discriminator", "aux_discriminator")
    }


#: What the techniques are added to: Table 2's own runs.
BASE = "table-2"
#: Changes of the run, and of its stages.
TECHNIQUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    BASE: ({}, {}),
    "paper-losses": ({"transmittance_weight": 0.0}, {}),
    "pose-loss": ({"pose_weight": POSE_WEIGHT} | discriminators(pose_head=True), {}),
    "relativistic": ({"loss": "relativistic", "r2_gamma": 0.2}, {}),
    "diffaugment": ({}, {"augment": 0.5}),
    "learned-cameras": ({"cameras": "learned"}, {}),
    "camera-labels": (discriminators(camera_label=True), {}),
}
FIGURES = (
    "two_hypothesis_score",
    "bangs_flip",
    "mirror_jump",
    "fd2k_heads",
    "pose_error",
    "depth_correlation",
)


def row(technique: str, auxiliary: bool) -> Callable[[int], TrainConfig]:
    """The run of a technique, with or without the auxiliary discriminator."""
    of_run, of_stages = TECHNIQUES[technique]

    def config(seed: int) -> TrainConfig:
        base = replace(TABLE_2["full" if auxiliary else "learned"](seed), **of_run)
        return staged(base, **of_stages)

    return config


ROWS = {
    f"{technique}-{'with' if auxiliary else 'without'}": row(technique, auxiliary)
    for technique in TECHNIQUES
    for auxiliary in (False, True)
}


def main() -> None:
    claim = "With each later technique, heads are mirrored without the auxiliary discriminator and not with it (ours)"
    result = Result("techniques", claim)
    found = table(ROWS, FIGURES, SEEDS)
    save_image(RESULTS / "techniques.png", sweeps(found["records"]))
    score = {name: values["two_hypothesis_score"] for name, values in found["runs"].items()}
    later = [technique for technique in TECHNIQUES if technique != BASE]
    holds = all(
        clearly_mirrored(score[f"{technique}-without"], score[f"{technique}-with"])
        for technique in later
    )
    result.write(found, holds, seeds=SEEDS)


if __name__ == "__main__":
    main()
