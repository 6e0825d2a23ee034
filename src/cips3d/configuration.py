"""Configuration dataclasses to JSON and back, checked by pydantic: unknown names and wrong types end in one clear line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cips3d.errors import UserError

T = TypeVar("T")


class Configuration:
    """Base of every configuration dataclass: a field that it does not know is an error, not silently dropped."""

    __pydantic_config__ = ConfigDict(extra="forbid")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON-ready dictionaries, lists, numbers and strings."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], values: Any, source: str) -> T:
    """A configuration dataclass from the dictionary that `to_dict` made (missing fields take their defaults).

    Args:
        values: usually a dictionary; anything else that JSON holds is refused.
        source: what the user knows the values by (a file, an option), for the error line.

    Raises:
        UserError: for unknown fields, wrong types and values outside their range.
    """
    try:
        _refuse_long_numbers(values)
        return TypeAdapter(kind).validate_python(values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        remedy = (
            '; a list is JSON, such as ["a", "b"]'
            if first["type"] in ("tuple_type", "list_type")
            else ""
        )
        raise UserError(
            f"{source}: {where}: {first['msg']} (got {first['input']!r:.80}){remedy}"
        ) from None


def _refuse_long_numbers(values: Any) -> None:
    """Raises UserError for whole numbers that 64 bits do not hold, which JSON and Python allow and tensors do not, and for
    others that would be infinite in other units.
    """
    if isinstance(values, int) and not -(2**63) <= values < 2**63:
        raise UserError(f"a number of {values.bit_length()} bits is too large; give one below 2^63")
    if isinstance(values, float) and 1e100 < abs(values) < math.inf:
        raise UserError(f"{values:g} is too large; give a number below 1e100")
    for entry in (
        values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    ):
        _refuse_long_numbers(entry)


def check_range(
    config: Any,
    kind: str,
    names: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises UserError for the first field that is out of range: neither None nor a finite number within all bounds.

    Args:
        kind: what the user knows the configuration by, for the error line.
        names: of the fields, with spaces between them.
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not (least <= value <= most and above < value < below):
            told = [f"{words} {bound}" for words, bound in bounds.items() if abs(bound) < math.inf]
            told += [] if abs(value) < math.inf else ["finite"]
            raise UserError(f"{kind}: {name} is {value}; it must be {' and '.join(told)}")


def with_settings(config: T, settings: Sequence[str], source: str) -> T:
    """A configuration with single values changed.

    Args:
        settings: such as "loss=relativistic", "stages.1.batch=8" or "stages.*.augment=0.5": a path of field names, numbers of
            list entries (from 0) or * for all of them, and a value in JSON; what is no JSON is taken as text.
        source: what the user knows the settings by, for the error line.

    Raises:
        UserError: if a setting names nothing or its value does not fit.
    """
    values = to_dict(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"{source}: {setting} has no value; give NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, name = path.split(".")
        if not parents and name not in values and (nearby := _path_to(name, values)):
            raise UserError(f"{source}: there is no {name}, but {nearby}; give that")
        places: list[Any] = [values]
        for parent in parents:
            places = [
                inner for place in places for inner in _entries(place, parent, f"{source}: {path}")
            ]
        for place in places:
            if isinstance(place, list):
                raise UserError(
                    f"{source}: {path} names a whole entry of a list; name one of its fields"
                )
            place[name] = value
    return from_dict(type(config), values, source)


def _path_to(name: str, place: Any) -> str | None:
    """Where a field of that name is farther down, all entries of a list alike."""
    inner = (
        place.items()
        if isinstance(place, dict)
        else [("*", entry) for entry in place]
        if isinstance(place, list)
        else ()
    )
    for key, entry in inner:
        if isinstance(entry, dict) and name in entry:
            return f"{key}.{name}"
        if (found := _path_to(name, entry)) is not None:
            return f"{key}.{found}"
    return None


def _entries(place: Any, name: str, source: str) -> list[Any]:
    """The dictionaries and lists called `name` in a dictionary or list."""
    if isinstance(place, dict) and name in place:
        found = [place[name]]
    elif isinstance(place, list) and name == "*":
        found = list(place)
    elif isinstance(place, list) and name.isdecimal() and int(name) < len(place):
        found = [place[int(name)]]
    else:
        raise UserError(
            f"{source}: there is no {name}; see the configuration in a run's config.json for the names"
        )
    if not all(isinstance(entry, (dict, list)) for entry in found):
        raise UserError(f"{source}: {name} holds no further fields")
    return found


def read_json(kind: type[T], path: Path) -> T:
    """A configuration dataclass from a JSON file.

    Raises:
        UserError: if the file cannot be read, is not JSON, or does not fit the dataclass.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}); restore it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a configuration; restore it")
    return from_dict(kind, values, str(path))
