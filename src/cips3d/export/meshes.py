"""A subject as a triangle mesh: the density's level surface in the colours of the rendered images.

PLY, OBJ and GLB files.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import trimesh
from annotated_types import Ge, Le
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import cg
from torch import Tensor
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.visual import ColorVisuals

from cips3d.camera import Camera, Rays
from cips3d.configuration import Count, Positive, validated
from cips3d.errors import UserError
from cips3d.export.isosurface import (
    CHUNK,
    SampledVolume,
    outward_parts,
    sample_spacing,
    surface,
    surface_level,
)
from cips3d.export.media import to_uint8
from cips3d.files import atomic_path
from cips3d.models.layers import without_autocast
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.rays import chunks
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles

#: Points along the grid's longest side: fewer show no head; with the most, the grid takes 4 GiB.
FEWEST, MOST = 8, 1024
GridSide = Annotated[int, Ge(FEWEST), Le(MOST)]
SUFFIXES = (".ply", ".obj", ".glb")
#: Least cosine between ray and normal: a camera with less sees the surface too obliquely.
_OBLIQUE = 0.3
#: Number of cameras that colour a vertex, and the weight of one exactly as square as the next best.
_VIEWS, _LEAST = 4, 0.01
#: Share of a vertex's weights that pixels must confirm, or it counts as unseen.
_UNSEEN = 0.1
#: Share of the mean colour in an unseen vertex's; it reaches parts without any seen vertex.
_MEAN_SHARE = 1e-6


@torch.no_grad()
def extract_mesh(
    generator: ImageGenerator,
    codes: Latents | Styles,
    resolution: int = 256,
    *,
    psi: Psi = DEFAULT_PSI,
    level: float | None = None,
    colors: bool = True,
    largest: bool = True,
    chunk: int = CHUNK,
) -> trimesh.Trimesh:
    """The closed surface of one subject, in world units, with faces outward.

    The subject is at the origin, y up, its face towards +z. The mesh ends where the cameras of the
    prior see nothing any more (`SampledVolume`). Vertex normals are means over the faces, weighted
    by their angles: for the bundled model and a grid of 128 they differ by 0.8° from the density's
    gradient (differences of the grid by 1.0°), and they are right at the cuts, where the gradient
    is not. `mesh.export` writes many formats; `save_mesh` also does what viewers of GLB files
    expect.

    Args:
        codes: latents or styles, a batch of one.
        resolution: grid points along the longest side, `FEWEST` to `MOST`. Memory (4 bytes per
            point) and time grow with its cube.
        psi: truncation of latents.
        level: density of the surface, per world unit, > 0; None finds it (`surface_level`).
        colors: whether vertices get the colours of the model's images (`vertex_colors`).
        largest: keep the largest connected part only.
        chunk: samples of the grid evaluated at a time; changes memory, not the mesh.

    Returns:
        The mesh; `metadata["level"]` is the level.

    Raises:
        UserError: if the architecture has no density, there is no surface, or an argument is out of
            range.
    """
    if not generator.has_density:
        raise UserError(
            f"mesh: the architecture {generator.config.networks.architecture} has no density and "
            "so no surface; use a 3D one"
        )
    resolution = validated(GridSide, resolution, "mesh: resolution")
    level = validated(Positive | None, level, "mesh: level")
    chunk = validated(Count, chunk, "mesh: chunk")
    if len(codes) != 1:
        raise UserError(f"mesh: {len(codes)} codes; give one, such as z[0]")
    with without_autocast(generator.shape_mean.device):
        styles = codes if isinstance(codes, Styles) else generator.map(codes, psi)
        styles = styles.map(lambda x: x.to(generator.shape_mean))
        volume = SampledVolume.from_config(generator.config).to(generator.shape_mean)
        density = partial(generator.density_along, styles=styles)
        if level is None:
            level = surface_level(density, volume, sample_spacing(generator.config))
        mesh = outward_parts(surface(density, volume, level, resolution, chunk), largest)
        mesh.metadata["level"] = level
        mesh.vertex_normals  # noqa: B018 (computes them; trimesh's exporters write cached ones)
        if colors:
            assert isinstance(generator, RayGenerator)
            found = vertex_colors(generator, styles, mesh, volume.cameras)
            mesh.visual = ColorVisuals(mesh, vertex_colors=found)
    return mesh


def vertex_colors(
    generator: RayGenerator, styles: Styles, mesh: trimesh.Trimesh, cameras: Camera
) -> UInt8[np.ndarray, "vertices 3"]:
    """Colours (sRGB) of the model's images at the vertices of a mesh.

    The ray from a camera through a vertex is exactly its pixel. Of the cameras that have a vertex
    in their image, the four that look at it most squarely count. Their weights fall with the cosine
    of the angle and reach zero where a camera drops out of the four, so there are no seams (Buehler
    et al. 2001, "Unstructured lumigraph rendering"). Each weight is multiplied by the pixel's
    opacity and by the agreement of its depth with the vertex's, so an occluded vertex does not get
    the occluder's colour. Colours spread smoothly over the surface to vertices that no camera sees,
    such as the back of a head.

    Args:
        styles: of one subject.
        cameras: views of it.

    Raises:
        UserError: if no camera sees any vertex.
    """
    like = generator.shape_mean
    cameras = _distinct(cameras)
    points, normals = (
        torch.from_numpy(np.array(x)).to(like) for x in (mesh.vertices, mesh.vertex_normals)
    )
    squareness = _squareness(points, normals, cameras)
    total, weights = like.new_zeros(len(points), 3), like.new_zeros(len(points), 1)
    for camera, share in zip((cameras[i] for i in range(len(cameras))), squareness, strict=True):
        looking = torch.nonzero(share)[:, 0]
        color, weight = _seen_by(generator, styles, camera, points[looking])
        weight = weight * share[looking, None]
        total[looking] += color * weight
        weights[looking] += weight
    known = (weights[:, 0] > _UNSEEN * squareness.sum(dim=0)).cpu().numpy()
    if not known.any():
        raise UserError(
            "mesh: no camera sees the surface, so it has no colours; "
            "give another level, or leave colours out"
        )
    mean = (total / weights.clamp(min=1e-12)).cpu().double().numpy()
    return to_uint8(torch.from_numpy(_spread(mesh, mean, known).T[None, :, None].copy()))[0, 0]


def _distinct(cameras: Camera) -> Camera:
    """Equal cameras only once: a prior without spread repeats one, which would crowd out others."""
    numbers = torch.cat([cameras.cam_to_world.flatten(1), cameras.fov[:, None]], dim=1)
    seen = numbers.cpu().unique(dim=0).to(numbers)
    return Camera(seen[:, :-1].unflatten(1, (4, 4)), seen[:, -1])


def _squareness(
    points: Float[Tensor, "vertices 3"], normals: Float[Tensor, "vertices 3"], cameras: Camera
) -> Float[Tensor, "cameras vertices"]:
    """Weights of the cameras that look at each vertex most squarely; 0 for the others."""
    place, distance = cameras.project(points.expand(len(cameras), -1, -1))
    cosine = ((cameras.position[:, None] - points) * normals).sum(dim=-1) / distance
    cosine = cosine.where((distance > 0) & (place.abs() <= 1).all(dim=-1), 0.0)
    zero = cosine.new_full((len(points),), _OBLIQUE)
    if len(cameras) > _VIEWS:
        zero = torch.topk(cosine, _VIEWS + 1, dim=0).values[-1].clamp(min=_OBLIQUE)
    return (cosine - zero + _LEAST).where(cosine > zero, 0.0)


def _seen_by(
    generator: RayGenerator, styles: Styles, camera: Camera, points: Float[Tensor, "vertices 3"]
) -> tuple[Float[Tensor, "vertices 3"], Float[Tensor, "vertices 1"]]:
    """Colours in [-1, 1] of the pixels at the points, and their confidence in [0, 1]."""
    offset = points - camera.position
    distance = offset.norm(dim=-1)
    directions = offset / distance[:, None]
    rays = Rays(camera.position.expand_as(directions)[None], directions[None])
    sampling, spacing = generator.sampling, sample_spacing(generator.config)
    chunk = generator.default_chunk(1, sampling)
    far = camera.position.norm() + generator.config.networks.extent
    colors, weights = [distance.new_zeros(0, 3)], [distance.new_zeros(0, 1)]
    for part in chunks(rays.count, chunk):
        out = generator.render_rays(styles, rays[part], sampling)
        opacity = out.opacity[0]
        # depth of the absorbed light alone
        depth = far - (far - out.depth[0]) / opacity.clamp(min=0.1)
        near = torch.exp(-((depth - distance[part]) / spacing).square())
        colors.append(out.rgb[0])
        weights.append((opacity * near)[:, None])
    return torch.cat(colors), torch.cat(weights)


def _spread(
    mesh: trimesh.Trimesh,
    colors: Float[np.ndarray, "vertices 3"],
    known: Bool[np.ndarray, " vertices"],
) -> Float[np.ndarray, "vertices 3"]:
    """The known colours, extended harmonically: elsewhere the mean of the neighbours' colours."""
    ends = mesh.edges_unique
    count = len(colors)
    edges = (ends.T.ravel(), ends[:, ::-1].T.ravel())
    neighbours = coo_array((np.ones(2 * len(ends)), edges), (count, count)).tocsr()[~known]
    system = diags_array(neighbours.sum(axis=1) + _MEAN_SHARE) - neighbours[:, ~known]
    average = colors[known].mean(axis=0)
    given = neighbours[:, known] @ colors[known] + _MEAN_SHARE * average
    spread = colors.copy()
    for k in range(3):
        spread[~known, k] = cg(system, given[:, k], np.full(len(given), average[k]), rtol=1e-4)[0]
    return spread


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The lower-case suffix of a mesh file.

    Raises:
        UserError: if it is not one of `SUFFIXES`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot write a mesh of kind {suffix or '(no suffix)'!r}; "
            f"end the name in {', '.join(SUFFIXES)}"
        )
    return suffix


