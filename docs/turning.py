"""The README's animation: subjects of the bundled model turning, each above its mesh.

python docs/turning.py         # writes docs/turning.webp, about a minute on one core
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numba
import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int, UInt8
from PIL import Image

import cips3d
from cips3d import Camera
from cips3d.export.media import save_image, to_uint8

OUT = Path(__file__).parent / "turning.webp"
#: Three with different hair from the first six good seeds (docs/rendering.md).
SEEDS = (32, 97, 38)
#: Pixels along a side, frames, and the points of a mesh's grid.
SIZE, FRAMES, GRID = 256, 40, 160
#: The largest yaw and pitch, radians.
YAW, PITCH = math.radians(32), math.radians(6)
PSI = 0.7
#: Light from above the camera's left shoulder, in camera axes, and the mesh's colours.
LIGHT = np.array([-0.4, 0.5, 0.77])
CLAY, PAPER = np.array([214.0, 208.0, 200.0]), np.array([244.0, 244.0, 246.0])


def turning(size: int = SIZE, frames: int = FRAMES, grid: int = GRID) -> list[Image.Image]:
    """The frames: one column per subject, its image above its mesh."""
    generator = cips3d.load("heads")
    styles = [generator.map(generator.sample_latents(1, seed), PSI) for seed in SEEDS]
    meshes = [cips3d.extract_mesh(generator, w, grid, colors=False) for w in styles]
    shown = []
    for phase in np.arange(frames) * 2 * math.pi / frames:
        camera = generator.config.poses.at(YAW * math.sin(phase), PITCH * math.cos(phase))
        with torch.no_grad():
            images = [to_uint8(generator.render(w, camera, size).image)[0] for w in styles]
        surfaces = [shaded(mesh, camera, size) for mesh in meshes]
        shown.append(Image.fromarray(np.vstack([np.hstack(images), np.hstack(surfaces)])))
    return shown


def mesh_views(out: Path, size: int = 96, grid: int = GRID) -> None:
    """Writes an image of the first subject's mesh from five yaws, −60° to 60°."""
    generator = cips3d.load("heads")
    codes = generator.map(generator.sample_latents(1, SEEDS[0]), PSI)
    mesh = cips3d.extract_mesh(generator, codes, grid, colors=False)
    cameras = [generator.config.poses.at(math.radians(yaw)) for yaw in (-60, -30, 0, 30, 60)]
    save_image(out, np.hstack([shaded(mesh, camera, size) for camera in cameras]))


def shaded(mesh: trimesh.Trimesh, camera: Camera, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The mesh as grey clay, lit from beside the camera, with two samples along a pixel's side."""
    side = 2 * size
    pose = camera.cam_to_world[0].double().numpy()
    points = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
    focal = side / 2 / math.tan(math.radians(float(camera.fov[0])) / 2)
    depth = -points[:, 2]
    columns = side / 2 + focal * points[:, 0] / depth
    rows = side / 2 - focal * points[:, 1] / depth
    light = np.clip(mesh.vertex_normals @ pose[:3, :3] @ LIGHT, 0, 1)
    seen = rasterize(np.stack([rows, columns, depth, light], 1), mesh.faces, side)
    colours = np.where(np.isnan(seen)[..., None], PAPER, CLAY * (0.3 + 0.7 * seen[..., None]))
    pixels = colours.reshape(size, 2, size, 2, 3).mean((1, 3))
    return pixels.round().clip(0, 255).astype(np.uint8)


@numba.njit
def rasterize(
    corners: Float[np.ndarray, "vertices 4"], faces: Int[np.ndarray, "faces 3"], side: int
) -> Float[np.ndarray, "side side"]:
    """The brightness of the nearest surface at each pixel; NaN where there is none.

    Args:
        corners: row, column, depth and brightness of each vertex.
        faces: vertices of each triangle.
        side: height and width in pixels.
    """
    nearest, seen = np.full((side, side), np.inf), np.full((side, side), np.nan)
    for face in faces:
        a, b, c = corners[face[0]], corners[face[1]], corners[face[2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        top, bottom = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
        left, right = min(a[1], b[1], c[1]), max(a[1], b[1], c[1])
        for i in range(max(0, int(top)), min(side, int(bottom) + 1)):
            for j in range(max(0, int(left)), min(side, int(right) + 1)):
                y, x = i + 0.5, j + 0.5
                u = ((y - a[0]) * (c[1] - a[1]) - (x - a[1]) * (c[0] - a[0])) / area
                v = ((b[0] - a[0]) * (x - a[1]) - (b[1] - a[1]) * (y - a[0])) / area
                if u < 0 or v < 0 or u + v > 1:
                    continue
                depth = (1 - u - v) * a[2] + u * b[2] + v * c[2]
                if depth < nearest[i, j]:
                    nearest[i, j] = depth
                    seen[i, j] = (1 - u - v) * a[3] + u * b[3] + v * c[3]
    return seen


def main(out: Path = OUT) -> None:
    """Writes the animation."""
    first, *others = turning()
    first.save(out, save_all=True, append_images=others, duration=70, loop=0, quality=82, method=4)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
