"""Meshes of generators: their colours, errors, and files read back."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

import cips3d
import tiny
from cips3d.camera import PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.export.meshes import extract_mesh, linear, save_mesh
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.models.types import Latents, RayOutput, Styles

#: Has a round body before any training.
SOLID = tiny.generator(density_gain=40.0, density_blob=60.0, coarse=12)
RED, GREEN, BLUE = torch.eye(3) * 2 - 1


def solid(**changes: Any) -> ImageGenerator:
    torch.manual_seed(0)
    generator = build_generator(tiny.generator(SOLID, **changes))
    generator.update_style_means(50)
    return generator.eval()


class Balls(Generator):
    """Opaque balls on a blue background.

    A ball of two colours has the first on its left (x below its centre's), the second on its right.
    """

    def __init__(
        self, *balls: tuple[tuple[float, float, float], float, tuple[Tensor, ...]]
    ) -> None:
        super().__init__(SOLID)
        self.balls = balls

    def density_along(self, rays: Rays, t: Tensor, styles: Styles) -> Tensor:
        points = rays.at(t)
        return 1e6 * torch.stack(
            [r - (points - torch.tensor(c)).norm(dim=-1) for c, r, _ in self.balls]
        ).amax(dim=0)

    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Any, draws: Any = None
    ) -> RayOutput:
        depth = rays.origins.new_full(rays.origins.shape[:2], math.inf)
        rgb = BLUE.expand(*depth.shape, 3).clone()
        for centre, radius, colors in self.balls:
            offset = rays.origins - torch.tensor(centre)
            b = (offset * rays.directions).sum(dim=-1)
            t = -b - (b.square() - offset.square().sum(dim=-1) + radius**2).sqrt()
            nearer = t < depth  # not where t is NaN
            depth = torch.where(nearer, t, depth)
            right = (rays.origins + t[..., None] * rays.directions)[..., 0] > centre[0]
            rgb = torch.where(
                nearer[..., None], torch.where(right[..., None], colors[-1], colors[0]), rgb
            )
        opacity = torch.isfinite(depth).to(depth)
        depth = depth.clamp(max=1.12)
        return RayOutput(rgb, rgb, depth, opacity, 0 * depth, rgb)


def shown(colors: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(colors[:, :3])).float() / 127.5 - 1


# ---------------------------------------------------------------- geometry
FIXED = {"embedding": "fixed", "embedding_octaves": 2}


@pytest.mark.parametrize(
    "changes", [{}, {"architecture": "pi-gan"}, FIXED, {"view_direction": True}]
)
def test_any_radiance_field_has_a_closed_mesh(changes: dict[str, Any]) -> None:
    generator = solid(**changes)
    z = generator.sample_latents(2, 0)
    mesh = cips3d.extract_mesh(generator, z[0], 32, psi=1.0)
    assert mesh.is_watertight and mesh.volume > 0
    assert mesh.visual.kind == "vertex" and mesh.visual.vertex_colors.shape == (
        len(mesh.vertices),
        4,
    )
    # the level's surface is where the density has that value
    points = torch.from_numpy(mesh.vertices).float()[None]
    with torch.no_grad():
        sigma = generator.density(points, generator.map(z[0]))
    assert float((sigma - mesh.metadata["level"]).abs().median()) < 0.05 * mesh.metadata["level"]


def test_the_same_codes_give_the_same_mesh() -> None:
    generator = solid()
    z = generator.sample_latents(2, 0)
    first, again = (
        extract_mesh(generator, z[0], 20, psi=0.7),
        extract_mesh(generator, generator.map(z[0], 0.7), 20),
    )
    other = extract_mesh(generator, z[1], 20, psi=0.7)
    assert np.array_equal(first.vertices, again.vertices)
    assert np.array_equal(first.visual.vertex_colors, again.visual.vertex_colors)
    assert not np.array_equal(first.vertices, other.vertices)
    means = [extract_mesh(generator, z[i], 20, psi=0.0).vertices for i in range(2)]
    assert np.array_equal(*means)


def test_chunks_and_double_precision_change_no_mesh() -> None:
    generator = solid()
    z = generator.sample_latents(1, 0)
    whole, parts = (
        extract_mesh(generator, z, 20, level=20.0, chunk=c, colors=False) for c in (2**18, 700)
    )
    assert np.allclose(whole.vertices, parts.vertices, atol=1e-6) and np.array_equal(
        whole.faces, parts.faces
    )
    double = extract_mesh(
        generator.double(), Latents(z.shape.double(), z.appearance.double()), 20, level=20.0
    )
    assert np.allclose(whole.vertices, double.vertices, atol=1e-5)
    assert whole.metadata["level"] == 20.0 and whole.visual.kind is None


def test_autocast_changes_no_mesh() -> None:
    generator = solid()
    styles = generator.map(generator.sample_latents(1, 0))
    plain = extract_mesh(generator, styles, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = extract_mesh(generator, styles, 16)
    assert np.array_equal(plain.vertices, half.vertices)
    assert np.array_equal(plain.visual.vertex_colors, half.visual.vertex_colors)


def test_a_prepared_subject_has_the_same_mesh() -> None:
    generator = cips3d.load("heads")
    styles = generator.map(generator.sample_latents(1, 0))
    assert isinstance(generator, Generator)
    plain = extract_mesh(generator, styles, 48)
    ready = extract_mesh(generator, generator.prepare(styles, "float32"), 48)
    assert np.array_equal(plain.vertices, ready.vertices)
    difference = np.abs(plain.visual.vertex_colors.astype(int) - ready.visual.vertex_colors)
    assert np.quantile(difference, 0.99) <= 1


def test_separate_parts() -> None:
    generator = Balls(((0.04, 0.0, 0.0), 0.02, (RED,)), ((-0.03, 0.0, 0.0), 0.03, (GREEN,)))
    z = generator.sample_latents(1, 0)
    assert extract_mesh(generator, z, 40).body_count == 1
    both = extract_mesh(generator, z, 40, largest=False)
    assert both.body_count == 2 and both.is_watertight


# ---------------------------------------------------------------- colours
def test_vertices_have_the_colours_that_cameras_see() -> None:
    generator = Balls(((0.0, 0.0, 0.0), 0.06, (RED, GREEN)))
    mesh = extract_mesh(generator, generator.sample_latents(1, 0), 64)
    colors, x, z = shown(mesh.visual.vertex_colors), *mesh.vertices[:, [0, 2]].T
    assert float(colors[:, 2].max()) < -0.98, "the background is on the ball"
    edge = 0.004
    assert torch.allclose(colors[(x < -edge) & (z > 0.02)], RED, atol=0.01)
    assert torch.allclose(colors[(x > edge) & (z > 0.02)], GREEN, atol=0.01)
    # behind, the colours go from side to side
    behind = z < -0.03
    assert (
        float(torch.corrcoef(torch.stack([colors[behind, 1], torch.from_numpy(x[behind])]))[0, 1])
        > 0.9
    )
    assert torch.allclose(colors[:, 0] + colors[:, 1], torch.zeros(len(x)), atol=0.03)


def test_what_occludes_a_vertex_does_not_colour_it() -> None:
    generator = Balls(((0.0, 0.0, 0.06), 0.03, (RED,)), ((0.0, 0.0, -0.05), 0.04, (GREEN,)))
    mesh = extract_mesh(generator, generator.sample_latents(1, 0), 64, largest=False)
    colors, z = shown(mesh.visual.vertex_colors), mesh.vertices[:, 2]
    assert torch.allclose(colors[z > 0], RED, atol=0.01)
    assert torch.allclose(colors[z < 0], GREEN, atol=0.01)


def test_a_part_that_no_camera_sees_has_the_mean_colour() -> None:
    generator = Balls(((0.0, 0.0, 0.05), 0.05, (RED,)), ((0.0, 0.0, -0.02), 0.008, (GREEN,)))
    mesh = extract_mesh(generator, generator.sample_latents(1, 0), 80, largest=False)
    assert mesh.body_count == 2
    assert torch.allclose(
        shown(mesh.visual.vertex_colors), RED.expand(len(mesh.vertices), 3), atol=0.01
    )


@pytest.mark.parametrize(("yaw_std", "pitch_std"), [(0.0, 0.155), (0.3, 0.0), (0.0, 0.0)])
def test_a_prior_without_spread_sees_the_colours_too(yaw_std: float, pitch_std: float) -> None:
    generator = Balls(((0.0, 0.0, 0.0), 0.06, (RED, GREEN)))
    generator.config = replace(
        generator.config, poses=PoseDistribution(yaw_std=yaw_std, pitch_std=pitch_std)
    )
    mesh = extract_mesh(generator, generator.sample_latents(1, 0), 40)
    colors, x, z = shown(mesh.visual.vertex_colors), *mesh.vertices[:, [0, 2]].T
    assert torch.allclose(colors[(x < -0.006) & (z > 0.03)], RED, atol=0.02)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"resolution": 7}, "resolution is 7; it must be at least 8"),
        ({"resolution": 2000}, "resolution is 2000; it must be at most 1024"),
        ({"level": 0.0}, r"level is 0\.0; it must be above 0"),
        ({"level": -1.0}, "level"),
        ({"level": math.nan}, "level is nan"),
        ({"level": math.inf}, "level is inf"),
        ({"level": 1e9}, "nothing .* is denser than the level"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], says: str) -> None:
    generator = solid()
    with pytest.raises(UserError, match=says):
        extract_mesh(generator, generator.sample_latents(1, 0), **{"resolution": 16} | arguments)


def test_generators_without_a_surface() -> None:
    torch.manual_seed(0)
    flat = build_generator(tiny.generator(SOLID, architecture="cips-2d"))
    with pytest.raises(UserError, match="architecture cips-2d has no density"):
        extract_mesh(flat, flat.sample_latents(1, 0), 16)
    fog = solid(density_gain=1.0, density_blob=0.0)
    with pytest.raises(UserError, match="there is no surface"):
        extract_mesh(fog, fog.sample_latents(1, 0), 16)
    spoilt = solid()
    with torch.no_grad():
        spoilt.nerf.density.bias.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        extract_mesh(spoilt, spoilt.sample_latents(1, 0), 16)
    generator = solid()
    with pytest.raises(UserError, match="3 codes; give one"):
        extract_mesh(generator, generator.sample_latents(3, 0), 16)


def test_a_surface_that_no_camera_sees_has_no_colours() -> None:
    generator = Balls(((0.0, 0.0, 0.0), 0.06, (RED,)))
    generator.render_rays = lambda *a: replace(
        Balls.render_rays(generator, *a), opacity=torch.zeros(1, a[1].count)
    )  # type: ignore
    z = generator.sample_latents(1, 0)
    with pytest.raises(UserError, match="no camera sees the surface"):
        extract_mesh(generator, z, 16)
    assert extract_mesh(generator, z, 16, colors=False).is_watertight


# ---------------------------------------------------------------- files
@pytest.fixture(scope="module")
def mesh() -> trimesh.Trimesh:
    generator = Balls(((0.0, 0.0, 0.0), 0.06, (torch.tensor([-0.8, 0.1, 0.7]), GREEN)))
    return extract_mesh(generator, generator.sample_latents(1, 0), 32)


def reloaded(path: Path, **options: Any) -> trimesh.Trimesh:
    found = trimesh.load(path, **options)
    return next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".GLB"])
@pytest.mark.parametrize("process", [False, True])
def test_files_hold_the_mesh(
    mesh: trimesh.Trimesh, suffix: str, process: bool, tmp_path: Path
) -> None:
    save_mesh(tmp_path / f"a{suffix}", mesh)
    found = reloaded(tmp_path / f"a{suffix}", process=process)
    assert found.is_watertight and len(found.faces) == len(mesh.faces)
    assert found.volume == pytest.approx(mesh.volume, rel=1e-4)
    if process:
        return  # which may change the order
    assert np.allclose(found.triangles, mesh.triangles, atol=1e-6)
    assert np.allclose(
        found.vertex_normals[found.faces], mesh.vertex_normals[mesh.faces], atol=1e-5
    )
    expected = mesh.visual.vertex_colors[mesh.faces][..., :3] / 255
    if (
        suffix.lower() == ".glb"
    ):  # which has a material too: trimesh then keeps the colours elsewhere
        assert np.allclose(
            found.visual.vertex_attributes["color"][found.faces], linear(expected), atol=1e-6
        )
    else:
        assert np.array_equal(found.visual.vertex_colors[found.faces][..., :3] / 255, expected)


def test_a_mesh_without_colours(tmp_path: Path) -> None:
    generator = solid()
    plain = extract_mesh(generator, generator.sample_latents(1, 0), 16, colors=False)
    for suffix in (".ply", ".obj", ".glb"):
        save_mesh(tmp_path / f"a{suffix}", plain)
        assert len(reloaded(tmp_path / f"a{suffix}").faces) == len(plain.faces)
    assert "COLOR_0" not in gltf(tmp_path / "a.glb")["meshes"][0]["primitives"][0]["attributes"]


def gltf(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert data[:4] == b"glTF" and struct.unpack("<I", data[8:12])[0] == len(data)
    return json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])


def test_glb_is_as_viewers_expect_it(mesh: trimesh.Trimesh, tmp_path: Path) -> None:
    save_mesh(tmp_path / "a.glb", mesh)
    tree = gltf(tmp_path / "a.glb")
    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    color = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (color["componentType"], color["type"]) == (5126, "VEC3")  # floats
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert tree["meshes"][0]["extras"]["level"] == mesh.metadata["level"]


def test_trimesh_can_export_it_too(mesh: trimesh.Trimesh, tmp_path: Path) -> None:
    mesh.export(tmp_path / "head.glb")
    found = reloaded(tmp_path / "head.glb", process=False)
    assert found.is_watertight and np.array_equal(
        found.visual.vertex_colors, mesh.visual.vertex_colors
    )


def test_linear_light() -> None:
    assert linear(np.array([0.0, 0.04045, 0.5, 1.0])) == pytest.approx(
        [0.0, 0.0031308, 0.2140411, 1.0], abs=1e-6
    )


def test_files_are_whole_or_not_there(mesh: trimesh.Trimesh, tmp_path: Path) -> None:
    for name in ("a.stl", "a", "a.ply.txt"):
        with pytest.raises(UserError, match=r"must end in \.ply, \.obj or \.glb"):
            save_mesh(tmp_path / name, mesh)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        save_mesh(tmp_path / "file" / "a.ply", mesh)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_public_name_is_there() -> None:
    assert all(getattr(cips3d, name) is not None for name in cips3d.__all__)


def test_the_public_names_come_when_they_are_asked_for() -> None:
    assert cips3d.extract_mesh is extract_mesh and cips3d.save_mesh is save_mesh
    assert {"extract_mesh", "save_mesh"} <= set(cips3d.__all__)
    with pytest.raises(AttributeError, match="no attribute 'extract_cube'"):
        cips3d.extract_cube  # noqa: B018
