"""The option --predictor: an object of the user's that predicts pose and identity from images."""

from __future__ import annotations

import os
import pkgutil
import sys
from typing import Any

from torch import Tensor

from cips3d.errors import UserError, first_line
from cips3d.heads.network import load_head_network
from cips3d.metrics.consistency import Predictor


def named_predictor(name: str | None) -> Predictor | None:
    """The object that a user names, "heads" for the embedded heads' network.

    Raises:
        UserError: if there is no such object. Its own errors become UserErrors that name it.
    """
    if name is None:
        return None
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


class _Named:
    """A predictor whose errors name it."""

    def __init__(self, name: str, predictor: Predictor) -> None:
        self.name, self.predictor = name, predictor

    def __str__(self) -> str:
        return self.name

    def pose(self, images: Tensor) -> Any:  # `predicted_pose` checks it
        return self._called("pose", images)

    def identity(self, images: Tensor) -> Any:
        return self._called("identity", images)

    def _called(self, method: str, images: Tensor) -> Any:
        try:
            return getattr(self.predictor, method)(images)
        except Exception as error:  # the user's code may raise anything
            raise UserError(
                f"--predictor {self.name}: {method} raised {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
