"""From a density to a closed surface: sampled volume, level, grid, marching cubes.

A density is a function of rays and depths, like `ImageGenerator.density_along`. The rows of a grid
are rays too, so an analytic shape works like a radiance field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from jaxtyping import Bool, Float, Float32
from skimage.measure import marching_cubes
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.models.config import GeneratorConfig
from cips3d.models.rays import chunks

#: Raw density σ of one subject at depths t of rays, per world unit; nothing is where σ ≤ 0.
Density = Callable[[Rays, Float[Tensor, "1 rays samples"]], Float[Tensor, "1 rays samples"]]

#: Typical cameras, in standard deviations of the prior (for other priors, the same quantiles).
_YAWS, _PITCHES = (-2.0, -1.0, 0.0, 1.0, 2.0), (-1.0, 0.0, 1.0)
#: Side of each typical camera's image, and samples per ray, in the search for the level.
_SIDE, _SAMPLES = 24, 128
#: Number of levels to try, and the lowest and highest as shares of the density where nearly all
#: rays have ended. The highest is below 1: noise would tear holes at a uniform body's own density.
_LEVELS, _LOWEST, _HIGHEST = 64, 1 / 64, 0.8
#: Levels whose errors differ by less than this share of a sample spacing are equally good.
_AS_GOOD = 0.01
#: Blocks along the grid's longest side, or fewer, in which the surface is looked for: as fine as
#: half of the spacing of a ray's 16 stratified samples.
_BLOCKS = 80
#: Grid samples evaluated at a time.
CHUNK = 2**18


def typical_cameras(poses: PoseDistribution) -> Camera:
    """Fifteen cameras of a prior: yaws up to two standard deviations, pitches up to one."""
    yaw, pitch = torch.meshgrid(torch.tensor(_YAWS), torch.tensor(_PITCHES), indexing="ij")
    draws = torch.stack([yaw.flatten(), pitch.flatten()], dim=-1)
    return poses.camera(draws if poses.kind == "gaussian" else torch.special.ndtr(draws))


@dataclass(frozen=True)
class SampledVolume:
    """Where a density is reliable: what most typical cameras sample, in front of all far planes.

    Training images never constrain the density outside of the frusta, and hardly constrain what
    only rare cameras see. The union of all frusta would include that; their intersection would cut
    off shoulders that every common view shows. So a point is inside if most cameras see it.

    At the far plane, one camera is enough to exclude a point: a model may paint its background
    there, and one camera's wall is in the middle of another's frustum. The ball around the origin
    with the half depth as its radius is never cut.
    """

    cameras: Camera
    near: float
    """depth of each camera's first sample, world units"""
    far: float
    """depth of its last sample, world units"""

    @staticmethod
    def from_config(config: GeneratorConfig) -> SampledVolume:
        """The volume of a model.

        It excludes the last interval where the density there paints the background, which would
        become a wall behind the subject: with an "endless" background any density on the last
        sample is opaque, with "last" that sample takes all remaining light.
        """
        radius, extent = config.poses.radius, config.networks.extent
        is_painted = config.networks.background in ("endless", "last")
        painted = sample_spacing(config) if is_painted else 0.0
        near, far = max(0.0, radius - extent), radius + extent - painted
        return SampledVolume(typical_cameras(config.poses), near, far)

    def signed_distance(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        """Distance to the volume's boundary in world units, positive inside.

        Exact near smooth parts: the median over the cameras of the distance to the frustum's sides
        and near end, or the smallest distance to a far end if that is less. Both are continuous, so
        a surface that ends at the boundary is cut smoothly, not along the voxels.
        """
        pose = self.cameras.cam_to_world
        local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        half = torch.deg2rad(self.cameras.fov)[:, None] / 2
        aside = -local[..., 2] * half.sin() - local[..., :2].abs().amax(dim=-1) * half.cos()
        distance = local.norm(dim=-1)
        seen = torch.minimum(aside, distance - self.near).median(dim=0).values
        return torch.minimum(seen, self.far - distance.amax(dim=0))

    def bounds(self) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
        """Lowest and highest corner of a box around the volume; UserError if it is empty."""
        radius = float(self.cameras.position.norm(dim=-1).max())
        corner = math.atan(math.sqrt(2) * math.tan(math.radians(float(self.cameras.fov.max())) / 2))
        ends = (self.near, self.far)
        reach = math.sqrt(max(radius**2 + t**2 - 2 * radius * t * math.cos(corner) for t in ends))
        axis = torch.linspace(-reach, reach, 48).to(self.cameras.cam_to_world)
        points = torch.cartesian_prod(axis, axis, axis)
        points = points[self.signed_distance(points) > 0]
        if len(points) == 0:
            raise UserError(
                "mesh: the cameras of the model's prior have no volume in common; give it a wider "
                "extent or field of view"
            )
        margin = axis[1] - axis[0]
        return points.amin(dim=0) - margin, points.amax(dim=0) + margin


def sample_spacing(config: GeneratorConfig) -> float:
    """Distance between a ray's stratified samples in world units: the model's depth resolution."""
    return 2 * config.networks.extent / (config.sampling.coarse - 1)


def surface_level(density: Density, volume: SampledVolume, spacing: float) -> float:
    """The density whose level surface is nearest to the surface that images show.

    A ray ends where half of its light is absorbed, ∫σ dt = ln 2. The level minimises the mean
    absolute difference between that depth and the one where the ray meets the level surface; each
    difference is at most `spacing` (world units). Of equally good levels, the lowest wins.

    Raises:
        UserError: if no ray absorbs half of its light.
    """
    rays = volume.cameras.rays(_SIDE, _SIDE).map(lambda x: x.flatten(0, 1)[None])
    t = torch.linspace(volume.near, volume.far, _SAMPLES).to(rays.origins)
    sigma = density(rays, t.expand(1, rays.count, -1).contiguous())[0].relu()
    _check_finite(sigma)
    absorbed = torch.zeros_like(sigma)
    absorbed[:, 1:] = torch.cumsum((sigma[:, 1:] + sigma[:, :-1]) / 2 * (t[1] - t[0]), dim=1)
    ends = absorbed[:, -1] > math.log(2)
    if not bool(ends.any()):
        raise UserError(
            "mesh: no camera of the model's prior sees anything that absorbs half of the light, so "
            "there is no surface; train the model longer, or give a level"
        )
    sigma, absorbed = sigma[ends], absorbed[ends]
    half = _crossings(t, absorbed, absorbed.new_tensor([math.log(2)]))
    after = torch.searchsorted(t, half.contiguous()).clamp(1, _SAMPLES - 1)
    # the larger of both neighbours: one alone may be next to a thin sheet
    there = torch.maximum(sigma.gather(1, after), sigma.gather(1, after - 1))
    highest = float(torch.quantile(there, 0.95))
    levels = highest * torch.logspace(math.log10(_LOWEST), math.log10(_HIGHEST), _LEVELS).to(t)
    error = (_crossings(t, sigma, levels) - half).abs().clamp(max=spacing).mean(dim=0)
    return float(levels[error <= error.min() + _AS_GOOD * spacing][0])


def _crossings(
    t: Float[Tensor, " samples"], values: Float[Tensor, "rays samples"], levels: Tensor
) -> Float[Tensor, "rays levels"]:
    """The depth where each ray's values first reach each level; infinite where they never do."""
    highest = values.cummax(dim=1).values
    after = torch.searchsorted(highest, levels.expand(len(values), -1).contiguous())
    last = len(t) - 1
    index = after.clamp(1, last)
    low, high = values.gather(1, index - 1), values.gather(1, index)
    share = ((levels - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
    return torch.lerp(t[index - 1], t[index], share).masked_fill(after > last, torch.inf)


def surface(
    density: Density, volume: SampledVolume, level: float, resolution: int, chunk: int = CHUNK
) -> trimesh.Trimesh:
    """The closed surface around what is denser than a level, cut off where the volume ends.

    Vertices are in world units, faces point outward.

    Args:
        resolution: grid points along the longest side of the volume's box.
        chunk: samples evaluated at a time; changes memory, not the surface.

    Raises:
        UserError: if nothing is that dense, or the density is NaN or infinite.
    """
    values, corner, voxel = _grid(density, volume, level, resolution, chunk)
    if values.max() < 0:
        raise UserError(
            f"mesh: nothing that cameras sample is denser than the level, {level:.4g}; give a "
            "lower one"
        )
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    return trimesh.Trimesh(vertices * voxel + corner, faces, process=False)


def _grid(
    density: Density, volume: SampledVolume, level: float, resolution: int, chunk: int
) -> tuple[Float32[np.ndarray, "x y z"], Float[np.ndarray, " 3"], float]:
    """Values that are positive inside the body, the grid's lowest corner, and the voxel size.

    A value is σ − level, or the distance to the volume's boundary times level/voxel where that is
    less. The outermost points are outside. Values are exact in the blocks of `stride`³ voxels that
    the surface may cross; elsewhere they have the sign of a block's lowest corner.
    """
    low, high = volume.bounds()
    voxel = float((high - low).max()) / (resolution - 1)
    stride = max(1, resolution // _BLOCKS)
    sides = [math.ceil(float(side) / voxel) + 1 for side in high - low]
    # (block, point of the block); a last block for the points on the far sides
    x, y, z = (
        (torch.arange((math.ceil((n - 1) / stride) + 1) * stride).to(low) * voxel + a).view(
            -1, stride
        )
        for n, a in zip(sides, low, strict=True)
    )
    lowest = torch.cartesian_prod(x[:, 0], y[:, 0])
    values = torch.cat(
        [
            _excess(
                density, volume, level, voxel, lowest[part], z[:, 0].expand(len(lowest[part]), -1)
            )
            for part in chunks(len(lowest), chunk // len(z))
        ]
    ).view(len(x), len(y), len(z))
    if stride > 1:
        index = _crossed(values).nonzero()
        # (block, point of the block) along each axis
        values = values.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        values = values.repeat_interleave(stride, 2)
        blocks = values.view(*(n for a in (x, y, z) for n in a.shape)).permute(0, 2, 4, 1, 3, 5)
        for part in chunks(len(index), chunk // stride**3):
            i, j, k = index[part].to(low.device).unbind(dim=1)
            corner = torch.stack(torch.broadcast_tensors(x[i][:, :, None], y[j][:, None]), dim=-1)
            t = z[k][:, None, None].expand(-1, stride, stride, -1).flatten(0, 2)
            fine = _excess(density, volume, level, voxel, corner.flatten(0, 2), t)
            blocks[tuple(index[part].T)] = fine.view(-1, stride, stride, stride)
    grid = values[: sides[0], : sides[1], : sides[2]].contiguous().numpy()
    for axis in range(3):
        ends = np.moveaxis(grid, axis, 0)[:: grid.shape[axis] - 1]
        np.minimum(ends, -level, out=ends)
    return grid, low.cpu().double().numpy(), voxel


def _excess(
    density: Density,
    volume: SampledVolume,
    level: float,
    voxel: float,
    across: Float[Tensor, "rows 2"],
    t: Float[Tensor, "rows points"],
) -> Float32[Tensor, "rows points"]:
    """`_grid`'s values on the CPU, at heights t above points of the plane z = 0."""
    origins = F.pad(across, (0, 1))[None]
    rays = Rays(origins, origins.new_tensor([0.0, 0.0, 1.0]).expand_as(origins))
    t = t[None].contiguous()
    sigma = density(rays, t)
    _check_finite(sigma)
    inside = sigma > level
    excess = sigma - level
    # only inside: points below the level are outside anyway
    to_end = volume.signed_distance(rays.at(t)[inside]) * (level / voxel)
    excess[inside] = torch.minimum(excess[inside], to_end)
    # a vertex on a grid point would have faces without area, which break the mesh in programs that
    # merge equal points
    small = excess.abs() < 1e-3 * level
    excess[small] = torch.where(excess[small] < 0, -1e-3, 1e-3).to(excess) * level
    return excess[0].float().cpu()


def _crossed(values: Float[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """Blocks with a point whose value the surface may need, from the values at lowest corners.

    The surface may cross a block unless the values at its corners and at those of its neighbours
    are beyond zero by more than half of what they vary there.
    """
    corners = values[None]
    highest = F.max_pool3d(corners, 4, stride=1, padding=2)
    lowest = -F.max_pool3d(-corners, 4, stride=1, padding=2)
    margin = (highest - lowest) / 2
    crossed = ((highest + margin > 0) & (lowest - margin < 0)).float()
    # (x + 1, …) blocks between corners, of which the outermost lie outside the grid; a block's
    # points are its own, and those of its neighbours' lowest sides
    return F.max_pool3d(crossed, 2, stride=1)[0] > 0


def _check_finite(sigma: Tensor) -> None:
    """Raises UserError for a density that is NaN or infinite."""
    if not bool(torch.isfinite(sigma).all()):
        raise UserError(
            "mesh: the model's density is NaN or infinite, so its weights or codes are damaged; "
            "load the model again, or use other codes"
        )


def outward_parts(mesh: trimesh.Trimesh, largest: bool = True) -> trimesh.Trimesh:
    """The connected part of the largest volume, or all parts without the walls of inner hollows."""
    of_vertex = trimesh.graph.connected_component_labels(mesh.edges, node_count=len(mesh.vertices))
    label = of_vertex[mesh.faces[:, 0]]
    a, b, c = mesh.triangles.swapaxes(0, 1)
    tetrahedra = np.einsum("fk,fk->f", a, np.cross(b, c)) / 6  # between each face and the origin
    volumes = np.bincount(label, weights=tetrahedra)  # negative for a hollow
    kept = label == volumes.argmax() if largest else volumes[label] > 0
    mesh.update_faces(kept)
    mesh.remove_unreferenced_vertices()
    return mesh
