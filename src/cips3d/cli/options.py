"""Options that several verbs share: parsing numbers that a user may get wrong, choosing a device."""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

import torch
from tyro.conf import arg

from cips3d.errors import UserError
from cips3d.models.generator import Generator

T = TypeVar("T")
#: An option whose default, None, stands for something that its help text names.
Derived = Annotated[T | None, arg(help_behavior_hint="")]
#: Fields of a configuration to change (see `cips3d.configuration.with_settings`).
Settings = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")]

#: A list of numbers that may be left out.
Numbers = Annotated[tuple[float, ...], arg(help_behavior_hint="")]


def check_finite(**options: float) -> None:
    """Raises UserError for the first option that is NaN or infinite."""
    for name, value in options.items():
        if not math.isfinite(value):
            raise UserError(f"--{name.replace('_', '-')}: {value} is not a number; give a finite one")


def at_least(least: int, **options: int) -> None:
    """Raises UserError for the first option below `least`."""
    for name, value in options.items():
        if value < least:
            raise UserError(f"--{name.replace('_', '-')}: {value}; it must be at least {least}")


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that torch or numpy would not take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed: {seed}; give a number from 0 to {2**63 - 1}")


def to_device(generator: Generator, device: str) -> Generator:
    """The generator on the named device; "auto" takes the fastest there is."""
    if device == "auto":
        found = torch.accelerator.current_accelerator()
        device = "cpu" if found is None else found.type
    try:
        return generator.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}; try cpu or auto") from None
