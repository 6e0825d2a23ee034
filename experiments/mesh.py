"""Meshes: distance of the extracted surface from the truth and from the rendered depth.

The truth is known for analytic heads. The bundled model's meshes are compared with its own depth
and with what the head network reads from its images. Distances are symmetric Chamfer distances as
shares of a head's height, averaged over heads. Those to a depth map compare the end points of the
same rays, so equal surfaces have 0. Those to points all over an analytic head have a floor: the
distance after the mesh's points are moved onto the true surface, which is measured too.

mesh.png has two heads per row, each from six sides: four of the model in colour, then two of the
model and two analytic ones in grey.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import torch
import trimesh
from common import RESULTS, Result
from jaxtyping import Float
from solid import HEAD_HEIGHT, chamfer_distance, depth_inside, head_points, seen_points
from torch import Tensor

import cips3d
from cips3d.camera import Camera, Rays
from cips3d.export.isosurface import (
    Density,
    SampledVolume,
    outward_parts,
    surface,
    surface_level,
    typical_cameras,
)
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid
from cips3d.heads import SyntheticHeads
from cips3d.heads.dataset import FAR_DEPTH
from cips3d.heads.network import DEPTH_SIDE, load_head_network
from cips3d.metrics.views import Subjects, View
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import SOLID

HEADS, GENERATED, RESOLUTION = 4, 8, 128
YAWS = tuple(np.radians((-30.0, -15.0, 0.0, 15.0, 30.0)))
#: Yaw and pitch of the drawn views, degrees, and their side in pixels.
SIDES, SHOWN = ((-40, 0), (0, 0), (40, 0), (90, 0), (180, 0), (0, 50)), 160
#: Density gained per world unit below an analytic head's surface: half opaque within 0.0004.
STEEP = 1e7
#: Largest distances as shares of a head's height: of analytic heads to the truth, and of generated
#: heads to their own depth.
AIMS = (0.01, 0.05)


@torch.inference_mode()
def main() -> None:
    claim = (
        f"Meshes are watertight, within {AIMS[0]:.0%} of an analytic head's surface and within "
        f"{AIMS[1]:.0%} of the rendered depth, in units of head height (ours)"
    )
    result = Result("mesh", claim, of_bundled=True)
    analytic, analytic_meshes = of_analytic_heads(SyntheticHeads(supersampling=1))
    generated, meshes = of_generated_heads(cips3d.load("heads"))
    shown = [drawn(mesh, *side) for mesh in meshes[:4] for side in SIDES]
    for mesh in meshes[:2] + analytic_meshes[:2]:
        shown += [drawn(mesh, *side, shaded=True) for side in SIDES]
    save_image(RESULTS / "mesh.png", image_grid(torch.stack(shown), columns=2 * len(SIDES)))
    near_truth = analytic["chamfer_to_truth"] < AIMS[0]
    near_depth = generated["chamfer_to_rendered_depth"] < AIMS[1]
    closed = all(mesh.is_watertight for mesh in meshes + analytic_meshes)
    values = {"analytic": analytic, "generated": generated, "watertight": closed}
    result.write(values, near_truth and near_depth and closed, seeds=(0,))


def of_analytic_heads(heads: SyntheticHeads) -> tuple[dict[str, float], list[trimesh.Trimesh]]:
    """Figures and meshes of the extraction alone: analytic densities against ray-cast points."""
    cameras = typical_cameras(heads.poses)
    cameras = Camera(cameras.cam_to_world, torch.full_like(cameras.fov, 16.0))
    volume = SampledVolume(cameras, 2 - FAR_DEPTH, FAR_DEPTH)
    distances, floors, depths, meshes = [], [], [], []
    for index in range(HEADS):
        density = density_of_head(heads, index)
        level = surface_level(density, volume, 0.016)
        mesh = outward_parts(surface(density, volume, level, RESOLUTION))
        truth = head_points(heads, index)
        points, face = trimesh.sample.sample_surface(mesh, 2 * len(truth), seed=0)
        distances.append(chamfer_distance(points, truth) / HEAD_HEIGHT)
        depth = depth_inside(heads, index, points)
        depths.append(np.abs(depth).mean() / HEAD_HEIGHT)
        moved = points + depth[:, None] * mesh.face_normals[face]
        floors.append(chamfer_distance(moved, truth) / HEAD_HEIGHT)
        meshes.append(mesh)
    values = {
        "chamfer_to_truth": statistics.mean(distances),
        "sampling_floor": statistics.mean(floors),
        "mesh_to_true_surface": statistics.mean(depths),
    }
    return values, meshes


def density_of_head(heads: SyntheticHeads, index: int) -> Density:
    def density(rays: Rays, t: Float[Tensor, "1 rays samples"]) -> Float[Tensor, "1 rays samples"]:
        points = rays.at(t).flatten(0, 2).double().numpy()
        return torch.from_numpy(STEEP * depth_inside(heads, index, points)).to(t).view_as(t)

    return density


def of_generated_heads(generator: ImageGenerator) -> tuple[dict[str, float], list[trimesh.Trimesh]]:
    """Figures and meshes of the model's untruncated heads: against rendered and predicted depth."""
    latents = generator.sample_latents(GENERATED, 0)
    network, side = load_head_network(), generator.config.resolution
    to_rendered, overlap, to_network, rendered_to_network, meshes = [], [], [], [], []
    for i in range(GENERATED):
        mesh = cips3d.extract_mesh(generator, latents[i], RESOLUTION, psi=1.0)
        subject = Subjects.generated(generator, latents[i], side)
        views = [stopped(subject.from_angles(float(yaw)), generator) for yaw in YAWS]
        hits, hit = zip(*(first_hits(mesh, view.camera, side) for view in views), strict=True)
        solid = [view.solid.flatten().numpy() for view in views]
        rendered = np.concatenate([seen_points(view) for view in views])
        to_rendered.append(chamfer_distance(np.concatenate(hits), rendered) / HEAD_HEIGHT)
        hit_all, solid_all = np.stack(hit), np.stack(solid)
        overlap.append(float((hit_all & solid_all).sum() / (hit_all | solid_all).sum()))
        front = views[YAWS.index(0.0)]
        reading = network(front.out.image)
        rays = front.camera.rays(DEPTH_SIDE, DEPTH_SIDE)
        seen = rays.origins[0] + reading.depth.flatten()[:, None] * rays.directions[0]
        seen = seen[reading.mask.flatten() > SOLID].double().numpy()
        frontal_hits, _ = first_hits(mesh, front.camera, DEPTH_SIDE)
        to_network.append(chamfer_distance(frontal_hits, seen) / HEAD_HEIGHT)
        coarse = Subjects.generated(generator, latents[i], DEPTH_SIDE).from_angles(0.0)
        coarse = stopped(coarse, generator)
        rendered_to_network.append(chamfer_distance(seen_points(coarse), seen) / HEAD_HEIGHT)
        meshes.append(mesh)
    values = {
        "chamfer_to_rendered_depth": statistics.mean(to_rendered),
        "silhouette_overlap": statistics.mean(overlap),
        "chamfer_to_head_network_depth": statistics.mean(to_network),
        "rendered_depth_to_head_network_depth": statistics.mean(rendered_to_network),
        "level": statistics.mean(mesh.metadata["level"] for mesh in meshes),
    }
    return values, meshes


