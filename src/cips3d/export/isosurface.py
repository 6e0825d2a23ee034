"""From a density to a closed surface: the volume that cameras sample, the level of the surface, a grid, marching cubes.

A density is a function of rays and depths, as `RadianceField.density_along` is: the rows of a grid are rays too, and an
analytic shape goes the same way as a radiance field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Float32
from skimage.measure import marching_cubes
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.models.config import GeneratorConfig

#: Raw density σ (per world unit; there is nothing where it is not positive) of one subject, at depths t of rays.
Density = Callable[[Rays, Float[Tensor, "1 rays samples"]], Float[Tensor, "1 rays samples"]]

#: Typical cameras, in standard deviations of the prior (the same quantiles of one that is not Gaussian).
_YAWS, _PITCHES = (-2.0, -1.0, 0.0, 1.0, 2.0), (-1.0, 0.0, 1.0)
#: Rays along a side of each typical camera's picture and samples on each of them, where the level is looked for.
_SIDE, _SAMPLES = 24, 128
#: Levels that are tried, from and to these shares of the density where nearly all rays have ended: a uniform body's own density
#: is none of them, because noise would make holes in such a surface.
_LEVELS, _LOWEST, _HIGHEST = 64, 1 / 64, 0.8
#: A lower level is as good as the best one if it is worse by this share of a sample spacing at most.
_AS_GOOD = 0.01
#: Samples of the grid that are evaluated at a time.
CHUNK = 2**18


def typical_cameras(poses: PoseDistribution) -> Camera:
    """Fifteen cameras that stand for a prior: yaws up to two standard deviations, pitches up to one."""
    yaw, pitch = torch.meshgrid(torch.tensor(_YAWS), torch.tensor(_PITCHES), indexing="ij")
    draws = torch.stack([yaw.flatten(), pitch.flatten()], dim=-1)
    return poses.camera(draws if poses.kind == "gaussian" else torch.special.ndtr(draws))


@dataclass(frozen=True)
class SampledVolume:
    """Where a density can be believed: what more than half of the typical cameras sample, and lies beyond no far plane.

    A camera samples its frustum between a near and a far depth. What lies outside has never had to do with a picture, and what
    only the rarest cameras see, little. The union of all frusta would take that in; their intersection is so narrow that it
    cuts off shoulders which every common view shows. Beyond the far plane one camera is enough, because a model may paint the
    background there, and one camera's wall is in the middle of another's frustum. The ball around the origin whose radius is
    the half depth is never cut there.

    Attributes:
        cameras: the typical ones.
        near, far: depths between which they sample, world units.
    """

    cameras: Camera
    near: float
    far: float

    @staticmethod
    def of(config: GeneratorConfig) -> SampledVolume:
        """The volume of a model; without the last interval of samples where that belongs to the background.

        With an endless last interval any density on the last sample is opaque, and with "last" that sample takes what light is
        left whatever its density: densities there paint the background and would become a wall behind the subject.
        """
        radius, extent = config.poses.radius, config.networks.extent
        painted = (
            sample_spacing(config) if config.networks.background in ("endless", "last") else 0.0
        )
        return SampledVolume(
            typical_cameras(config.poses), max(0.0, radius - extent), radius + extent - painted
        )

    def to(self, *args, **kwargs) -> SampledVolume:
        """The same volume with `Tensor.to(*args, **kwargs)` applied."""
        return SampledVolume(self.cameras.to(*args, **kwargs), self.near, self.far)

    def signed_distance(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        """Distance to the volume's boundary in world units, positive inside; exact near smooth parts of it.

        Over the cameras it is the median of the distances to the frusta's sides and near ends, which is positive where most of
        those are, and the least of the distances to the far ends. Both are continuous: a surface that ends at the boundary is
        cut smoothly, not along the voxels.
        """
        pose = self.cameras.cam_to_world
        local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
        half = torch.deg2rad(self.cameras.fov)[:, None] / 2
        aside = -local[..., 2] * half.sin() - local[..., :2].abs().amax(dim=-1) * half.cos()
        distance = local.norm(dim=-1)
        seen = torch.minimum(aside, distance - self.near).median(dim=0).values
        return torch.minimum(seen, self.far - distance.amax(dim=0))

    def bounds(self) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
        """Lowest and highest corner of a box around the volume.

        Raises:
            UserError: if there is no point that most typical cameras sample.
        """
        radius = float(self.cameras.position.norm(dim=-1).max())
        corner = math.atan(math.sqrt(2) * math.tan(math.radians(float(self.cameras.fov.max())) / 2))
        reach = math.sqrt(
            max(
                radius**2 + depth**2 - 2 * radius * depth * math.cos(corner)
                for depth in (self.near, self.far)
            )
        )
        axis = torch.linspace(-reach, reach, 48).to(self.cameras.cam_to_world)
        points = torch.cartesian_prod(axis, axis, axis)
        points = points[self.signed_distance(points) > 0]
        if len(points) == 0:
            raise UserError(
                "mesh: the cameras of the model's prior have no volume in common; give it a wider extent or field of view"
            )
        margin = axis[1] - axis[0]
        return points.amin(dim=0) - margin, points.amax(dim=0) + margin

    def rays(self, side: int) -> Rays:
        """The rays of all typical cameras' pictures in one row."""
        rays = self.cameras.rays(side, side)
        return Rays(rays.origins.flatten(0, 1)[None], rays.directions.flatten(0, 1)[None])


