"""From options to what the library takes: a model on its device, codes, a predictor."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from cips3d import pretrained
from cips3d.cli.options import Subjects
from cips3d.editing.subject import Subject
from cips3d.errors import UserError, first_line
from cips3d.export.sheets import DEFAULT_SIDE
from cips3d.heads.network import load_head_network
from cips3d.metrics.consistency import Predictor
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import Latents, Styles

T = TypeVar("T")


def load_model(name: str, device: str) -> ImageGenerator:
    """`cips3d.load` onto the named device; "auto" takes the fastest."""
    generator = pretrained.load(name)
    if device == "auto":  # not what torch was built for, but what is there
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None else found.type
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return generator.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device}: {first_line(error)}; try cpu or auto") from None


def latents_of(generator: ImageGenerator, seeds: Sequence[int]) -> Latents:
    """The first subject of each seed."""
    return Latents.cat([generator.sample_latents(1, seed) for seed in seeds])


def codes_of(
    generator: ImageGenerator, options: Subjects, seeds: Sequence[int]
) -> Latents | Styles:
    """A file's subject as styles, truncated only if ψ is given; without one `latents_of`."""
    if options.subject is None:
        return latents_of(generator, seeds)
    styles = Subject.load(options.subject, generator).styles
    return styles if options.psi is None else generator.truncate(styles, options.psi)


def styles_of(generator: ImageGenerator, options: Subjects, seeds: Sequence[int]) -> Styles:
    """`codes_of`, mapped and truncated."""
    codes = codes_of(generator, options, seeds)
    return codes if isinstance(codes, Styles) else generator.map(codes, options.truncation)


def size_of(generator: ImageGenerator, given: T | None) -> T | int:
    """The given resolution of an image, or the default for this generator."""
    own = generator.config.resolution
    if given is not None:
        return given
    return max(DEFAULT_SIDE, own) if isinstance(generator, RayGenerator) else own


def named_predictor(name: str) -> Predictor:
    """The object that a user names, or "heads" for the embedded heads' network.

    Raises:
        UserError: if there is no such object. Its own errors become UserErrors that name it.
    """
    if name == "heads":
        return _Named(name, load_head_network())
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"--predictor {name}: {first_line(error)}; give module:object of an installed module"
        ) from None
    if not isinstance(found, Predictor) or isinstance(found, type):
        raise UserError(f"--predictor {name}: has no methods pose and identity")
    return _Named(name, found)


@dataclass(frozen=True)
class _Named:
    """A predictor whose errors name it."""

    name: str
    predictor: Predictor

    def __str__(self) -> str:
        return self.name

    def pose(self, images: Tensor) -> Any:  # `predicted_pose` checks it
        return self._call("pose", images)

    def identity(self, images: Tensor) -> Any:
        return self._call("identity", images)

    @property
    def landmarks(self) -> Callable[[Tensor], Any]:
        """Missing where the predictor has none: only those of faces do."""
        self.predictor.landmarks  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
        return partial(self._call, "landmarks")

    def _call(self, method: str, images: Tensor) -> Any:
        try:
            return getattr(self.predictor, method)(images)
        except Exception as error:  # the user's code may raise anything
            what = f"{method} raised {type(error).__name__}: {first_line(error)}"
            raise UserError(f"--predictor {self.name}: {what}") from error
