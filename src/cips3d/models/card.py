"""The model card: what a model is, in Markdown, with the front matter that the hub reads.

It says what the generator's configuration, its training record and its figures say. What is not
known is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from pydantic import ConfigDict

from cips3d.configuration import read_json
from cips3d.errors import UserError

if TYPE_CHECKING:
    from cips3d.models.protocol import ImageGenerator

#: Tells a card that may be replaced from one that somebody wrote.
MARK = "<!-- Written by cips3d, which replaces it; delete this line to keep your own text. -->"
#: For the hub: what the model does, and with what it is found.
TASK, TAGS = "unconditional-image-generation", ("3d-aware-gan", "nerf", "image-generation")
_PAPER = "[CIPS-3D](https://arxiv.org/abs/2110.09788)"


@dataclass(frozen=True)
class Figures:
    """What `cips3d eval MODEL --json-file FILE` found."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    values: dict[str, float | None]
    """by name; None where there is nothing to measure"""
    table: list[str]
    """lines with units and meanings"""
    record: dict[str, Any] = field(default_factory=dict)
    """what the values depend on"""

    @classmethod
    def read(cls, path: str | Path) -> Figures:
        """Those in a file; raises UserError if there are none."""
        try:
            return read_json(cls, Path(path))
        except UserError as error:
            remedy = "give a file that cips3d eval MODEL --json-file FILE wrote"
            raise UserError(f"{str(error).partition('; ')[0]}; {remedy}") from None


def card(
    generator: ImageGenerator,
    name: str | None = None,
    *,
    discriminators: bool = False,
    figures: Figures | None = None,
    license: str | None = None,
) -> str:
    """The model card.

    Args:
        name: what `cips3d.load` finds the model by.
        discriminators: whether they are stored with it.
        license: of the weights, as the hub abbreviates it, such as "mit".
    """
    networks, record = generator.networks, generator.record
    where = name or "user/model"
    title = Path(name or "Image generator").name
    meta = ModelCardData(
        library_name="cips3d", license=license, pipeline_tag=TASK, tags=[*TAGS],
        model_name=None if figures is None else title,
        eval_results=None if figures is None else _results(figures),
    )  # fmt: skip
    what = "3D-aware image generator" if generator.has_density else "image generator"
    size = f"{sum(p.numel() for p in generator.parameters()):,}"
    dims = {"shape": networks.shape_dim, "appearance": networks.appearance_dim}
    codes = " and ".join(f"{dim} numbers for {part}" for part, dim in dims.items() if dim)
    also = " The file contains the discriminators it was trained against too." * discriminators
    parts = [
        f"---\n{meta.to_yaml()}\n---\n{MARK}\n\n# {title}",
        f"A {what} ({networks.architecture}) of the Python package cips3d, which implements "
        f"{_PAPER}. It was trained up to {generator.config.resolution}² pixels and has {size} "
        f"parameters. A subject has a code of {codes}.{also}",
        "## How to use it",
        f'```python\nimport cips3d\n\nG = cips3d.load("{where}")\n'
        "camera = G.config.poses.at(yaw=0.3, pitch=0.0)  # radians\n"
        "out = G.render(G.sample_latents(4, seed=0), camera, resolution=256)\n"
        "out.image  # (4, 3, 256, 256) in [-1, 1]\n```",
    ]
    if record is not None and (rows := record.rows()):
        line = rows.pop("command", None)
        table = "\n".join(f"| {key} | {text} |" for key, text in rows.items())
        parts += ["## Training", f"| | |\n|---|---|\n{table}"]
        parts += [] if line is None else [f"```bash\n{line}\n```"]
    if figures is not None:
        parts += ["## Figures", _measured(figures), "\n".join(["```text", *figures.table, "```"])]
    parts += ["## Limits", _limits(generator), "## Licence", _licence(license)]
    return "\n\n".join(parts) + "\n"


def _results(figures: Figures) -> list[EvalResult]:
    """The distances to the dataset, for the hub's tables."""
    dataset = _dataset(figures)
    names = figures.record.get("fidelity", {}).get("real_images", {})
    found = {name: figures.values.get(name) for name in names}
    return [
        EvalResult(TASK, dataset, dataset, name, round(value, 4))
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    ]


def _dataset(figures: Figures) -> str:
    name = str(figures.record.get("dataset", {}).get("name", "unknown"))
    return Path(name).name


def _measured(figures: Figures) -> str:
    record = figures.record
    words = {"count": "subjects", "psi": "ψ", "seed": "seed"}
    how = [f"{word} {record[key]}" for key, word in words.items() if key in record]
    inside = f" ({', '.join(how)})" if how else ""
    return f"`cips3d eval` with the dataset {_dataset(figures)}{inside}."


def _limits(generator: ImageGenerator) -> str:
    """What the configuration says about where the model ends."""
    poses = generator.config.poses
    text = (
        "The model draws what its training images show, with their gaps and biases. Images can "
        f"have any size; details finer than those at {generator.config.resolution}² were not seen "
        "in training. "
    )
    if not generator.has_density:
        return f"{text}There is no geometry: all cameras give the same image."
    yaw, yaw_std, pitch, pitch_std = (
        f"{math.degrees(angle):.0f}°"
        for angle in (poses.yaw_mean, poses.yaw_std, poses.pitch_mean, poses.pitch_std)
    )
    return (
        f"{text}The camera prior has yaw {yaw} ± {yaw_std} and pitch {pitch} ± {pitch_std}; views "
        "far outside it are guesses."
    )


def _licence(license: str | None) -> str:
    code = "The code, cips3d, has the MIT License."
    if license is None:
        return (
            f"{code} None is stated for the weights; that of the training images may restrict it."
        )
    return f"{code} The weights have the licence {license}."
