"""Meshes: how far the extracted surface lies from the truth of analytic heads, and from what the bundled model's pictures show.

Distances are symmetric Chamfer distances as shares of a head's height, the mean over heads. Those to depth that a camera sees
are between the points where the same rays end, so that they are 0 for equal surfaces; those to points all over an analytic
head have a floor, which is measured too: with the mesh's points moved onto the true surface.

mesh.png has two heads a row, each from six sides: four of the model in their colours, two of it and two analytic ones in grey.
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
from cips3d.models.generator import Generator
from cips3d.models.types import SOLID

HEADS, GENERATED, RESOLUTION = 4, 8, 128
YAWS = tuple(np.radians((-30.0, -15.0, 0.0, 15.0, 30.0)))
#: Yaw and pitch of the drawn sides, degrees, and their side in pixels.
SIDES, SHOWN = ((-40, 0), (0, 0), (40, 0), (90, 0), (180, 0), (0, 50)), 160
#: Density gained per world unit of depth below an analytic head's surface: half opaque within 0.0004 world units.
STEEP = 1e7
#: Shares of a head's height that the distances should stay below: of analytic heads, and of generated ones to their own depth.
AIMS = (0.01, 0.05)


@torch.inference_mode()
def main() -> None:
    aims = f"within {AIMS[0]:.0%} of an analytic head and {AIMS[1]:.0%} of what pictures show, in a head's height"
    result = Result("mesh", f"Meshes are watertight and {aims} (ours)", of_bundled=True)
    analytic, analytic_meshes = of_analytic_heads(SyntheticHeads(supersampling=1))
    generated, meshes = of_generated_heads(cips3d.load("heads"))
    shown = [drawn(mesh, *side) for mesh in meshes[:4] for side in SIDES]
    shown += [
        drawn(mesh, *side, shaded=True)
        for mesh in meshes[:2] + analytic_meshes[:2]
        for side in SIDES
    ]
    save_image(RESULTS / "mesh.png", image_grid(torch.stack(shown), columns=2 * len(SIDES)))
    near = (
        analytic["chamfer_to_truth"] < AIMS[0] and generated["chamfer_to_rendered_depth"] < AIMS[1]
    )
    closed = all(mesh.is_watertight for mesh in meshes + analytic_meshes)
    result.write(
        {"analytic": analytic, "generated": generated, "watertight": closed},
        near and closed,
        seeds=(0,),
    )


def of_analytic_heads(heads: SyntheticHeads) -> tuple[dict[str, float], list[trimesh.Trimesh]]:
    """The extraction alone: heads of the dataset as densities, against points of the dataset's ray caster."""
    cameras = typical_cameras(heads.poses)
    volume = SampledVolume(
        Camera(cameras.cam_to_world, torch.full_like(cameras.fov, 16.0)), 2 - FAR_DEPTH, FAR_DEPTH
    )
    distances, floors, depths, meshes = [], [], [], []
    for index in range(HEADS):
        density = density_of_head(heads, index)
        mesh = outward_parts(
            surface(density, volume, surface_level(density, volume, 0.016), RESOLUTION)
        )
        truth = head_points(heads, index)
        points, face = trimesh.sample.sample_surface(mesh, 2 * len(truth), seed=0)
        distances.append(chamfer_distance(points, truth) / HEAD_HEIGHT)
        depth = depth_inside(heads, index, points)
        depths.append(np.abs(depth).mean() / HEAD_HEIGHT)
        floors.append(
            chamfer_distance(points + depth[:, None] * mesh.face_normals[face], truth) / HEAD_HEIGHT
        )
        meshes.append(mesh)
    values = {
        "chamfer_to_truth": statistics.mean(distances),
        "floor_of_the_points": statistics.mean(floors),
        "from_mesh_to_true_surface": statistics.mean(depths),
    }
    return values, meshes