def save_mesh(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None:
    """Writes a mesh with its vertex normals and colours, whole or not at all.

    PLY and OBJ store sRGB colours; OBJ stores them after the positions, where MeshLab and Blender
    read them. GLB stores linear colours, as glTF requires, and a matte material, since glTF's
    default is metal.

    Args:
        path: ends in .ply, .obj or .glb.

    Raises:
        UserError: if it has another suffix, or the file cannot be written.
    """
    suffix = check_suffix(path)
    with atomic_path(path) as temporary:
        if suffix == ".ply":
            temporary.write_bytes(export_ply(mesh, vertex_normal=True))
        elif suffix == ".obj":
            temporary.write_text(export_obj(mesh, include_normals=True))
        else:
            temporary.write_bytes(glb(mesh))


def glb(mesh: trimesh.Trimesh) -> bytes:
    """The content of a GLB file (see `save_mesh`)."""
    normals, metadata = mesh.vertex_normals, mesh.metadata
    plain = trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=normals, metadata=metadata, process=False
    )
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex":
        # floats: 8 bits are too few for dark linear colours
        colors = linear(mesh.visual.vertex_colors[:, :3] / 255)
        plain.vertex_attributes["color"] = colors.astype(np.float32)

    def finish(tree: dict[str, Any]) -> None:
        matte = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        tree["materials"] = [{"pbrMetallicRoughness": matte}]
        for part in tree["meshes"]:
            (primitive,) = part["primitives"]
            primitive["material"] = 0
            if "_color" in primitive["attributes"]:
                primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_color")

    return export_glb(plain.scene(), include_normals=True, tree_postprocessor=finish)


def linear(srgb: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Linear light of sRGB values, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