def sample_spacing(config: GeneratorConfig) -> float:
    """Distance between the stratified samples of a ray, world units: as finely as a model knows depth."""
    return 2 * config.networks.extent / (config.sampling.coarse - 1)


def surface_level(density: Density, volume: SampledVolume, spacing: float) -> float:
    """The density whose level surface lies where the typical cameras' pictures have the subject's surface.

    A ray of a picture ends where half of its light is absorbed, ∫σ dt = ln 2. The level is the one whose surface rays meet
    nearest to there: with the smallest mean absolute difference of depths, where no ray counts for more than `spacing` (as one
    does that misses the surface). Of levels that are equally good it is the lowest.

    Args:
        spacing: world units; the depth that an error is cut off at.

    Raises:
        UserError: if no ray absorbs half of its light.
    """
    rays = volume.rays(_SIDE)
    t = torch.linspace(volume.near, volume.far, _SAMPLES).to(rays.origins)
    sigma = density(rays, t.expand(1, rays.count, -1).contiguous())[0].relu()
    _check_finite(sigma)
    absorbed = torch.zeros_like(sigma)
    absorbed[:, 1:] = torch.cumsum((sigma[:, 1:] + sigma[:, :-1]) / 2 * (t[1] - t[0]), dim=1)
    ends = absorbed[:, -1] > math.log(2)
    if not bool(ends.any()):
        raise UserError(
            "mesh: no camera of the model's prior sees anything that absorbs half of the light, so there is no surface; "
            "train the model for longer, or give a level"
        )
    sigma, absorbed = sigma[ends], absorbed[ends]
    half = _crossings(t, absorbed, absorbed.new_tensor([math.log(2)]))
    after = torch.searchsorted(t, half.contiguous()).clamp(1, _SAMPLES - 1)
    there = torch.maximum(
        sigma.gather(1, after), sigma.gather(1, after - 1)
    )  # one alone may be beside a thin sheet
    highest = float(torch.quantile(there, 0.95))
    levels = highest * torch.logspace(math.log10(_LOWEST), math.log10(_HIGHEST), _LEVELS).to(t)
    error = (_crossings(t, sigma, levels) - half).abs().clamp(max=spacing).mean(dim=0)
    return float(levels[error <= error.min() + _AS_GOOD * spacing][0])


def _crossings(
    t: Float[Tensor, " samples"],
    values: Float[Tensor, "rays samples"],
    levels: Float[Tensor, " levels"],
) -> Float[Tensor, "rays levels"]:
    """The depth where each ray's values first reach each level; infinite where they never do."""
    highest = values.cummax(dim=1).values
    after = torch.searchsorted(highest, levels.expand(len(values), -1).contiguous())
    last = len(t) - 1
    index = after.clamp(1, last)
    before, at = values.gather(1, index - 1), values.gather(1, index)
    share = ((levels - before) / (at - before)).nan_to_num(0.0).clamp(0, 1)
    return torch.lerp(t[index - 1], t[index], share).masked_fill(after > last, torch.inf)


