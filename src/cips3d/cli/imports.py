"""`cips3d import-official`: the authors' released checkpoints as one-file models."""

from __future__ import annotations

from pathlib import Path

from cips3d import official, pretrained
from cips3d.cli.options import Derived, at_least
from cips3d.errors import UserError
from cips3d.files import check_writable
from cips3d.models.cost import parameter_count


def import_official(
    checkpoint: Path, out: Path, /, resolution: int = 256, discriminators: Derived[Path] = None
) -> None:
    """Convert a generator checkpoint of the authors' code (a .pth state_dict) into a one-file model.

    The .pth is a pickle; it is read without running anything in it, and refused if it holds more than tensors.

    Args:
        checkpoint: the authors' file, such as G_ema_model.pth.
        out: the .safetensors model to write.
        resolution: the resolution that it was trained at, pixels (the file does not tell).
        discriminators: the authors' file with both of them, such as D_model.pth; written beside OUT, where finetune, invert
            and view find them.
    """
    at_least(1, resolution=resolution)
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out}: the name must end in .safetensors")
    pretrained.check_replaces_nothing(out, checkpoint, discriminators)
    check_writable(out)
    generator = official.import_generator(official.read(checkpoint), str(checkpoint), resolution)
    judges = None if discriminators is None else official.import_discriminators(discriminators)
    pretrained.save(generator, out, judges)
    config = generator.networks
    print(
        f"{out}: {parameter_count(generator):,} parameters, INR {config.inr_blocks} blocks × {config.inr_width}"
    )
