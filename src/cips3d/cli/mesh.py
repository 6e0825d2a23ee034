"""`cips3d mesh`: a subject as a triangle mesh for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from tyro.conf import OmitArgPrefixes

from cips3d.cli.options import Derived, Device, Limited, Model, Subjects, written_as
from cips3d.cli.output import finished
from cips3d.files import check_writable


def mesh(
    model: Model,
    out: Annotated[Path, written_as(".ply", ".obj", ".glb")],
    /,
    subjects: OmitArgPrefixes[Subjects],
    resolution: Annotated[int, Ge(8), Le(1024)] = 256,
    level: Derived[Limited] = None,
    no_colors: bool = False,
    all_parts: bool = False,
    device: Device = "auto",
) -> None:
    """Extract a subject as a triangle mesh with vertex colours.

    The mesh is closed, in world units (an embedded head is about 0.14 high), y up, facing +z.

    Args:
        out: File to write: .ply, .obj or .glb.
        resolution: Points of the density grid along its longest side. 512 takes four times as
            long as 256, and 0.5 GB for the grid.
        level: Density of the surface. Default: estimated, so the surface is where images show it.
        no_colors: Leave out vertex colours, which take about a third of the time.
        all_parts: Keep parts that are not connected to the largest one.

    Examples:
        cips3d mesh heads head.glb
        cips3d mesh found/model.safetensors face.ply --subject found/subject.safetensors
    """
    check_writable(out)

    from cips3d.cli.loading import load_model, styles_of
    from cips3d.export.meshes import extract_mesh, save_mesh

    generator = load_model(model, device)
    styles = styles_of(generator, subjects, model, 1)
    found = extract_mesh(
        generator, styles, resolution, level=level, colors=not no_colors, largest=not all_parts
    )
    save_mesh(out, found)
    size = " × ".join(f"{side:.3f}" for side in found.extents)
    count = f"{len(found.vertices):,} vertices, {len(found.faces):,} faces"
    print(f"{count}; {size} world units; level {found.metadata['level']:.4g}")
    closed = "yes" if found.is_watertight else "no; some edges do not join exactly two faces"
    print(f"watertight: {closed}")
    finished(out, f"open it in Blender or MeshLab, or cips3d view {model}")
