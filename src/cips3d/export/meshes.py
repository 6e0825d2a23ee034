"""A subject as a triangle mesh: the density's level surface in the colours of the images."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
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
from cips3d.files import atomic_path, suffix_of
from cips3d.models.layers import without_autocast
from cips3d.models.protocol import ImageGenerator, Prepared, RayGenerator
from cips3d.models.rays import in_chunks
from cips3d.models.types import DEFAULT_PSI, Latents, Psi, Styles

#: Points along the grid's longest side: fewer show no head; with the most, the grid takes 4 GiB.
FEWEST, MOST = 8, 1024
GridSide = Annotated[int, Ge(FEWEST), Le(MOST)]
#: Least cosine between ray and normal: a camera with less sees the surface too obliquely.
_OBLIQUE = 0.3
#: Number of cameras that colour a vertex, and the weight of one that only equals the next best.
_VIEWS, _LEAST = 4, 0.01
#: Share of a vertex's weights that pixels must confirm, or it counts as unseen.
_UNSEEN = 0.1
#: Weight of the mean colour at unseen vertices, for parts without any seen vertex.
_MEAN_SHARE = 1e-6


@torch.no_grad()
def extract_mesh(
    generator: ImageGenerator,
    codes: Latents | Styles | Prepared,
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
    by their angles: at a grid of 128 they differ from the bundled model's density gradient by 0.8°
    (differences of the grid by 1.0°), and they are right at the cuts, where the gradient is not.

    Args:
        codes: latents, styles or a prepared subject, a batch of one.
        resolution: grid points along the longest side, `FEWEST` to `MOST`. Memory (4 bytes per
            point) and time grow with its cube.
        psi: truncation of latents.
        level: density of the surface, per world unit, > 0; None finds it (`surface_level`).
        colors: whether vertices get the colours of the model's images (`vertex_colors`).
        largest: keep the largest connected part only.
        chunk: samples of the grid evaluated at a time; changes memory, not the mesh.

    Returns:
        The mesh; `metadata["level"]` is the level. `mesh.export` writes many formats; `save_mesh`
        also does what viewers of GLB files expect.

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
    like = generator.like
    with without_autocast(generator.device):
        if not isinstance(codes, Styles | Prepared):
            codes = generator.map(codes, psi)
        styles = (codes.styles if isinstance(codes, Prepared) else codes).to(like)
        volume = SampledVolume.from_config(generator.config)
        volume = replace(volume, cameras=volume.cameras.to(like))
        density = partial(generator.density_along, styles=styles)
        if level is None:
            level = surface_level(density, volume, sample_spacing(generator.config))
        mesh = outward_parts(surface(density, volume, level, resolution, chunk), largest)
        mesh.metadata["level"] = level
        mesh.vertex_normals  # noqa: B018 (trimesh's exporters write them only once computed)
        if colors:
            assert isinstance(generator, RayGenerator)
            if not isinstance(codes, Prepared):
                samples = generator.sampling.coarse + generator.sampling.fine
                codes = generator.prepare_for(styles, _VIEWS * len(mesh.vertices) * samples)
            found = vertex_colors(generator, codes, mesh, volume.cameras)
            mesh.visual = ColorVisuals(mesh, vertex_colors=found)
    return mesh


def vertex_colors(
    generator: RayGenerator, styles: Styles | Prepared, mesh: trimesh.Trimesh, cameras: Camera
) -> UInt8[np.ndarray, "vertices 3"]:
    """Colours (sRGB) of the model's images of one subject at the vertices of its mesh.

    The ray from a camera through a vertex is exactly its pixel. Of the cameras that have a vertex
    in their image, the four that look at it most squarely count. Their weights fall with the cosine
    of the angle and reach zero where a camera drops out of the four, so there are no seams (Buehler
    et al. 2001, "Unstructured lumigraph rendering"). Each weight is multiplied by the pixel's
    opacity and by the agreement of its depth with the vertex's, so an occluded vertex does not get
    the occluder's colour. Colours spread smoothly over the surface to vertices that no camera sees,
    such as the back of a head.

    Raises:
        UserError: if no camera sees any vertex.
    """
    like = generator.like
    cameras = _distinct(cameras)
    points, normals = (like.new_tensor(x) for x in (mesh.vertices, mesh.vertex_normals))
    squareness = _squareness(points, normals, cameras)
    total, weights = like.new_zeros(len(points), 3), like.new_zeros(len(points), 1)
    for camera, share in zip(cameras, squareness, strict=True):
        looking = torch.nonzero(share)[:, 0]
        color, weight = _seen_by(generator, styles, camera, points[looking])
        weight = weight * share[looking, None]
        total[looking] += color * weight
        weights[looking] += weight
    known = (weights[:, 0] > _UNSEEN * squareness.sum(dim=0)).cpu().numpy()
    if not known.any():
        raise UserError(
            "mesh: no camera sees the surface, so it has no colours; give another level, or leave "
            "colours out"
        )
    mean = (total / weights.clamp(min=1e-12)).cpu().double().numpy()
    return to_uint8(torch.from_numpy(_spread(mesh, mean, known).T[None, :, None].copy()))[0, 0]


def _distinct(cameras: Camera) -> Camera:
    """Each camera once: a prior without spread repeats one, which would crowd out others."""
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
    generator: RayGenerator,
    codes: Styles | Prepared,
    camera: Camera,
    points: Float[Tensor, "vertices 3"],
) -> tuple[Float[Tensor, "vertices 3"], Float[Tensor, "vertices 1"]]:
    """Colours in [-1, 1] of the pixels at the points, and their confidence in [0, 1]."""
    offset = points - camera.position
    distance = offset.norm(dim=-1, keepdim=True)
    directions = offset / distance
    rays = Rays(camera.position.expand_as(directions)[None], directions[None])
    sampling = generator.sampling
    chunk = generator.default_chunk(1, sampling)
    render_rays, styles = generator.renderer(codes)
    stacked = in_chunks(render_rays, styles, rays, sampling, None, chunk)
    colors, _, depth, opacity, _ = stacked[0].split([3, 3, 1, 1, 1], dim=1)
    far = camera.position.norm() + generator.config.networks.extent
    depth = far - (far - depth) / opacity.clamp(min=0.1)  # of the absorbed light alone
    near = torch.exp(-((depth - distance) / sample_spacing(generator.config)).square())
    return colors, opacity * near


def _spread(
    mesh: trimesh.Trimesh,
    colors: Float[np.ndarray, "vertices 3"],
    known: Bool[np.ndarray, " vertices"],
) -> Float[np.ndarray, "vertices 3"]:
    """The known colours, extended harmonically: every other one is the mean of its neighbours'."""
    ends = mesh.edges_unique
    count = len(colors)
    edges = (ends.T.ravel(), ends[:, ::-1].T.ravel())
    neighbours = coo_array((np.ones(2 * len(ends)), edges), (count, count)).tocsr()[~known]
    system = diags_array(neighbours.sum(axis=1) + _MEAN_SHARE) - neighbours[:, ~known]
    average = colors[known].mean(axis=0)
    given = neighbours[:, known] @ colors[known] + _MEAN_SHARE * average
    spread = colors.copy()
    for k in range(3):
        spread[~known, k], _ = cg(system, given[:, k], np.full(len(given), average[k]), rtol=1e-4)
    return spread


def save_mesh(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> None:
    """Writes a mesh with its vertex normals and colours, whole or not at all.

    PLY and OBJ store sRGB colours; OBJ stores them after the positions, where MeshLab and Blender
    read them. GLB stores linear colours, as glTF requires, and a matte material, since glTF's
    default is metal.
    """
    suffix = suffix_of(path, ".ply", ".obj", ".glb")
    with atomic_path(path) as temporary:
        if suffix == ".ply":
            mesh.export(temporary, vertex_normal=True)
        elif suffix == ".obj":
            mesh.export(temporary, include_normals=True)
        else:
            temporary.write_bytes(glb(mesh))


def glb(mesh: trimesh.Trimesh) -> bytes:
    """The content of a GLB file (see `save_mesh`)."""
    options = {"vertex_normals": mesh.vertex_normals, "metadata": mesh.metadata, "process": False}
    plain = trimesh.Trimesh(mesh.vertices, mesh.faces, **options)
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
            attributes = primitive["attributes"]
            if "_color" in attributes:
                attributes["COLOR_0"] = attributes.pop("_color")

    return export_glb(plain.scene(), include_normals=True, tree_postprocessor=finish)


def linear(srgb: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Linear light of sRGB values, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
