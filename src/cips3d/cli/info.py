"""`cips3d info`: what a preset or a model costs, and what geometry a model has learned."""

from __future__ import annotations

from pathlib import Path

from cips3d.cli.options import PRESET_NAMES, Derived, Side, is_preset
from cips3d.errors import UserError
from cips3d.model_paths import BUNDLED, local_file


def info(what: str, /, resolution: Derived[Side] = None, geometry: bool = False) -> None:
    """Print the size and cost of a preset or a model.

    Shows parameters, floating-point operations and activations per image. `cips3d plan` estimates
    memory and time of training.

    Args:
        what: A preset, or a model ("heads", a file, a folder or a hub id).
        resolution: Side of an image in pixels. Default: the training resolution.
        geometry: Also measure the geometry, for models of the embedded heads.

    Examples:
        cips3d info ffhq-256
        cips3d info heads --geometry
    """
    if is_preset(what):
        if geometry:
            raise UserError(f"--geometry: {what} is a preset and has no geometry; give a model")
        from cips3d.cli.costs import preset_lines

        print("\n".join(preset_lines(what, resolution)))
        print(f"try next: cips3d plan {what}")
        return
    if "/" not in what and what not in BUNDLED and not Path(what).exists():
        raise UserError(
            f"{what}: is neither a preset ({', '.join(PRESET_NAMES)}) "
            f"nor a model ({', '.join(BUNDLED)}, a file or a folder)"
        )
    local_file(what)
    from cips3d.cli.costs import model_lines

    print("\n".join(model_lines(what, resolution, geometry)))
    print(f"try next: cips3d eval {what}")
