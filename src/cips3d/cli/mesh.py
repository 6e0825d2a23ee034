"""`cips3d mesh`: an invented subject as a triangle mesh for other programs."""

from __future__ import annotations

from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import (
    Derived,
    SubjectPsi,
    check_finite,
    check_seed,
    chosen,
    positive,
    to_device,
)
from cips3d.errors import UserError
from cips3d.files import check_writable


def mesh(
    model: str,
    out: Path,
    /,
    seed: int = 0,
    subject: Derived[Path] = None,
    psi: SubjectPsi = None,
    resolution: int = 256,
    level: Derived[float] = None,
    no_colors: bool = False,
    all_parts: bool = False,
    device: str = "auto",
) -> None:
    """Write the surface of an invented subject as a triangle mesh with vertex colours.

    It is closed, in world units (a head of the embedded dataset is about 0.14 high), y up, its face to +z.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        out: what to write; its ending decides: .ply, .obj or .glb.
        seed: of the latents.
        subject: the subject of a picture, a file of `cips3d invert`, in place of a random one.
        psi: truncation: 1 is the full variety, 0 the mean subject. Two numbers: of the shape, of the appearance.
            Default: 0.7, and 1 with --subject.
        resolution: points of the density grid along its longest side; 512 takes four times as long as 256, and 0.5 GB for the
            grid.
        level: density of the surface. Default: found, so that the surface is where the pictures show it.
        no_colors: leave out the vertex colours, which take about a third of the time.
        all_parts: keep what does not hang together with the largest part.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    # not above: trimesh, scikit-image and scipy take a second to import, which no other verb shall wait for
    from cips3d.export.meshes import FEWEST, MOST, check_suffix, extract_mesh, save_mesh

    check_suffix(out)
    check_seed(seed)
    check_finite(psi=psi)
    positive(level=level)
    if not FEWEST <= resolution <= MOST:
        raise UserError(f"--resolution: {resolution}; give {FEWEST} to {MOST}")
    check_writable(out)
    generator = to_device(pretrained.load(model), device)
    styles = chosen(generator, subject, 1, seed, psi)
    found = extract_mesh(
        generator, styles, resolution, level=level, colors=not no_colors, largest=not all_parts
    )
    save_mesh(out, found)
    size = " × ".join(f"{side:.3f}" for side in found.extents)
    count = f"{len(found.vertices):,} vertices, {len(found.faces):,} faces"
    print(f"{count}; {size} world units; level {found.metadata['level']:.4g}")
    print(
        f"watertight: {'yes' if found.is_watertight else 'no; some edges do not join exactly two faces'}"
    )
    print(out)
