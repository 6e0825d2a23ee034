"""Fig. 5 and 6, Section 3.3: are heads mirrored without the auxiliary discriminator? Two rows of Table 2, three seeds each.

An hour and a half on two cores, of which `table_2` then needs no more. Rows of symmetry_sweeps.png: three seeds without the
auxiliary discriminator, three with it; one subject each, not picked, yaws from −24° to 24°.
"""

from __future__ import annotations

from common import RESULTS, SEEDS, Result, clearly_mirrored, sweeps, table
from table_2 import FIGURES
from table_2 import ROWS as TABLE

from cips3d.export.media import save_image

ROWS = {"without": TABLE["learned"], "with": TABLE["full"]}


def main() -> None:
    claim = "Without the auxiliary discriminator heads are mirror-symmetric, with it they are not (Section 3.3, Fig. 5)"
    result = Result("symmetry", claim)
    found = table(ROWS, FIGURES)
    save_image(RESULTS / "symmetry_sweeps.png", sweeps(found["records"]))
    scores = (found["runs"][name]["two_hypothesis_score"] for name in ROWS)
    result.write(found, clearly_mirrored(*scores), seeds=SEEDS)


if __name__ == "__main__":
    main()