def stopped(view: View, generator: ImageGenerator) -> View:
    """A view whose depth averages over absorbed light only, without the far plane's share."""
    far, out = generator.config.poses.radius + generator.config.networks.extent, view.out
    depth = far - (far - out.depth) / out.opacity.clamp(min=SOLID)
    return View(replace(out, depth=depth), view.camera)


def first_hits(mesh: trimesh.Trimesh, camera: Camera, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (hits, 3) where one camera's rays first meet a mesh, and which rays do, (side²,)."""
    points, index, _ = cast(mesh, camera.rays(side, side))
    hit = np.zeros(side * side, dtype=bool)
    hit[index] = True
    return points, hit


def cast(mesh: trimesh.Trimesh, rays: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, ray indices and face indices of the first hits."""
    origins, directions = (x[0].double().numpy() for x in (rays.origins, rays.directions))
    return mesh.ray.intersects_location(origins, directions, multiple_hits=False)


def drawn(
    mesh: trimesh.Trimesh, yaw: float, pitch: float, shaded: bool = False
) -> Float[Tensor, "3 side side"]:
    """An image of a mesh in [-1, 1], from a yaw and pitch in degrees.

    It has the vertex colours or, shaded, a grey by the angle between normal and ray.
    """
    camera = Camera.orbit(float(np.radians(yaw)), float(np.radians(pitch)), 1.0, 15.0)
    rays = camera.rays(SHOWN, SHOWN)
    points, index, face = cast(mesh, rays)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)[..., None]
    if shaded:
        normals = (mesh.vertex_normals[mesh.faces[face]] * weights).sum(axis=1)
        cosine = -(normals * rays.directions[0].numpy()[index]).sum(axis=1, keepdims=True)
        color = np.repeat(cosine.clip(0, 1), 3, axis=1)
    else:
        color = (mesh.visual.vertex_colors[mesh.faces[face]][..., :3] / 255 * weights).sum(axis=1)
    image = torch.ones(SHOWN * SHOWN, 3)
    image[index] = torch.from_numpy(2 * color - 1).float()
    return image.T.reshape(3, SHOWN, SHOWN)


if __name__ == "__main__":
    main()
