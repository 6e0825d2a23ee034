"""`cips3d blend` and `cips3d mix`: blended models (paper Section 4.5) and mixed styles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

import cips3d
from cips3d.cli.options import (
    IMAGES,
    BlockIndex,
    CellSide,
    Derived,
    Device,
    InputFile,
    Model,
    Subjects,
    written_as,
)
from cips3d.cli.output import finished
from cips3d.configuration import Amount, Count
from cips3d.errors import UserError
from cips3d.model_paths import SUFFIX, check_replaces_nothing

#: Amount to either side where no yaw is given.
_TURN = 25.0
ImageOrModel = Annotated[Path, written_as(*IMAGES, SUFFIX)]


def blend(
    base: Model,
    other: Model,
    out: ImageOrModel,
    /,
    subjects: Subjects,
    amount: Derived[Amount] = None,
    from_block: Derived[BlockIndex] = None,
    weights: Annotated[tuple[Amount, ...], arg(help_behavior_hint="")] = (),
    count: Count = 4,
    resolution: CellSide = None,
    yaw: Derived[Amount] = None,
    views: Count = 5,
    device: Device = "auto",
) -> None:
    """Blend a model with one that was fine-tuned from it.

    Shapes and poses stay those of BASE. With --amount, --from-block or --weights, an image shows
    subjects of the blended model from several yaws, and a .safetensors file stores it. Without
    them an image shows a morph from one model to the other.

    Args:
        other: A model with the same NeRF, usually from `cips3d finetune`.
        out: Image (.png or .jpg) or model (.safetensors) to write.
        amount: Share of OTHER in all blocks of the implicit network: 0 is BASE, 1 is OTHER.
        from_block: First block that comes from OTHER: its colours on the structure of BASE.
        weights: Share of OTHER in each block.
        count: Number of subjects: one row each in a morph, three each for a blended model
            (base, blended, other).
        yaw: Degrees to either side; in a morph, and with a single view, the camera's yaw.
            Default: 25, and 0 for the camera's yaw.
        views: Columns.

    Examples:
        cips3d blend heads runs/cartoon/model.safetensors morph.png
        cips3d blend heads runs/cartoon/model.safetensors half.safetensors --amount 0.5
    """
    options = {"--amount": amount, "--from-block": from_block, "--weights": weights or None}
    given = [name for name, value in options.items() if value is not None]
    is_model = out.suffix.lower() == SUFFIX
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give only one of them")
    if is_model and not given:
        raise UserError(f"{out}: a blended model needs --amount, --from-block or --weights")
    check_replaces_nothing(out, base, other, subjects.subject)

    from cips3d.cli.loading import codes_of, load_model, size_of
    from cips3d.editing import comparisons
    from cips3d.export.media import save_image
    from cips3d.pretrained import load_discriminators

    first, second = (load_model(name, device) for name in (base, other))
    codes = codes_of(first, subjects, subjects.seeds(base, count))
    side, psi = size_of(first, resolution), subjects.truncation
    if not given:
        models = (first, second)
        sheet = comparisons.amounts_sheet(*models, codes, views, side, psi=psi, yaw=yaw or 0.0)
        save_image(out, sheet)
        finished(out, f"cips3d blend {base} {other} half.safetensors --amount 0.5")
        return
    if from_block is not None:
        blended = cips3d.swap_layers(first, second, from_block)
    else:
        blended = cips3d.interpolate(first, second, weights or (amount or 0.0))
    if is_model:
        cips3d.save(blended, out, load_discriminators(base))
        finished(out, f"cips3d render {out} turn.mp4")
    else:
        models, turn = [first, blended, second], yaw or 0.0
        if yaw is None and views > 1:
            turn = _TURN
        labels = ("base", "blended", "other")
        sheet = comparisons.views_sheet(models, codes, turn, views, side, psi=psi, labels=labels)
        save_image(out, sheet)
        then = f"the same command with {out.stem}.safetensors, which saves the blended model"
        finished(out, then)


def mix(
    model: Model,
    out: ImageOrModel,
    /,
    subjects: Subjects,
    from_block: BlockIndex = 2,
    rows: Count = 4,
    columns: Count = 4,
    style: Derived[InputFile] = None,
    resolution: CellSide = None,
    yaw: Amount = 0.0,
    device: Device = "auto",
) -> None:
    """Mix the styles of subjects.

    Each cell has the shape of the subject at its left. From one block on, it has the appearance
    of the subject above.

    Args:
        out: Image (.png or .jpg) to write; or a subject (.safetensors), the first on the left
            mixed with the first at the top, for --subject of render, mesh and view.
        from_block: First block of the implicit network with the upper subject's appearance.
        rows: Subjects on the left.
        columns: Subjects at the top.
        style: Subject file for the top, instead of random subjects.
        yaw: Camera yaw in degrees.

    Examples:
        cips3d mix heads mixed.png --from-block 2
        cips3d mix heads mixed.safetensors --from-block 0 --seed 4
    """
    check_replaces_nothing(out, model, subjects.subject, style)

    from cips3d.cli.loading import codes_of, load_model, size_of
    from cips3d.editing import comparisons, subject
    from cips3d.export.media import save_image
    from cips3d.export.sheets import orbit_cameras

    generator = load_model(model, device)
    seeds, psi = subjects.seeds(model, rows + columns), subjects.truncation
    left = codes_of(generator, subjects, seeds[:rows])
    top = codes_of(generator, replace(subjects, subject=style), seeds[rows:])
    if out.suffix.lower() != SUFFIX:
        side = size_of(generator, resolution)
        sheet = comparisons.mixing_sheet(generator, left, top, from_block, side, psi=psi, yaw=yaw)
        save_image(out, sheet)
        finished(out, f"cips3d mix {model} mixed.safetensors, which saves a mixed subject")
        return
    styles = cips3d.mix_styles(generator, left[0], top[0], from_block, psi)
    subject.Subject(styles, orbit_cameras(generator, [yaw])).save(out, generator)
    finished(out, f"cips3d render {model} turn.mp4 --subject {out}")
