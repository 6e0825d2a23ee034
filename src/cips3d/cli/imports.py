"""`cips3d import-official`: the authors' released checkpoints as one-file models."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
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
    stale = pretrained.discriminators_file(out)
    if discriminators is None and stale.exists():
        raise UserError(
            f"{stale}: would be taken for this model's discriminators; remove it, or give another name than {out}"
        )
    check_writable(out)
    official = pretrained.read_official(checkpoint)
    generator = pretrained.import_official_generator(official, str(checkpoint), resolution)
    judges = (
        None
        if discriminators is None
        else pretrained.import_official_discriminators(discriminators)
    )
    pretrained.save(generator, out)
    if judges is not None:
        pretrained.save_discriminators(judges, out)
    config = generator.config
    print(
        f"{out}: {parameter_count(generator):,} parameters, INR {config.inr_blocks} blocks × {config.inr_width}"
    )
