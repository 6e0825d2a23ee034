"""Table 2, Fig. 5, 6, 11: view direction, positional encoding and auxiliary discriminator.

Four configurations of the small preset for the embedded heads that differ in the table's columns
only, three seeds each: three hours on two cores.

Rows of table_2_sweeps.png: three seeds of each configuration, one uncurated subject each, yaws from
−24° to 24°.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from common import (
    DISTANCE,
    KERNEL_DISTANCE,
    RESULTS,
    SEEDS,
    Result,
    mirrors_only_without,
    small_config,
    staged,
    sweeps,
    table,
)

from cips3d.export.media import save_image
from cips3d.models.config import Embedding
from cips3d.training.recipe import TrainConfig

#: The paper's column FID, at 64² on FFHQ.
PAPER = {"direction": 17.46, "fixed": 16.25, "learned": 18.77, "full": 16.46}
FIGURES = (
    DISTANCE, KERNEL_DISTANCE, "mirror_jump", "two_hypothesis_score", "bangs_flip",
    "identity_consistency", "identity_between", "pose_error",
)  # fmt: skip


def row(direction: bool, embedding: Embedding, auxiliary: bool) -> Callable[[int], TrainConfig]:
    """The run of a row for a seed."""

    def config(seed: int) -> TrainConfig:
        base = small_config(seed=seed)
        networks = replace(base.generator.networks, embedding=embedding, view_direction=direction)
        base = replace(base, generator=replace(base.generator, networks=networks))
        return staged(base, auxiliary=auxiliary)

    return config


ROWS = {
    "direction": row(True, "fixed", auxiliary=False),
    "fixed": row(False, "fixed", auxiliary=False),
    "learned": row(False, "learned", auxiliary=False),
    "full": row(False, "learned", auxiliary=True),
}


def main() -> None:
    claim = (
        "Heads are mirror-symmetric without the auxiliary discriminator and not with it (Table 2, "
        "Fig. 5)"
    )
    result = Result("table_2", claim)
    found = table(ROWS, FIGURES)
    save_image(RESULTS / "table_2_sweeps.png", sweeps(found["records"]))
    scores = [found["runs"][name]["two_hypothesis_score"] for name in ("learned", "full")]
    result.write({"paper_fid": PAPER} | found, mirrors_only_without(*scores), seeds=SEEDS)


if __name__ == "__main__":
    main()
