"""A subject as a file: the styles and the camera of a picture, so that whatever renders, edits or exports can take it."""

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


@dataclass(frozen=True)
class Subject:
    """One subject of a model.

    Attributes:
        styles: w_s and w_a (one for all blocks of the implicit network, or one for each), a batch of one.
        camera: that its picture was taken with.
    """

    styles: Styles
    camera: Camera

    def save(self, path: str | Path, generator: ImageGenerator) -> None:
        """Writes a safetensors file.

        Args:
            generator: whose subject it is; other models with its radiance field can take it too.

        Raises:
            UserError: if it cannot be written.
        """
        appearance = self.styles.appearance
        stacked = (
            appearance[None] if isinstance(appearance, Tensor) else torch.stack(list(appearance))
        )
        tensors = {
            "shape": self.styles.shape,
            "appearance": stacked,
            "camera": self.camera.to_label(),
        }
        blocks = None if isinstance(appearance, Tensor) else len(stacked)
        write_tensors(path, tensors, _KEY, {"blocks": blocks, "nerf": _digest(generator)})

    @staticmethod
    def load(path: str | Path, generator: ImageGenerator) -> Subject:
        """Reads what `save` wrote, onto the generator's device.

        Raises:
            UserError: if it cannot be read, or is a subject of a model with other networks or another radiance field.
        """
        entry, tensors = read_tensors(Path(path), _KEY, "a subject of cips3d invert")
        if set(tensors) != {"shape", "appearance", "camera"} or not isinstance(entry, dict):
            raise UserError(
                f"{path} is damaged: it should hold shape, appearance and camera; write it again with cips3d invert"
            )
        shape, appearance, label = (
            tensors[name].to(generator.shape_mean) for name in ("shape", "appearance", "camera")
        )
        widths = generator.shape_mean.shape, generator.appearance_mean.shape
        blocks = entry.get("blocks")
        fits = shape.shape == (1, *widths[0]) and appearance.shape == (blocks or 1, 1, *widths[1])
        if not fits or blocks not in (None, generator.style_blocks):
            raise UserError(
                f"{path} is a subject of a model with other networks; give the model that it was found in"
            )
        if entry.get("nerf") != _digest(generator):
            raise UserError(
                f"{path} is a subject of another model; give the one that it was found in, or one with the same NeRF (of "
                "cips3d finetune, blend or invert)"
            )
        if label.shape != (1, 25):
            raise UserError(
                f"{path} is damaged: its camera is no label of 25 numbers; write it again with cips3d invert"
            )
        styles = Styles(shape, appearance[0] if blocks is None else list(appearance))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (shape, appearance)):
            raise UserError(
                f"{path} is damaged: it holds NaN or infinity; write it again with cips3d invert"
            )
        try:
            return Subject(styles, Camera.from_label(label))
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from None


def _digest(generator: ImageGenerator) -> str:
    """Of the radiance field's weights."""
    field = generator.get_submodule("nerf").state_dict() if generator.has_density else {}
    return weights_digest({name: tensor.float() for name, tensor in field.items()})
