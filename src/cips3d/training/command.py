"""The command that carries out a configuration, for the record of a model's training.

It is computed from the configuration, not remembered: a run may have been resumed, extended, or
started from Python.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cips3d.configuration import to_dict
from cips3d.data import EMBEDDED
from cips3d.errors import UserError
from cips3d.training.presets import PRESETS, transfer
from cips3d.training.recipe import Stage, TrainConfig, with_minutes

#: Fields that concern the machine, not the model.
_LOCAL = ("wandb", "inception_weights", "workers", "checkpoint_kimg")


def command(config: TrainConfig) -> str:
    """The shortest `cips3d train` or `finetune` with this configuration.

    The run's folder is called RUN-DIR; files of images are named without their folder.
    """
    bases = [(["train", "RUN-DIR", "--preset", name], make()) for name, make in PRESETS.items()]
    lines = [shlex.join(["cips3d", *words, *_options(base, config)]) for words, base in bases]
    if config.start is not None and any(stage.frozen for stage in config.stages):
        lines += _finetune(config, config.start)
    return min(lines, key=len)


def shown_name(path: str) -> str:
    """A dataset's or model's name without the folders that mean nothing elsewhere."""
    if not Path(path).exists() or path in EMBEDDED:
        return path  # an embedded or bundled one, or a hub id
    name = Path(path).name
    return f"{Path(path).absolute().parent.name}/{name}" if name == "model.safetensors" else name


def _options(base: TrainConfig, config: TrainConfig) -> list[str]:
    """The options that turn a preset's configuration into this one."""
    words = [] if config.data == base.data else ["--data", shown_name(config.data)]
    words += [] if config.seed == base.seed else ["--seed", str(config.seed)]
    minutes = sum(stage.minutes or 0.0 for stage in config.stages)
    if minutes > 0:
        timed = with_minutes(base, round(minutes, 9))
        if [s.minutes for s in timed.stages] == [s.minutes for s in config.stages]:
            base, words = timed, [*words, "--minutes", f"{minutes:g}"]
    return words + _settings(base, config)


def _finetune(config: TrainConfig, start: str) -> Iterator[str]:
    """The `cips3d finetune` with this configuration, if it is that of a transfer."""
    first, *others = config.stages
    try:
        base = transfer(config.generator, start, config.data, None, first.kimg)
    except UserError:
        return
    if others or base.stages[0].frozen != first.frozen:
        return
    # what the verb takes from the discriminators of the model
    base = replace(
        base, discriminator=config.discriminator, aux_discriminator=config.aux_discriminator,
        objective=config.objective,
        stages=(replace(base.stages[0], warm_up_kimg=first.warm_up_kimg),),
    )  # fmt: skip
    words = ["finetune", shown_name(start), "RUN-DIR", "--data", shown_name(config.data)]
    words += ["--kimg", f"{first.kimg:g}"]
    words += [] if config.seed == base.seed else ["--seed", str(config.seed)]
    yield shlex.join(["cips3d", *words, *_settings(base, config)])


def _settings(base: TrainConfig, config: TrainConfig) -> list[str]:
    """`--set` with all other fields that differ."""
    same = {name: getattr(config, name) for name in (*_LOCAL, "data", "seed")}
    start = None if config.start is None else shown_name(config.start)
    values = (to_dict(replace(base, **same)), to_dict(replace(config, start=start)))
    found = [f"{path}={text}" for path, text in _differences(*values)]
    return ["--set", *found] if found else []


def _differences(base: Any, ours: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The settings of `cips3d.configuration.with_settings` that turn one value into the other."""
    if isinstance(base, dict) and isinstance(ours, dict) and base.keys() == ours.keys():
        for key in base:
            yield from _differences(base[key], ours[key], f"{path}.{key}".lstrip("."))
    elif _stages(base) and _stages(ours) and len(base) == len(ours):
        for index, pair in enumerate(zip(base, ours, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    elif _stages(ours):
        usual = to_dict(Stage(4, kimg=1.0))
        del usual["resolution"], usual["kimg"]  # which have no defaults
        unusual = [{k: v for k, v in e.items() if k not in usual or v != usual[k]} for e in ours]
        yield path, json.dumps(unusual)
    elif base != ours:
        yield path, ours if isinstance(ours, str) else json.dumps(ours)


def _stages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
