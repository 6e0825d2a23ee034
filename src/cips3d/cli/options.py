"""Options that several verbs share, with their ranges. Imports nothing heavy."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from itertools import count as counting
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le
from pydantic import AfterValidator
from tyro.conf import arg

from cips3d.configuration import MOST, Amount, Count, Positive, Seed, validated
from cips3d.errors import UserError
from cips3d.files import check_writable, suffix_of
from cips3d.model_paths import good_seeds, local_file

T = TypeVar("T")
#: Suffixes of images.
IMAGES = (".png", ".jpg", ".jpeg")
#: Presets of `cips3d.training.presets`, which takes a second to import.
PRESET_NAMES = (
    "heads-32", "heads-64", "ffhq-64", "ffhq-128", "ffhq-256", "ffhq-512", "ffhq-1024",
    "ffhq-512-paper", "afhq-cats-256", "table-2-direction", "table-2-fixed", "table-2-learned",
    "table-2-full", "heads-32-pi-gan", "heads-32-cips-2d",
)  # fmt: skip


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    return path


def _model(name: str) -> str:
    local_file(name)
    return name


def _dataset(name: str) -> str:
    if name not in ("heads", "heads-cartoon") and not Path(name).exists():
        raise UserError(f"{name}: no such folder or zip; check the path")
    return name


def is_preset(name: str) -> bool:
    """Whether there is a preset of that name; a program may add its own to those imported."""
    loaded = getattr(sys.modules.get("cips3d.training.presets"), "PRESETS", ())
    return name in PRESET_NAMES or name in loaded


def _preset(name: str) -> str:
    if not is_preset(name):
        near = get_close_matches(name, PRESET_NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESET_NAMES)}"
        raise UserError(f"--preset: there is no preset {name}; {hint}")
    return name


def check_output(path: Path, *suffixes: str) -> Path:
    """The path, if its suffix is one of these (none: any) and a file can be written there."""
    if suffixes:
        suffix_of(path, *suffixes)
    check_writable(path)
    return path


def written_as(*suffixes: str) -> AfterValidator:
    """Refuses an output path with another suffix, or where no file can be written."""
    return AfterValidator(lambda path: check_output(path, *suffixes))


def no_such(name: str, others: str) -> UserError:
    """The error for a name that is neither a preset nor one of the others."""
    return UserError(f"{name}: is neither a preset ({', '.join(PRESET_NAMES)}) nor {others}")


#: An option that defaults to None, which stands for something its help text describes.
Derived = Annotated[T | None, arg(help_behavior_hint="")]
Model = Annotated[
    str,
    AfterValidator(_model),
    arg(help='"heads" (bundled), a .safetensors file, a model folder or a Hugging Face hub id.'),
]
Device = Annotated[str, arg(help="cpu, cuda, mps, …; auto takes the fastest.")]
Data = Annotated[str, AfterValidator(_dataset)]
Preset = Annotated[str, AfterValidator(_preset)]
InputFile = Annotated[Path, AfterValidator(_existing)]
BlockIndex = Annotated[int, Ge(0), Le(100)]
Side = Annotated[int, Ge(1), Le(2**16)]
#: Side of a cell of a sheet.
CellSide = Annotated[
    Derived[Side],
    arg(help="Pixels per image. Default: 256, or the training resolution if that is larger."),
]
#: Fields of a configuration to change, see `cips3d.configuration.with_settings`.
Settings = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")]
#: A positive number that can be computed with in other units too.
Limited = Annotated[Positive, Le(MOST)]
Psi = Annotated[Derived[Amount | tuple[Amount, Amount]], arg(metavar="PSI | SHAPE APPEARANCE")]
Size = Annotated[Derived[Side | tuple[Side, Side]], arg(metavar="SIDE | HEIGHT WIDTH")]
Kinds = Annotated[
    tuple[Literal["image", "nerf", "depth"], ...],
    arg(metavar="image|nerf|depth ...", help_behavior_hint=""),
]


def unwrapped(docstring: str) -> str:
    """A docstring with each paragraph and each argument's text on one line, as tyro wants it."""
    return re.sub(r"(?<=\S)\n(?=\S)|\n {8,}", " ", inspect.cleandoc(docstring))


