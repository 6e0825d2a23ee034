"""`cips3d info` and `import-official`: what a model costs and has learned, and its conversion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cips3d
from cips3d.cli.options import Derived, InputFile, Side, is_preset, no_such, written_as
from cips3d.cli.output import finished
from cips3d.errors import UserError
from cips3d.model_paths import BUNDLED, SUFFIX, check_replaces_nothing, local_file

if TYPE_CHECKING:
    from cips3d.models.protocol import ImageGenerator


def info(
    what: str,
    /,
    resolution: Derived[Side] = None,
    geometry: bool = False,
    card: Derived[Annotated[Path, written_as(".md")]] = None,
    figures: Derived[InputFile] = None,
    license: Derived[str] = None,
) -> None:
    """Print the size and cost of a preset or a model.

    Shows parameters, floating-point operations and activations per image, and how a model was
    trained, if its file says so. `cips3d plan` estimates memory and time of training.

    Args:
        what: A preset, or a model ("heads", a file, a folder or a hub id).
        resolution: Side of an image in pixels. Default: the training resolution.
        geometry: Also measure the geometry, for models of the embedded heads.
        card: Also write the model card to this file (.md), as in a model's folder on the hub.
        figures: For the card: a file that `cips3d eval MODEL --json-file FILE` wrote.
        license: For the card: the license of the weights, as the hub abbreviates it, such as mit.

    Examples:
        cips3d info ffhq-256
        cips3d info heads --geometry --card heads.md
    """
    is_model, lines = not is_preset(what), list[str]()
    if is_model and "/" not in what and what not in BUNDLED and not Path(what).exists():
        raise no_such(what, f"a model ({', '.join(BUNDLED)}, a file or a folder)")
    if is_model:
        local_file(what)
    elif geometry:
        raise UserError(f"--geometry: {what} is a preset and has no geometry; give a model")
    elif card is not None:
        raise UserError(f"--card: {what} is a preset, and cards are of models; give a model")
    if card is not None:
        check_replaces_nothing(card, what, figures)
    for option, value in {"--figures": figures, "--license": license}.items():
        if value is not None and card is None:
            raise UserError(f"{option}: belongs on a card; add --card FILE, or leave it out")

    from cips3d import pretrained
    from cips3d.models.card import Figures
    from cips3d.models.cost import discriminator_cost, generator_cost
    from cips3d.training.presets import preset

    found = None if figures is None else Figures.read(figures)
    if is_model:
        generator = pretrained.load(what)
        side = resolution or generator.config.resolution
        costs = {"generator": generator_cost(generator.config, side)}
        trained = {} if generator.record is None else generator.record.rows()
        lines += [f"{name:<24}{text}" for name, text in trained.items()]
        lines += geometry_lines(generator) if geometry else []
    else:
        config = preset(what)
        side = resolution or config.stages[-1].resolution
        costs = {
            "generator": generator_cost(config.generator, side),
            "discriminator": discriminator_cost(config.discriminator, side),
        }
        if side in config.aux_discriminator.channels:  # the largest sides have none
            costs["auxiliary"] = discriminator_cost(config.aux_discriminator, side)
    title = f"{what} at {side}²"
    print(f"{title:<24}{'parameters':>14}{'GFLOP/image':>16}{'MiB kept/image':>18}")
    for name, cost in costs.items():
        flops, kept = cost.flops / 1e9, cost.saved_bytes / 2**20
        print(f"{name:<24}{cost.parameters:>14,}{flops:>16.3f}{kept:>18.1f}")
    print(*lines, sep="\n", end="\n" * bool(lines))
    then = f"cips3d {'eval' if is_model else 'plan'} {what}"
    if card is None:
        print(f"try next: {then}")
    else:
        judged = pretrained.load_discriminators(what) is not None
        pretrained.write_card(
            generator, card, what, discriminators=judged, figures=found, license=license
        )
        finished(card, then)


def geometry_lines(generator: ImageGenerator) -> list[str]:
    """One line per geometry figure, for a model of the embedded heads."""
    from cips3d.heads import SyntheticHeads
    from cips3d.metrics.evaluation import geometry_table

    heads = SyntheticHeads(resolution=generator.config.resolution)
    return geometry_table(generator, heads).lines()


def import_official(
    checkpoint: InputFile,
    out: Annotated[Path, written_as(SUFFIX)],
    /,
    resolution: Side = 256,
    discriminators: Derived[InputFile] = None,
) -> None:
    """Convert an official checkpoint to a model.

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

    from cips3d import official
    from cips3d.models.cost import parameter_count

    generator = official.import_generator(official.read(checkpoint), str(checkpoint), resolution)
    found = None if discriminators is None else official.import_discriminators(discriminators)
    cips3d.save(generator, out, found)
    networks = generator.networks
    size = f"{networks.inr_blocks} blocks × {networks.inr_width}"
    print(f"INR of {size}, {parameter_count(generator):,} parameters")
    finished(out, f"cips3d render {out} views.png")
