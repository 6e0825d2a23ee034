"""A subject as a file: the styles and camera of an image, to render, edit and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cips3d.camera import Camera
from cips3d.errors import UserError
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import Styles
from cips3d.storage import read_tensors, weights_digest, write_tensors

_KEY = "cips3d-subject"
_TENSORS = ("shape", "appearance", "camera")


@dataclass(frozen=True)
class Subject:
    """One subject of a model, and the camera of its image.

    Its styles are a batch of one, with one w_a for all blocks of the implicit network, or one each.
    """

    styles: Styles
    camera: Camera

    def save(self, path: str | Path, generator: ImageGenerator) -> None:
        """Writes a safetensors file for `generator` and all models with its radiance field."""
        shape, appearance = self.styles.shape, self.styles.appearance
        shared = isinstance(appearance, Tensor)
        stacked = appearance[None] if shared else torch.stack(list(appearance))
        tensors = {"shape": shape, "appearance": stacked, "camera": self.camera.to_label()}
        blocks = None if shared else len(stacked)
        write_tensors(path, tensors, _KEY, {"blocks": blocks, "nerf": _digest(generator)})

    @staticmethod
    def load(path: str | Path, generator: ImageGenerator) -> Subject:
        """Reads what `save` wrote, onto the generator's device.

        Raises:
            UserError: if it cannot be read, or belongs to a model with another radiance field.
        """
        entry, tensors = read_tensors(Path(path), _KEY, "a subject of cips3d invert")

        def damaged(reason: object) -> UserError:
            return UserError(f"{path} is damaged: {reason}; write it again with cips3d invert")

        if set(tensors) != set(_TENSORS) or not isinstance(entry, dict):
            raise damaged("it should contain shape, appearance and camera")
        shape, appearance, label = (tensors[name].to(generator.like) for name in _TENSORS)
        widths = generator.shape_mean.shape, generator.appearance_mean.shape
        blocks = entry.get("blocks")
        fits = shape.shape == (1, *widths[0]) and appearance.shape == (blocks or 1, 1, *widths[1])
        if not fits or blocks not in (None, generator.style_blocks):
            raise UserError(
                f"{path} is a subject of a model with other networks; give its own model"
            )
        if entry.get("nerf") != _digest(generator):
            raise UserError(
                f"{path} is a subject of another model; give its own, or one with the same NeRF "
                "(from cips3d finetune, blend or invert)"
            )
        if label.shape != (1, 25):
            raise damaged("its camera does not have 25 numbers")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (shape, appearance)):
            raise damaged("it contains NaN or infinity")
        styles = Styles(shape, appearance[0] if blocks is None else list(appearance))
        try:
            return Subject(styles, Camera.from_label(label))
        except UserError as error:
            raise damaged(error) from None


def _digest(generator: ImageGenerator) -> str:
    """A hash of the radiance field's weights."""
    field = generator.get_submodule("nerf").state_dict() if generator.has_density else {}
    return weights_digest({name: tensor.float() for name, tensor in field.items()})
