"""Options that several verbs share: parsing numbers that a user may get wrong, choosing a device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from tqdm import tqdm
from tyro.conf import arg

from cips3d.editing.subject import Subject
from cips3d.errors import UserError, first_line
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Styles

T = TypeVar("T")
#: An option whose default, None, stands for something that its help text names.
Derived = Annotated[T | None, arg(help_behavior_hint="")]
#: Fields of a configuration to change (see `cips3d.configuration.with_settings`).
Settings = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")]
#: Truncation of both codes, or of each.
Psi = Annotated[float | tuple[float, float], arg(metavar="PSI | SHAPE APPEARANCE")]
#: Truncation, by default `RANDOM_PSI` of random subjects, and none of a picture's.
SubjectPsi = Annotated[
    float | tuple[float, float] | None, arg(metavar="PSI | SHAPE APPEARANCE", help_behavior_hint="")
]
RANDOM_PSI = 0.7
#: Size of a picture; None stands for the model's training resolution.
Resolution = Annotated[
    int | tuple[int, int] | None, arg(metavar="SIDE | HEIGHT WIDTH", help_behavior_hint="")
]

#: Largest number of anything, largest side of a picture in pixels, and largest amount or angle, that an option takes.
_MOST, _MOST_SIDE, _MOST_AMOUNT = 2**31 - 1, 2**16, 1e6

#: A list of numbers that may be left out.
Numbers = Annotated[tuple[float, ...], arg(help_behavior_hint="")]


def check_finite(**options: float | tuple[float, ...] | None) -> None:
    """Raises UserError for the first option that is, or holds, NaN, infinity or a number too large to compute with."""
    for name, given in options.items():
        for value in _values(given):
            if not math.isfinite(value):
                raise UserError(
                    f"--{name.replace('_', '-')}: {value} is not a number; give a finite one"
                )
            if abs(value) > _MOST_AMOUNT:
                raise UserError(
                    f"--{name.replace('_', '-')}: {value:g}; give a number between -{_MOST_AMOUNT:g} and {_MOST_AMOUNT:g}"
                )


def at_least(least: int, **options: int | tuple[int, ...] | None) -> None:
    """Raises UserError for the first option that is, or holds, a number below `least`, or one that no machine could hold."""
    for name, given in options.items():
        most = _MOST_SIDE if name == "resolution" else _MOST
        for value in _values(given):
            if value < least:
                raise UserError(f"--{name.replace('_', '-')}: {value}; it must be at least {least}")
            if value > most:
                raise UserError(f"--{name.replace('_', '-')}: it must be at most {most}")


def positive(**options: float | None) -> None:
    """Raises UserError for the first option that is not above 0, or not finite even in other units."""
    for name, value in options.items():
        if value is not None and not 0 < value <= _MOST:
            raise UserError(
                f"--{name.replace('_', '-')}: {value:g}; give a positive number, at most {_MOST}"
            )


def _values(given: T | tuple[T, ...] | None) -> tuple[T, ...]:
    """The numbers of an option; none of one that is left out."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def check_seed(*seeds: int, option: str = "--seed") -> None:
    """Raises UserError for a seed that torch or numpy would not take."""
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"{option}: {seed}; give a number from 0 to {2**63 - 1}")


@contextlib.contextmanager
def share_bar(name: str) -> Iterator[Callable[..., None]]:
    """A progress bar, from the first second on, for a function that tells the share that is done, and perhaps of what."""
    layout = "{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
    with tqdm(total=1.0, desc=name, bar_format=layout, delay=1, mininterval=0.5) as bar:

        def show(share: float, step: str | None = None) -> None:
            if step is not None:
                bar.set_description_str(f"{name}, {step}", refresh=False)
            bar.update(share - bar.n)

        yield show


def chosen(
    generator: ImageGenerator,
    subject: Path | None,
    count: int,
    seed: int,
    psi: float | tuple[float, float] | None,
) -> Styles:
    """The subject of a file of `cips3d invert`; without one `count` random subjects.

    Args:
        psi: truncation; None for the default, which leaves a file's subject as it is.

    Raises:
        UserError: if the file cannot be read or is a subject of another model.
    """
    if subject is None:
        return generator.map(
            generator.sample_latents(count, seed), RANDOM_PSI if psi is None else psi
        )
    styles = Subject.load(subject, generator).styles
    return styles if psi is None else generator.truncate(styles, psi)


def to_device(generator: ImageGenerator, device: str) -> ImageGenerator:
    """The generator on the named device; "auto" takes the fastest there is."""
    if device == "auto":
        found = torch.accelerator.current_accelerator(
            check_available=True
        )  # else what torch was built for
        device = "cpu" if found is None else found.type
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return generator.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device}: {first_line(error)}; try cpu or auto") from None
