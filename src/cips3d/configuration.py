"""Configuration dataclasses: ranges declared as types, one clear line per error, JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, ConfigDict, TypeAdapter, ValidationError

from cips3d.errors import UserError

T = TypeVar("T")

#: Largest count that an option accepts, and largest amount or angle.
MOST, MOST_AMOUNT = 2**31 - 1, 1e6

# Ranges, for fields of configurations and for options of the command line.
Finite = Annotated[float, AllowInfNan(False)]
Amount = Annotated[float, AllowInfNan(False), Ge(-MOST_AMOUNT), Le(MOST_AMOUNT)]
Positive = Annotated[float, AllowInfNan(False), Gt(0)]
NonNegative = Annotated[float, AllowInfNan(False), Ge(0)]
Share = Annotated[float, AllowInfNan(False), Ge(0), Le(1)]
Decay = Annotated[float, AllowInfNan(False), Ge(0), Lt(1)]
FieldOfView = Annotated[float, AllowInfNan(False), Gt(0), Lt(180)]
Count = Annotated[int, Ge(1), Le(MOST)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
#: Layers of a network, octaves of an encoding; more are a typo.
Layers = Annotated[int, Ge(1), Le(100)]
Octaves = Annotated[int, Ge(0), Le(100)]

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Configuration:
    """Base of every configuration dataclass: validates its fields on construction.

    Numbers may be numpy's or torch's. Unknown fields are an error.

    Raises:
        UserError: for a value of the wrong type or out of range, and from `check`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    #: What an error line calls the configuration.
    label: ClassVar[str] = "configuration"

    def __post_init__(self) -> None:
        for name, adapter in _adapters(type(self)).items():
            value = _validated(adapter, getattr(self, name), f"{self.label}: {name}")
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raises UserError where fields do not go together."""


def validated(kind: Any, value: Any, name: str) -> Any:
    """`value` as `kind`, a type with its range; raises UserError, which calls it `name`."""
    return _validated(TypeAdapter(kind), value, name)


def _validated(adapter: TypeAdapter, value: Any, name: str, separator: str = ".") -> Any:
    try:
        return adapter.validate_python(_plain(value))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except ValidationError as error:
        raise UserError(_line(name, error, separator)) from None


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter]:
    """Validators of a dataclass's fields."""
    hints = get_type_hints(kind, include_extras=True)
    assert dataclasses.is_dataclass(kind)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(kind)}


def _plain(value: Any) -> Any:
    """Python's numbers for those of numpy and torch, also in lists and mappings.

    Raises:
        UserError: for numbers that JSON can hold and tensors cannot.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"a number of {value.bit_length()} bits is too large; give one below 2^63")
    if isinstance(value, float) and 1e100 < abs(value) < math.inf:
        raise UserError(f"{value:g} is too large; give a number below 1e100")
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _line(source: str, error: ValidationError, separator: str) -> str:
    """The first fault of a validation, as a line for the user."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
    name = f"{source}{separator}{place}" if place else source
    given = f"{first['input']!r:.80}"
    context = first.get("ctx", {})
    for key, words in _BOUNDS.items():
        if key in context:
            return f"{name} is {given}; it must be {words} {context[key]}"
    match first["type"]:
        case "finite_number":
            return f"{name} is {given}; give a finite number"
        case "literal_error":
            return f"{name} is {given}; choose {context['expected']}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{name}: unknown setting; see a run's config.json for the names"
        case "missing" | "missing_argument":
            return f"{name}: is missing"
        case "tuple_type" | "list_type":
            return f'{name} is {given}; give a list in JSON, such as ["a", "b"]'
    return f"{name}: {first['msg'][0].lower()}{first['msg'][1:]} (got {given})"


# ---------------------------------------------------------------- JSON
def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as dictionaries, lists, numbers and strings that JSON can hold."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_dict(kind: type[T], values: Any, source: str) -> T:
    """A configuration from the dictionary that `to_dict` made; missing fields take their defaults.

    Args:
        source: the file or option that the values come from, for the error line.

    Raises:
        UserError: for unknown fields, wrong types and values outside their range.
    """
    return _validated(TypeAdapter(kind), values, source, ": ")


def read_json(kind: type[T], path: Path) -> T:
    """A configuration from a JSON file; raises UserError if it cannot be read or does not fit."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}); restore it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} contains no configuration; restore it")
    return from_dict(kind, values, str(path))


# ---------------------------------------------------------------- single settings
def with_settings(config: T, settings: Sequence[str], source: str) -> T:
    """A configuration with single values changed.

    Args:
        settings: such as "seed=1", "stages.1.batch=8" or "stages.*.augment=0.5": a path of field
            names and list indices (from 0, or * for all), then a value in JSON. Anything that is
            not JSON is text.
        source: the option that the settings come from, for the error line.

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
        places: list[Any] = [values]
        for parent in parents:
            places = [entry for place in places for entry in _entries(place, parent)]
            if not places:
                raise _unknown(path, parent, values, source)
            if not all(isinstance(place, (dict, list)) for place in places):
                raise UserError(f"{source}: {path}: {parent} has no fields of its own")
        for place in places:
            if isinstance(place, list):
                raise UserError(f"{source}: {path} is an entry of a list; name one of its fields")
            is_free = all(key.isdecimal() for key in place)  # new, or keyed by resolution
            if name not in place and not is_free:
                raise _unknown(path, name, values, source)
            place[name] = value
    return from_dict(type(config), values, source)


def _entries(place: Any, name: str) -> list[Any]:
    """The entries called `name` in a dictionary or list."""
    if isinstance(place, dict) and name in place:
        if place[name] is None:  # an optional part, which the setting adds
            place[name] = {}
        return [place[name]]
    if isinstance(place, list):
        return place if name == "*" else [x for i, x in enumerate(place) if str(i) == name]
    return []


def _unknown(path: str, name: str, whole: Any, source: str) -> UserError:
    """The error for a setting that does not exist, with the nearest one that does."""
    from difflib import get_close_matches

    known = list(dict.fromkeys(_paths(whole)))
    same_name = [other for other in known if other.rpartition(".")[2] == name and other != path]
    near = same_name[:1] or get_close_matches(path, known, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else "a run's config.json lists the names"
    return UserError(f"{source}: there is no {name}; {hint}")


def _paths(place: Any, prefix: str = "") -> Iterator[str]:
    """All settings, with * for the entries of lists."""
    if isinstance(place, dict):
        for key, entry in place.items():
            yield f"{prefix}{key}"
            yield from _paths(entry, f"{prefix}{key}.")
    elif isinstance(place, list):
        for entry in place:
            yield from _paths(entry, f"{prefix}*.")
