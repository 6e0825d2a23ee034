"""`cips3d import-official`: converts the authors' released checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cips3d.cli.options import Derived, InputFile, Side, written_as
from cips3d.cli.output import finished
from cips3d.files import check_writable
from cips3d.model_paths import SUFFIX, check_replaces_nothing


def import_official(
    checkpoint: InputFile,
    out: Annotated[Path, written_as(SUFFIX)],
    /,
    resolution: Side = 256,
    discriminators: Derived[InputFile] = None,
) -> None:
    """Convert one of the authors' checkpoints to a model.

    The .pth file is a pickle. Only tensors are read from it; nothing in it is run.

    Args:
        checkpoint: The authors' generator checkpoint, such as G_ema_model.pth.
        out: Model to write (.safetensors).
        resolution: Training resolution in pixels, which the checkpoint does not record.
        discriminators: The authors' checkpoint of both discriminators, such as D_model.pth. They
            are stored in OUT, for finetune, invert and view.

    Examples:
        cips3d import-official G_ema.pth model.safetensors
        cips3d import-official G_ema.pth model.safetensors --discriminators D.pth
    """
    check_replaces_nothing(out, checkpoint, discriminators)
    check_writable(out)

    from cips3d import official, pretrained
    from cips3d.models.cost import parameter_count

    generator = official.import_generator(official.read(checkpoint), str(checkpoint), resolution)
    found = None if discriminators is None else official.import_discriminators(discriminators)
    pretrained.save(generator, out, found)
    networks = generator.networks
    print(f"INR of {networks.inr_blocks} blocks × {networks.inr_width}, ", end="")
    print(f"{parameter_count(generator):,} parameters")
    finished(out, f"cips3d render {out} views.png")
