"""Fig. 12: how many rays need gradients? n_r of 8² to 32² at 32², and all of them by checkpoints of four chunks.

As large a share of the rays at 16² (4² to 16² of them, one chunk). One seed each, with Table 2's whole configuration, an hour
on two cores; that configuration's own three seeds tell how much a seed does.
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
    """A run in which `side`² of the 32² rays carry gradients."""

    def config(seed: int) -> TrainConfig:
        base = TABLE_2["full"](seed)
        stages = [
            replace(stage, gradients="partial", gradient_rays=(side * stage.resolution // 32) ** 2)
            for stage in base.stages
        ]
        return replace(base, stages=tuple(stages))

    return config


ROWS: dict[str, Callable[[int], TrainConfig]] = {f"{side}²": partial(side) for side in SIDES} | {
    "32²": TABLE_2["full"],
    "checkpointed": lambda seed: staged(
        TABLE_2["full"](seed), gradients="checkpointed", chunk=CHUNK
    ),
}


def main() -> None:
    claim = "Too few rays with gradients harm; three quarters along each side are as good as all (Fig. 12)"
    result = Result("figure_12", claim)
    found = table(ROWS, (DISTANCE, KERNEL_DISTANCE), seeds=(0,))
    last = {row: values[DISTANCE] for row, values in found["medians"].items()}
    all_rays = table({"32²": ROWS["32²"]}, (DISTANCE,), SEEDS)["runs"]["32²"][DISTANCE]
    holds = last["8²"] > max(all_rays) >= last["24²"]
    result.write(found | {"all_rays": all_rays}, holds, drawn(last, all_rays), seeds=(0,))


def drawn(last: Mapping[str, float], all_rays: Sequence[float]) -> Figure:
    """The distance at the end over the side of the square of rays with gradients."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([*SIDES, 32], [last[f"{side}²"] for side in (*SIDES, 32)], "o-", label="seed 0")
    axes.plot(
        [32] * len(all_rays),
        all_rays,
        "_",
        markersize=14,
        color="C0",
        label="all rays, three seeds",
    )
    axes.plot(32, last["checkpointed"], "x", color="C1", label="all rays, checkpointed")
    axes.set(
        xlabel="side of the rays with gradients, of 32",
        ylabel=DISTANCE,
        yscale="log",
        xticks=[*SIDES, 32],
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
