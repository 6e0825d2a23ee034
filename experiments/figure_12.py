"""Fig. 12: how many rays need gradients? n_r from 8² to 32² at 32², and checkpointed gradients.

At 16² the same share of the rays has gradients (4² to 16²); checkpointing uses four chunks at 32²
and one at 16². One seed each with Table 2's full configuration, an hour on two cores. That
configuration's own three seeds show the spread between seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from common import DISTANCE, KERNEL_DISTANCE, SEEDS, Result, staged, table
from matplotlib.figure import Figure
from table_2 import ROWS as TABLE_2

from cips3d.training.recipe import TrainConfig

SIDES, CHUNK = (8, 16, 24), 256


def partial(side: int) -> Callable[[int], TrainConfig]:
    """A run in which `side`² of the 32² rays have gradients."""

    def config(seed: int) -> TrainConfig:
        base = TABLE_2["full"](seed)
        stages = [
            replace(stage, gradients="partial", gradient_rays=(side * stage.resolution // 32) ** 2)
            for stage in base.stages
        ]
        return replace(base, stages=tuple(stages))

    return config


def checkpointed(seed: int) -> TrainConfig:
    """A run in which all rays have gradients, recomputed chunk by chunk."""
    return staged(TABLE_2["full"](seed), gradients="checkpointed", chunk=CHUNK)


ROWS: dict[str, Callable[[int], TrainConfig]] = {
    **{f"{side}²": partial(side) for side in SIDES},
    "32²": TABLE_2["full"],
    "checkpointed": checkpointed,
}


def main() -> None:
    claim = (
        "Too few gradient rays hurt quality; three quarters of the rays along each side match all "
        "of them (Fig. 12)"
    )
    result = Result("figure_12", claim)
    found = table(ROWS, (DISTANCE, KERNEL_DISTANCE), seeds=(0,))
    last = {row: values[DISTANCE] for row, values in found["medians"].items()}
    all_rays = table({"32²": ROWS["32²"]}, (DISTANCE,), SEEDS)["runs"]["32²"][DISTANCE]
    holds = last["8²"] > max(all_rays) >= last["24²"]
    result.write(found | {"all_rays": all_rays}, holds, drawn(last, all_rays), seeds=(0,))


def drawn(last: Mapping[str, float], all_rays: Sequence[float]) -> Figure:
    """The final distance over the side of the square of gradient rays."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    sides = (*SIDES, 32)
    axes.plot(sides, [last[f"{side}²"] for side in sides], "o-", label="seed 0")
    spread = {"markersize": 14, "color": "C0", "label": "all rays, three seeds"}
    axes.plot([32] * len(all_rays), all_rays, "_", **spread)
    axes.plot(32, last["checkpointed"], "x", color="C1", label="all rays, checkpointed")
    label = "side of the square of gradient rays, out of 32"
    axes.set(xlabel=label, ylabel=DISTANCE, yscale="log", xticks=sides)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
