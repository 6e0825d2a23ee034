"""`cips3d blend` and `cips3d mix`: blended models (paper Section 4.5) and mixed styles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from cips3d.cli.options import (
    IMAGES,
    Amount,
    BlockIndex,
    Count,
    Degrees,
    Derived,
    Device,
    InputFile,
    Model,
    Side,
    Subjects,
    written_as,
)
from cips3d.cli.output import finished
from cips3d.errors import UserError
from cips3d.files import check_writable
from cips3d.model_paths import SUFFIX, check_replaces_nothing

#: Degrees to either side where no yaw is given.
_TURN = 25.0
Written = Annotated[Path, written_as(*IMAGES, SUFFIX)]


def blend(
    base: Model,
    other: Model,
    out: Written,
    /,
    subjects: OmitArgPrefixes[Subjects],
    amount: Derived[Amount] = None,
    from_block: Derived[BlockIndex] = None,
    weights: Annotated[tuple[Amount, ...], arg(help_behavior_hint="")] = (),
    count: Count = 4,
    resolution: Derived[Side] = None,
    yaw: Derived[Degrees] = None,
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
        resolution: Pixels per image. Default: 256, or the training resolution if that is larger.
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
    check_writable(out)

    from cips3d import pretrained
    from cips3d.cli.loading import codes_of, load_model, side_of
    from cips3d.editing.blending import interpolate, swap_layers
    from cips3d.editing.comparisons import amounts_sheet, views_sheet
    from cips3d.export.media import save_image

    first, second = (load_model(name, device) for name in (base, other))
    codes = codes_of(first, subjects, base, count)
    side, psi = side_of(first, resolution), subjects.truncation
    if not given:
        save_image(out, amounts_sheet(first, second, codes, views, side, psi=psi, yaw=yaw or 0.0))
        finished(out, f"cips3d blend {base} {other} half.safetensors --amount 0.5")
        return
    if from_block is not None:
        blended = swap_layers(first, second, from_block)
    else:
        blended = interpolate(first, second, weights or (amount or 0.0))
    if is_model:
        pretrained.save(blended, out, pretrained.load_discriminators(base))
        finished(out, f"cips3d render {out} turn.mp4")
        return
    turn = (_TURN if views > 1 else 0.0) if yaw is None else yaw
    labels = ("base", "blended", "other")
    models = [first, blended, second]
    save_image(out, views_sheet(models, codes, turn, views, side, psi=psi, labels=labels))
    finished(out, f"the same command with {out.stem}.safetensors, which saves the blended model")


def mix(
    model: Model,
    out: Written,
    /,
    subjects: OmitArgPrefixes[Subjects],
    from_block: BlockIndex = 2,
    rows: Count = 4,
    columns: Count = 4,
    style: Derived[InputFile] = None,
    resolution: Derived[Side] = None,
    yaw: Degrees = 0.0,
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
        resolution: Pixels per image. Default: 256, or the training resolution if that is larger.
        yaw: Camera yaw in degrees.

    Examples:
        cips3d mix heads mixed.png --from-block 2
        cips3d mix heads mixed.safetensors --from-block 0 --seed 4
    """
    check_replaces_nothing(out, model, subjects.subject, style)
    check_writable(out)

    from cips3d.cli.loading import load_model, random_latents, side_of, subject_styles
    from cips3d.editing.blending import mix_styles
    from cips3d.editing.comparisons import mixing_sheet
    from cips3d.editing.subject import Subject
    from cips3d.export.media import save_image
    from cips3d.export.sheets import orbit_cameras

    generator = load_model(model, device)
    latents = random_latents(generator, subjects, model, rows + columns)
    left, top = (
        part if path is None else subject_styles(generator, path, subjects.psi)
        for part, path in ((latents[:rows], subjects.subject), (latents[rows:], style))
    )
    psi = subjects.truncation
    if out.suffix.lower() != SUFFIX:
        side = side_of(generator, resolution)
        save_image(out, mixing_sheet(generator, left, top, from_block, side, psi=psi, yaw=yaw))
        finished(out, f"cips3d mix {model} mixed.safetensors, which saves a mixed subject")
        return
    styles = mix_styles(generator, left[0], top[0], from_block, psi)
    Subject(styles, orbit_cameras(generator, [yaw])).save(out, generator)
    finished(out, f"cips3d render {model} turn.mp4 --subject {out}")