def density_of_head(heads: SyntheticHeads, index: int) -> Density:
    def density(rays: Rays, t: Float[Tensor, "1 rays samples"]) -> Float[Tensor, "1 rays samples"]:
        points = rays.at(t).flatten(0, 2).double().numpy()
        return torch.from_numpy(STEEP * depth_inside(heads, index, points)).to(t).view_as(t)

    return density


def of_generated_heads(generator: Generator) -> tuple[dict[str, float], list[trimesh.Trimesh]]:
    """Meshes of the model's heads (without truncation) against its own depth and what the head network sees in its pictures."""
    latents = generator.sample_latents(GENERATED, 0)
    network, side = load_head_network(), generator.config.resolution
    to_rendered, overlap, to_network, rendered_to_network, meshes = [], [], [], [], []
    for i in range(GENERATED):
        mesh = cips3d.extract_mesh(generator, latents[i], RESOLUTION)
        subject = Subjects.generated(generator, latents[i], side)
        views = [stopped(subject.from_angles(float(yaw)), generator) for yaw in YAWS]
        hits, hit = zip(*(first_hits(mesh, view.camera, side) for view in views), strict=True)
        solid = [view.solid.flatten().numpy() for view in views]
        rendered = np.concatenate([seen_points(view) for view in views])
        to_rendered.append(chamfer_distance(np.concatenate(hits), rendered) / HEAD_HEIGHT)
        overlap.append(
            float((np.stack(hit) & np.stack(solid)).sum() / (np.stack(hit) | np.stack(solid)).sum())
        )
        front = views[YAWS.index(0.0)]
        reading = network(front.out.image)
        rays = front.camera.rays(DEPTH_SIDE, DEPTH_SIDE)
        seen = rays.origins[0] + reading.depth.flatten()[:, None] * rays.directions[0]
        seen = seen[reading.mask.flatten() > SOLID].double().numpy()
        to_network.append(
            chamfer_distance(first_hits(mesh, front.camera, DEPTH_SIDE)[0], seen) / HEAD_HEIGHT
        )
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


def stopped(view: View, generator: Generator) -> View:
    """A view whose depth is the mean of where its light ends, without the far plane's share where some passes."""
    far, out = generator.config.poses.radius + generator.config.extent, view.out
    return View(
        replace(out, depth=far - (far - out.depth) / out.opacity.clamp(min=SOLID)), view.camera
    )


def first_hits(mesh: trimesh.Trimesh, camera: Camera, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels' rays of one camera first meet a mesh, (hits, 3), and which of them do, (side²,)."""
    points, index, _ = cast(mesh, camera.rays(side, side))
    hit = np.zeros(side * side, dtype=bool)
    hit[index] = True
    return points, hit


def cast(mesh: trimesh.Trimesh, rays: Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, numbers of the rays and numbers of the faces of the first hits."""
    origins, directions = (x[0].double().numpy() for x in (rays.origins, rays.directions))
    return mesh.ray.intersects_location(origins, directions, multiple_hits=False)


def drawn(
    mesh: trimesh.Trimesh, yaw: float, pitch: float, shaded: bool = False
) -> Float[Tensor, "3 side side"]:
    """A picture of a mesh in [-1, 1]: its vertex colours, or grey by the angle between normal and ray; angles in degrees."""
    rays = Camera.orbit(float(np.radians(yaw)), float(np.radians(pitch)), 1.0, 15.0).rays(
        SHOWN, SHOWN
    )
    points, index, face = cast(mesh, rays)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)[..., None]
    if shaded:
        normals = (mesh.vertex_normals[mesh.faces[face]] * weights).sum(axis=1)
        cosine = -(normals * rays.directions[0].numpy()[index]).sum(axis=1, keepdims=True)
        color = np.repeat(cosine.clip(0, 1), 3, axis=1)
    else:
        color = (mesh.visual.vertex_colors[mesh.faces[face]][..., :3] / 255 * weights).sum(axis=1)
    picture = torch.ones(SHOWN * SHOWN, 3)
    picture[index] = torch.from_numpy(2 * color - 1).float()
    return picture.T.reshape(3, SHOWN, SHOWN)


if __name__ == "__main__":
    main()
