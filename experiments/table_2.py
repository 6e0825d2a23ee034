"""Table 2 and Fig. 5, 6, 11: view direction, positional encoding and auxiliary discriminator on the embedded heads.

Four configurations of the small preset, three seeds each, alike in all but its columns: three hours on two cores.
Rows of table_2_sweeps.png: three seeds of each configuration, one subject each, not picked, yaws from −24° to 24°.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from common import RESULTS, SEEDS, Result, clearly_mirrored, small_config, staged, sweeps, table

from cips3d.export.media import save_image
from cips3d.training.recipe import TrainConfig

#: The paper's column FID, at 64² on FFHQ.
PAPER = {"direction": 17.46, "fixed": 16.25, "learned": 18.77, "full": 16.46}
FIGURES = (
    "fd2k_heads", "kd2k_heads", "mirror_jump", "two_hypothesis_score", "bangs_flip", "identity_consistency", "identity_between",
    "pose_error",
)  # fmt: skip


def row(
    direction: bool, embedding: Literal["fixed", "learned"], auxiliary: bool
) -> Callable[[int], TrainConfig]:
    """The run of a row for a seed."""

    def config(seed: int) -> TrainConfig:
        base = small_config(seed=seed)
        generator = replace(base.generator, embedding=embedding, view_direction=direction)
        return staged(replace(base, generator=generator), auxiliary=auxiliary)

    return config


ROWS = {
    "direction": row(True, "fixed", auxiliary=False),
    "fixed": row(False, "fixed", auxiliary=False),
    "learned": row(False, "learned", auxiliary=False),
    "full": row(False, "learned", auxiliary=True),
}


def main() -> None:
    claim = "Without the auxiliary discriminator heads are mirror-symmetric, with it they are not (Table 2, Fig. 5)"
    result = Result("table_2", claim)
    found = table(ROWS, FIGURES)
    save_image(RESULTS / "table_2_sweeps.png", sweeps(found["records"]))
    without, with_it = (found["runs"][name]["two_hypothesis_score"] for name in ("learned", "full"))
    result.write({"paper_fid": PAPER} | found, clearly_mirrored(without, with_it), seeds=SEEDS)


if __name__ == "__main__":
    main()