class _Group:
    """Base of groups of options, whose help texts are the attributes of their docstrings."""

    def __init_subclass__(cls) -> None:
        cls.__doc__ = unwrapped(cls.__doc__ or "")


@dataclass(frozen=True)
class RandomSubjects(_Group):
    """Which subjects are drawn.

    Attributes:
        seed: Seed of the first subject; further subjects take the seeds that follow. Default:
            curated seeds of the bundled model, 0 and up for other models.
        psi: Truncation: 1 is full variety, 0 the mean subject. Two numbers set shape and
            appearance separately. Default: 0.7.
    """

    seed: Derived[Seed] = None
    psi: Psi = None

    def seeds(self, model: str, count: int) -> list[int]:
        """The seeds of `count` subjects."""
        if self.seed is not None:
            return [(self.seed + i) % 2**63 for i in range(count)]
        curated = good_seeds(model)
        others = (seed for seed in counting() if seed not in curated)
        return curated[:count] + list(islice(others, max(0, count - len(curated))))

    @property
    def truncation(self) -> float | tuple[float, float]:
        """ψ of random subjects."""
        from cips3d.models.types import DEFAULT_PSI

        return DEFAULT_PSI if self.psi is None else self.psi


@dataclass(frozen=True)
class Subjects(RandomSubjects):
    """Which subjects are shown: random ones, or one found in an image.

    Attributes:
        psi: Truncation: 1 is full variety, 0 the mean subject. Two numbers set shape and
            appearance separately. Default: 0.7, and 1 with --subject.
        subject: Subject file written by `cips3d invert` or `mix`, instead of random subjects.
    """

    subject: Derived[InputFile] = None


@dataclass(frozen=True)
class ImageSize(_Group):
    """Size of the images, and how they are computed.

    Attributes:
        resolution: Pixels per image, any size. Default: 256, or the training resolution if that
            is larger.
        supersample: Rays along each side of a pixel; 2 gives smoother edges and takes four times
            as long.
        adaptive: Render fewer pixels: smooth parts are interpolated (docs/rendering.md).
        precision: Precision of the implicit network. auto is float32 by the fastest route that is
            as accurate. bfloat16 is faster still where the processor has instructions for it, and
            float32 elsewhere.
    """

    resolution: Size = None
    supersample: Count = 1
    adaptive: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class RunOptions(_Group):
    """How the run is carried out.

    Attributes:
        batch: Images per step over all processes. Default: the preset's.
        set: Other settings of the configuration, such as loss=relativistic or stages.0.batch=8
            (stages.* sets all stages). docs/training.md explains the usual ones; config.json of a
            run lists all.
        processes: Processes on this machine's CPU that share each batch. Default: one per core if
            every batch divides and each process gets at least 4 images; one on a machine with a
            GPU.
    """

    batch: Derived[Count] = None
    set: Settings = ()
    processes: Derived[Count] = None


def check_options(kind: Any, values: Mapping[str, Any]) -> None:
    """Raises UserError for the first option of a verb or a group that is out of range."""
    hints = get_type_hints(kind, include_extras=True)
    for name, value in values.items():
        if is_dataclass(value):
            check_options(type(value), vars(value))
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            _check(hints[name], entry, f"--{name.replace('_', '-')}")


def _check(hint: Any, value: Any, name: str) -> None:
    """Validates a single value against the types in an annotation that are its own."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(base) in (Union, UnionType, tuple):
        for part in get_args(base):
            _check(part, value, name)
    elif isinstance(base, type) and isinstance(value, base):
        try:
            validated(hint, value, name)
        except UserError as error:
            if isinstance(value, (int, float)):
                raise
            # paths and names say what they are
            raise UserError(str(error).removeprefix(f"{name}: ")) from None
