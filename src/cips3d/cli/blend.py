"""`cips3d blend` and `cips3d mix`: stylised subjects (paper Section 4.5), and subjects with two styles."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import (
    RANDOM_PSI,
    Derived,
    Numbers,
    SubjectPsi,
    at_least,
    check_finite,
    check_seed,
    chosen,
    to_device,
)
from cips3d.editing.blending import interpolate, mix_styles, swap_layers
from cips3d.editing.sheets import amounts_sheet, mixing_sheet, views_sheet
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras
from cips3d.files import atomic_path, check_writable
from cips3d.pretrained import check_replaces_nothing

#: Degrees to either side, where nothing else is asked for.
_TURN = 25.0


def blend(
    base: str,
    other: str,
    out: Path,
    /,
    amount: Derived[float] = None,
    from_block: Derived[int] = None,
    weights: Numbers = (),
    count: int = 4,
    seed: int = 0,
    subject: Derived[Path] = None,
    psi: SubjectPsi = None,
    resolution: Derived[int] = None,
    yaw: Derived[float] = None,
    views: int = 5,
    device: str = "auto",
) -> None:
    """Blend a model with one that `cips3d finetune` made of it, and save the model or show it.

    With one of --amount, --from-block and --weights, a .png shows subjects of the blended model from several yaws, and a
    .safetensors holds it. Without them a .png shows the way from one model to the other.

    Args:
        base: a model (as for `cips3d sample`), whose shapes and poses stay.
        other: a model with the same NeRF.
        out: a .png or .safetensors to write.
        amount: of the second model in all blocks of the implicit network: 0 is the first model, 1 the second.
        from_block: the blocks from this one on are the second model's: its colours, the first one's structure.
        weights: the amount for each block.
        count: subjects: a row each on the way between the models, three each of a blended model (first, blended, second).
        seed: of the latents.
        subject: the subject of a picture, a file of `cips3d invert`, in place of random ones.
        psi: truncation: 1 is the full variety, 0 the mean subject. Two numbers: of the shape, of the appearance.
            Default: 0.7, and 1 with --subject.
        resolution: side of a picture in pixels. Default: the model's.
        yaw: how far to turn to either side, degrees; on the way between the models, and with a single view, where the camera
            stands. Default: 25, and 0 where it stands.
        views: columns.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    ways = {"--amount": amount, "--from-block": from_block, "--weights": weights or None}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: both say how to blend; give only one of them")
    suffix = out.suffix.lower()
    if suffix not in (".png", ".safetensors"):
        raise UserError(
            f"{out}: the name must end in .png (a sheet of pictures) or .safetensors (the blended model)"
        )
    if suffix == ".safetensors" and not given:
        raise UserError(
            f"{out}: a blended model needs an amount; give one of --amount, --from-block and --weights"
        )
    at_least(1, count=count, views=views, resolution=resolution)
    check_finite(psi=psi, yaw=yaw, amount=amount, weights=weights)
    check_seed(seed)
    check_replaces_nothing(out, base, other, subject)
    check_writable(out)
    first, second = (to_device(pretrained.load(name), device) for name in (base, other))
    side = resolution or first.config.resolution
    codes = (
        first.sample_latents(count, seed)
        if subject is None
        else chosen(first, subject, count, seed, psi)
    )
    psi = RANDOM_PSI if psi is None else psi
    if not given:
        save_image(out, amounts_sheet(first, second, codes, views, side, psi=psi, yaw=yaw or 0.0))
        print(out)
        return
    if from_block is not None:
        blended = swap_layers(first, second, from_block)
    else:
        blended = interpolate(first, second, weights or (amount or 0.0))
    if suffix == ".safetensors":
        pretrained.save(blended, out, pretrained.load_discriminators(base))
    else:
        turn = (_TURN if views > 1 else 0.0) if yaw is None else yaw
        save_image(out, views_sheet([first, blended, second], codes, turn, views, side, psi=psi))
    print(out)


def mix(
    model: str,
    out: Path,
    /,
    from_block: int = 2,
    rows: int = 4,
    columns: int = 4,
    seed: int = 0,
    subject: Derived[Path] = None,
    style: Derived[Path] = None,
    psi: SubjectPsi = None,
    resolution: Derived[int] = None,
    yaw: float = 0.0,
    device: str = "auto",
) -> None:
    """Mix styles: every subject on the left with the appearance of every one at the top, in some of the blocks.

    Args:
        model: as for `cips3d sample`.
        out: the .png to write; or a .safetensors for the first on the left with the first at the top, as a subject for the
            option --subject of render, mesh and view.
        from_block: first block of the implicit network that takes the appearance of the subject at the top.
        rows: subjects that give shape, and appearance in the blocks before.
        columns: subjects that give appearance.
        seed: of the latents.
        subject: the subject of a picture, a file of `cips3d invert`, in place of those on the left.
        style: the subject of a picture in place of those at the top.
        psi: truncation: 1 is the full variety, 0 the mean subject. Two numbers: of the shape, of the appearance.
            Default: 0.7, and 1 for pictures' subjects.
        resolution: side of a picture in pixels. Default: the model's.
        yaw: where the camera stands, degrees.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    at_least(1, rows=rows, columns=columns, resolution=resolution)
    check_finite(psi=psi, yaw=yaw)
    check_seed(seed)
    if out.suffix.lower() not in (".png", ".safetensors"):
        raise UserError(
            f"{out}: the name must end in .png (a sheet of pictures) or .safetensors (a subject)"
        )
    check_replaces_nothing(out, model, subject, style)
    check_writable(out)
    generator = to_device(pretrained.load(model), device)
    latents = generator.sample_latents(rows + columns, seed)
    left = latents[:rows] if subject is None else chosen(generator, subject, rows, seed, psi)
    top = latents[rows:] if style is None else chosen(generator, style, columns, seed, psi)
    psi = RANDOM_PSI if psi is None else psi
    if out.suffix.lower() == ".png":
        side = resolution or generator.config.resolution
        save_image(out, mixing_sheet(generator, left, top, from_block, side, psi=psi, yaw=yaw))
    else:
        camera = orbit_cameras(generator, [yaw])
        Subject(mix_styles(generator, left[0], top[0], from_block, psi), camera).save(
            out, generator
        )
    print(out)
