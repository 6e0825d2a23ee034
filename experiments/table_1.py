"""Table 1 and Fig. 8: CIPS-3D, pi-GAN and the 2D CIPS on the embedded heads, with about as many parameters each.

As many pictures for each, three seeds. pi-GAN takes six times the operations of CIPS-3D: 70 to 100 minutes for each of its
runs on a core. CIPS-3D is Table 2's whole configuration, measured more often along its runs, as its rivals are, for Fig. 8.
Rows of table_1_sweeps.png (Fig. 5, 6): one subject of each run, three of CIPS-3D and three of pi-GAN, yaws from −24° to 24°.
"""

from __future__ import annotations

from dataclasses import replace

from common import RESULTS, SEEDS, Result, curves, small_config, staged, sweeps, table
from table_2 import ROWS as TABLE_2

from cips3d.export.media import save_image
from cips3d.training.presets import PI_GAN_RATE

#: FID and KID × 10³ at 256² on FFHQ.
PAPER = {"cips-3d": (6.97, 2.87), "pi-gan": (34.56, 26.58), "cips-2d": (23.06, 23.04)}
#: Thousands of pictures between two points of a curve.
OFTEN = 5.0
DISTANCES = ("fd2k_heads", "kd2k_heads")
#: Besides, of the generators that have views: Fig. 5b says that pi-GAN does not mirror, Section 4.2 that it lacks detail.
FIGURES = (
    "detail",
    "pose_error",
    "warp_error",
    "mirror_jump",
    "two_hypothesis_score",
    "bangs_flip",
)
ROWS = {
    "cips-3d": lambda seed: replace(TABLE_2["full"](seed), metrics_kimg=OFTEN),
    # at the preset's rate throughout
    "pi-gan": lambda seed: staged(
        small_config("heads-32-pi-gan", seed, metrics_kimg=OFTEN), generator_lr=PI_GAN_RATE
    ),
    "cips-2d": lambda seed: small_config("heads-32-cips-2d", seed, metrics_kimg=OFTEN),
}


def main() -> None:
    result = Result(
        "table_1",
        "CIPS-3D is better than pi-GAN and than the 2D CIPS in FID and KID (Table 1, Fig. 8)",
    )
    found = table(ROWS, (*DISTANCES, *FIGURES))
    medians = found["medians"]
    holds = all(
        medians["cips-3d"][key] < medians[row][key]
        for row in ("pi-gan", "cips-2d")
        for key in DISTANCES
    )
    save_image(
        RESULTS / "table_1_sweeps.png",
        sweeps({row: found["records"][row] for row in ("cips-3d", "pi-gan")}),
    )
    result.write({"paper_fid_kid": PAPER} | found, holds, curves(ROWS), SEEDS)


if __name__ == "__main__":
    main()
