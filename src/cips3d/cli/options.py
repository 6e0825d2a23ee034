"""Options that several verbs share: parsing numbers that a user may get wrong, choosing a device."""

from __future__ import annotations

import math

import torch

from cips3d.errors import UserError
from cips3d.models.generator import Generator


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


def to_device(generator: Generator, device: str) -> Generator:
    """The generator on the named device; "auto" takes the fastest there is."""
    if device == "auto":
        found = torch.accelerator.current_accelerator()
        device = "cpu" if found is None else found.type
    try:
        return generator.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}; try cpu or auto") from None