def surface(
    density: Density, volume: SampledVolume, level: float, resolution: int, chunk: int = CHUNK
) -> trimesh.Trimesh:
    """The closed surface of what is denser than a level, cut off where the volume ends; in world units, faces outward.

    Args:
        resolution: points of the grid along the longest side of the volume's box.
        chunk: samples evaluated at a time; changes memory, not the surface.

    Raises:
        UserError: if nothing is that dense, or the density is NaN or infinite.
    """
    values, corner, voxel = _grid(density, volume, level, resolution, chunk)
    if values.max() < 0:
        raise UserError(
            f"mesh: nothing that cameras sample is denser than the level, {level:.4g}; give a lower one"
        )
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    return trimesh.Trimesh(vertices * voxel + corner, faces, process=False)


def _grid(
    density: Density, volume: SampledVolume, level: float, resolution: int, chunk: int
) -> tuple[Float32[np.ndarray, "x y z"], Float[np.ndarray, " 3"], float]:
    """What is positive inside the body, on a grid whose outermost points are outside; its corner and spacing in world units.

    That is σ − level, or less near the volume's boundary: the distance to it, times a slope of a level per voxel.
    """
    low, high = volume.bounds()
    voxel = float((high - low).max()) / (resolution - 1)
    axes = [
        torch.arange(math.ceil(float(h - a) / voxel) + 1).to(low) * voxel + a
        for a, h in zip(low, high, strict=True)
    ]
    x, y, z = axes
    values = np.empty((len(x), len(y), len(z)), dtype=np.float32)
    rows = values.reshape(-1, len(z))
    across = torch.cartesian_prod(x, y)
    step = max(1, chunk // len(z))
    for first in range(0, len(rows), step):
        origins = torch.nn.functional.pad(across[first : first + step], (0, 1))[None]
        rays = Rays(origins, origins.new_tensor([0.0, 0.0, 1.0]).expand_as(origins))
        t = z.expand(1, rays.count, -1).contiguous()
        sigma = density(rays, t)
        _check_finite(sigma)
        inside = sigma > level
        excess = sigma - level
        # elsewhere the volume's end changes nothing: outside is outside
        excess[inside] = torch.minimum(
            excess[inside], volume.signed_distance(rays.at(t)[inside]) * (level / voxel)
        )
        # a vertex on a grid point would have faces without area, which come apart when a program merges equal points
        small = excess.abs() < 1e-3 * level
        excess[small] = torch.where(excess[small] < 0, -1e-3, 1e-3).to(excess) * level
        rows[first : first + step] = excess[0].float().cpu().numpy()
    for side in (
        values[0],
        values[-1],
        values[:, 0],
        values[:, -1],
        values[:, :, 0],
        values[:, :, -1],
    ):
        np.minimum(side, -level, out=side)
    return values, low.cpu().double().numpy(), voxel


def _check_finite(sigma: Tensor) -> None:
    if not bool(torch.isfinite(sigma).all()):
        raise UserError(
            "mesh: the model's density is NaN or infinite; its weights or the codes are damaged; load or make them anew"
        )


def outward_parts(mesh: trimesh.Trimesh, largest: bool = True) -> trimesh.Trimesh:
    """The connected part of the largest volume, or all parts; without the walls of hollows inside, whose volume is negative."""
    label = trimesh.graph.connected_component_labels(mesh.edges, node_count=len(mesh.vertices))[
        mesh.faces[:, 0]
    ]
    volumes = np.bincount(label, weights=_signed_volumes(mesh))
    kept = label == volumes.argmax() if largest else volumes[label] > 0
    mesh.update_faces(kept)
    mesh.remove_unreferenced_vertices()
    return mesh


def _signed_volumes(mesh: trimesh.Trimesh) -> Float[np.ndarray, " faces"]:
    """Volumes of the tetrahedra between each face and the origin."""
    a, b, c = (mesh.triangles[:, k] for k in range(3))
    return np.einsum("fk,fk->f", a, np.cross(b, c)) / 6
