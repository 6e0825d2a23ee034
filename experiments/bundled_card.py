"""Writes the bundled model's card: python experiments/bundled_card.py, in seconds.

The figures are those of `make experiments NAME=bundled`.
"""

from __future__ import annotations

import json
from pathlib import Path

from common import RESULTS

import cips3d
from cips3d import pretrained
from cips3d.metrics.evaluation import Evaluation
from cips3d.models.card import Figures, card
from cips3d.provenance import TrainingRecord

OUT = Path(cips3d.__file__).parent / "bundled" / "README.md"
#: Of a model file without a record of its own.
RECORD = TrainingRecord(
    data="heads, rendered by cips3d",
    data_images=50_000,
    command="cips3d train RUN-DIR --preset heads-64 --set sample_kimg=30",
    images=242_000,
    minutes=87,
    machines=("2 cores",),
    seed=0,
)


def text() -> str:
    """The card."""
    generator = pretrained.load("heads")
    generator.record = generator.record or RECORD
    found = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))["values"]
    evaluation = Evaluation(found["values"], found["true_heads"], found["record"])
    figures = Figures(**{key: evaluation.as_json()[key] for key in ("values", "table", "record")})
    judged = pretrained.load_discriminators("heads") is not None
    return card(generator, "heads", discriminators=judged, figures=figures, license="mit")


def main() -> None:
    OUT.write_text(text(), encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
