"""Images by strips and crops: the same pixels as the whole, in constant memory; sheets."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from cips3d.camera import Camera, Rays
from cips3d.errors import UserError
from cips3d.export import strips as strips_module
from cips3d.export.media import depth_map, to_uint8
from cips3d.export.sheets import (
    camera_labels,
    image_grid,
    labelled_grid,
    orbit_cameras,
    subject_grid,
    view_sheet,
)
from cips3d.export.strips import ImageFormat, depth_range, image_strips, whole_images
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.models.types import RayDraws, RayOutput, Styles

CONFIG = tiny.generator(density_gain=30.0, density_blob=30.0)
CAMERA = Camera.orbit(0.3, 0.1)


def made(config: GeneratorConfig = CONFIG, dtype: torch.dtype = torch.float32) -> ImageGenerator:
    torch.manual_seed(0)
    generator = build_generator(config).to(dtype).eval().requires_grad_(False)
    generator.update_style_means(50)
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made()


@pytest.fixture
def styles(generator: Generator) -> Styles:
    return generator.map(generator.sample_latents(1, 0))


def small_strips(monkeypatch: pytest.MonkeyPatch, rays: int) -> None:
    monkeypatch.setattr(Generator, "default_chunk", lambda *_: rays)


# ---------------------------------------------------------------- crops
WINDOWS = [
    np.s_[:, :],
    np.s_[3:9, 2:11],
    np.s_[:1, :],
    np.s_[12:, 19:],
    np.s_[5:6, 7:8],
    np.s_[-4:, :-15],
    np.s_[2:40, :90],
]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_rays_of_a_window_are_bit_exactly_those_of_the_image(window) -> None:
    cameras = Camera.cat([CAMERA, Camera.orbit(-0.7, 0.2, 2.0, 40.0)])
    whole, part = cameras.rays(13, 20), cameras.rays(13, 20, window)
    for name in ("origins", "directions"):
        pixels = getattr(whole, name).view(2, 13, 20, 3)[:, window[0], window[1]]
        assert torch.equal(getattr(part, name), pixels.flatten(1, 2))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("architecture", ["cips-3d", "pi-gan", "cips-2d"])
def test_a_crop_rendered_alone_is_that_part_of_the_image(window, architecture) -> None:
    generator = made(tiny.generator(CONFIG, architecture=architecture), torch.float64)
    codes = generator.sample_latents(2, 0)
    whole = generator.render(codes, CAMERA, (13, 20))
    crop = generator.render(codes, CAMERA, (13, 20), window=window, chunk=7)
    for name in ("image", "aux_image", "depth", "opacity", "last_weight"):
        expected = getattr(whole, name)[:, :, window[0], window[1]]
        torch.testing.assert_close(getattr(crop, name), expected, atol=1e-12, rtol=0)


def test_the_draws_of_a_crop_are_those_of_its_rays(generator: Generator, styles: Styles) -> None:
    draws = RayDraws.sample(1, 48, generator.sampling, 0.5, torch.Generator().manual_seed(0))
    whole = generator.render(styles, CAMERA, (6, 8), draws=draws)
    inside = torch.arange(48).view(6, 8)[2:5, 1:4].flatten()
    crop = generator.render(styles, CAMERA, (6, 8), draws=draws[inside], window=np.s_[2:5, 1:4])
    torch.testing.assert_close(crop.image, whole.image[:, :, 2:5, 1:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [np.s_[4:4, :], np.s_[:, 8:3], np.s_[6:9, :], np.s_[:, 8:]])
def test_an_empty_window(generator: Generator, styles: Styles, window) -> None:
    with pytest.raises(UserError, match=r"^window: no pixel of 6x8"):
        generator.render(styles, CAMERA, (6, 8), window=window)


# ---------------------------------------------------------------- strips
@pytest.mark.parametrize("rays", [12, 20, 50, 75, 10_000])
def test_strips_make_up_the_image(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, rays: int
) -> None:
    codes = generator.map(generator.sample_latents(2, 0))
    out = generator.render(codes, CAMERA, (13, 20))
    small_strips(monkeypatch, rays)
    form = ImageFormat(13, 20, ("nerf", "image"))
    strips = list(image_strips(generator, codes, CAMERA, form))
    assert [strip.shape[2] for strip in strips[:-1]] == [max(1, rays // 20)] * (len(strips) - 1)
    joined = np.concatenate(strips, axis=2)
    assert np.array_equal(joined, whole_images(generator, codes, CAMERA, form))
    for part, image in zip(joined, (out.aux_image, out.image), strict=True):
        assert np.abs(part.astype(int) - to_uint8(image)).max() <= 1
        assert (part != to_uint8(image)).mean() < 0.01, (
            "only what lies between two levels may round to the other"
        )


def test_adaptive_strips_are_close_to_the_image(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, counts = generator.map(generator.sample_latents(2, 0)), []
    render_rays = generator.render_rays

    def counted(styles: Styles, rays: Rays, *others: Any) -> RayOutput:
        counts.append(rays.count * len(rays))
        return render_rays(styles, rays, *others)

    form = ImageFormat(50, 48, ("nerf", "image"))
    full = whole_images(generator, codes, CAMERA, form).astype(int)
    monkeypatch.setattr(generator, "render_rays", counted)
    monkeypatch.setattr(strips_module, "_MOST_RAYS", 2 * 20 * 48)
    strips = list(image_strips(generator, codes, CAMERA, replace(form, adaptive=True)))
    assert [strip.shape[2] for strip in strips] == [20, 20, 10]
    assert sum(counts) < 0.8 * 2 * 50 * 48
    assert np.abs(np.concatenate(strips, axis=2) - full).max() <= 8


def test_strips_hold_the_memory_of_one(
    generator: Generator, styles: Styles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rays are made for one strip at a time, whatever the height."""
    made_rays: list[int] = []
    rays = Camera.rays
    monkeypatch.setattr(
        Camera, "rays", lambda *args: made_rays.append(rays(*args).count) or rays(*args)
    )
    small_strips(monkeypatch, 64)
    for strip in image_strips(generator, styles, CAMERA, ImageFormat(100, 16)):
        assert strip.shape == (1, 1, 4, 16, 3)
    assert made_rays == [64] * 25


def test_a_large_image_in_a_process_of_its_own() -> None:
    """Half a million pixels need little more memory than an eighth of a million.

    Their rays and outputs would take 100 MB.
    """
    program = """
import resource, torch
from cips3d.camera import Camera
from cips3d.export.strips import ImageFormat, whole_images
from cips3d.models.config import Cips3dNetworks, GeneratorConfig, Sampling
from cips3d.models.generator import Generator
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
networks = Cips3dNetworks(
    shape_dim=4, appearance_dim=4, shape_style_dim=4, appearance_style_dim=4, nerf_width=2,
    nerf_layers=1, feature_dim=2, inr_width=2, inr_blocks=1, rgb_from_block=0,
    residual_from_block=1,
)
config = GeneratorConfig(networks, Sampling(2, 0))
generator = Generator(config).eval().requires_grad_(False)
styles, camera = generator.map(generator.sample_latents(1, 0)), Camera.orbit(0.0)
whole_images(generator, styles, camera, ImageFormat(128, 1024))
before = peak()
assert whole_images(generator, styles, camera, ImageFormat(512, 1024)).nbytes == 3 * 512 * 1024
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 40


# ---------------------------------------------------------------- supersampling
@pytest.mark.parametrize("n", [2, 3])
def test_supersampling_is_the_mean_of_a_larger_image(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    generator = made(dtype=torch.float64)
    styles = generator.map(generator.sample_latents(1, 0))
    large = generator.render(styles, CAMERA, (6 * n, 9 * n))
    small_strips(monkeypatch, 2 * 9 * n * n)  # rays of two rows
    depths = (-0.05, 0.05)
    form = ImageFormat(6, 9, ("image", "depth"), supersample=n)
    strips = list(image_strips(generator, styles, CAMERA, form, depths))
    assert [strip.shape[2] for strip in strips] == [2, 2, 2]
    distance = CAMERA.position.norm(dim=-1)
    depth = depth_map(large.depth - distance, large.opacity, *depths)
    for part, fine in zip(np.concatenate(strips, axis=2), (large.image, depth), strict=True):
        mean = fine.double().clamp(-1, 1).view(1, 3, 6, n, 9, n).mean(dim=(3, 5))
        assert np.abs(part[0].astype(int) - to_uint8(mean)[0]).max() <= 1


def test_supersampling_moves_no_pixel() -> None:
    """The mean over a pixel of a smooth image is what its centre shows.

    The authors' corner grid has its pixels elsewhere, and a finer one elsewhere again.
    """
    generator = made(CONFIG, torch.float64)
    styles = generator.map(generator.sample_latents(1, 0))
    camera = CAMERA.from_corner_grid(32)
    plain, fine = (
        whole_images(generator, styles, camera, ImageFormat(32, 48, supersample=n))[0, 0].astype(
            float
        )
        for n in (1, 4)
    )
    finer = CAMERA.from_corner_grid(128)
    larger = to_uint8(generator.render(styles, finer, (128, 192)).image)[0].astype(float)
    moved = larger.reshape(32, 4, 48, 4, 3).mean(axis=(1, 3))
    assert np.abs(plain - fine).mean() < 0.5 * np.abs(plain - moved).mean()


def test_values_beyond_white_do_not_bleed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without tanh may exceed white; averages are over displayable values."""
    generator = made(tiny.generator(CONFIG, rgb_tanh=False))
    styles = generator.map(generator.sample_latents(1, 0))
    render = Generator.render

    def bright(*args, **kwargs):
        out = render(*args, **kwargs)
        rows = torch.arange(out.image.shape[2])[:, None].expand(out.image.shape[2:])
        return replace(out, image=torch.where(rows % 2 == 0, 9.0, -1.0).expand_as(out.image))

    monkeypatch.setattr(Generator, "render", bright)
    assert (whole_images(generator, styles, CAMERA, ImageFormat(2, 2, supersample=2)) == 128).all()


# ---------------------------------------------------------------- depth
def test_the_range_of_the_depth_moves_with_the_camera(generator: Generator, styles: Styles) -> None:
    extent = generator.config.networks.extent
    near, far = depth_range(generator, styles, CAMERA)
    assert -extent <= near < far <= extent
    assert depth_range(generator, styles, Camera.orbit(0.3, 0.1, 3.0, 4.0)) == pytest.approx(
        (near, far), abs=0.01
    )
    out = generator.render(styles, CAMERA, 64)
    solid = (out.depth - 1)[out.opacity >= 0.5]
    assert (near, far) == pytest.approx(
        tuple(torch.quantile(solid, torch.tensor([0.02, 0.98])).tolist()), abs=0.01
    )


def test_depth_maps_of_any_strip_share_one_range(
    generator: Generator, styles: Styles, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = whole_images(generator, styles, CAMERA, ImageFormat(12, 12, ("depth",)))
    small_strips(monkeypatch, 12)
    strips = whole_images(generator, styles, CAMERA, ImageFormat(12, 12, ("depth",)))
    assert np.abs(whole.astype(int) - strips).max() <= 1
    assert whole.max() > 128


def test_an_empty_volume_has_a_black_depth_map() -> None:
    generator = made()
    torch.nn.init.zeros_(generator.nerf.density.weight)
    torch.nn.init.constant_(generator.nerf.density.bias, -100.0)
    styles = generator.map(generator.sample_latents(1, 0))
    assert not whole_images(generator, styles, CAMERA, ImageFormat(4, 4, ("depth",))).any()


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 0}, "^image: height is 0; it must be at least 1"),
        ({"width": -1}, "^image: width is -1"),
        ({"show": ()}, "^show: nothing"),
        ({"supersample": 0}, "^image: supersample is 0"),
    ],
)
def test_formats_out_of_range(changes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ImageFormat(**{"height": 4, "width": 4} | changes)


def test_a_camera_within_the_subject(generator: Generator, styles: Styles) -> None:
    cameras = Camera.orbit(torch.tensor([0.0, 0.0]), 0.0, torch.tensor([1.0, 0.1]))
    with pytest.raises(UserError, match=r"^camera: it comes within 0\.1 of the centre"):
        next(image_strips(generator, styles, cameras, ImageFormat(4, 4)))


# ---------------------------------------------------------------- sheets
def test_a_sheet_has_a_row_for_each_kind_and_a_column_for_each_view(generator: Generator) -> None:
    codes, views = generator.sample_latents(2, 0), Camera.orbit(torch.tensor([-0.4, 0.0, 0.4]))
    shares: list[float] = []
    sheet = view_sheet(
        generator,
        codes,
        views,
        (6, 9),
        psi=(0.5, 1.0),
        show=("depth", "image"),
        labels=False,
        progress=shares.append,
    )
    assert sheet.shape == (4 * 8 - 2, 3 * 11 - 2, 3)
    out = generator.render(codes[1], views, (6, 9), psi=(0.5, 1.0))
    for column in range(3):
        cell = sheet[3 * 8 : 3 * 8 + 6, column * 11 : column * 11 + 9]
        assert np.abs(cell.astype(int) - to_uint8(out.image)[column]).max() <= 1
    assert (sheet[6:8] == 255).all() and (sheet[:, 9:11] == 255).all()
    assert shares == [0.5, 1.0]


def test_a_sheet_of_many_views_renders_few_at_a_time(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modulated weights of each view take memory."""
    codes, views = generator.sample_latents(1, 0), Camera.orbit(torch.linspace(-0.6, 0.6, 40))
    at_once: list[int] = []
    render = Generator.render
    monkeypatch.setattr(
        Generator,
        "render",
        lambda self, styles, cameras, *a, **k: (
            at_once.append(len(cameras)),
            render(self, styles, cameras, *a, **k),
        )[1],
    )
    shares: list[float] = []
    sheet = view_sheet(
        generator, codes, views, 6, show=("image", "depth"), labels=False, progress=shares.append
    )
    assert max(at_once) == 16 and shares[-1] == 1 and shares == sorted(shares)
    for j in (0, 17, 39):
        alone = view_sheet(generator, codes, views[j], 6, show="image", labels=False)
        assert np.abs(sheet[:6, j * 8 : j * 8 + 6].astype(int) - alone).max() <= 1


def test_a_grid_of_subjects_shows_each_from_its_own_camera(generator: Generator) -> None:
    codes, views = generator.sample_latents(3, 0), Camera.orbit(torch.tensor([-0.4, 0.0, 0.4]))
    grid = subject_grid(generator, codes, views, 8, psi=0.7, labels=False)
    assert grid.shape == (18, 18, 3)
    for i in range(3):
        alone = to_uint8(generator.render(codes[i], views[i], 8, psi=0.7).image)[0]
        top, left = i // 2 * 10, i % 2 * 10
        assert np.abs(grid[top : top + 8, left : left + 8].astype(int) - alone).max() <= 1
    assert (grid[10:, 10:] == 255).all()


# ---------------------------------------------------------------- labels
def cells_of(sheet: np.ndarray, side: int, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Top left corners of the cells of one colour, checked to be whole."""
    found = (sheet == colour).all(axis=-1)
    corners = []
    for y, x in np.argwhere(found):
        if not found[max(0, y - 1), x] and not found[y, max(0, x - 1)]:
            assert found[y : y + side, x : x + side].all()
            corners.append((int(y), int(x)))
    return corners


def ink(area: np.ndarray) -> bool:
    return bool((area < 128).any())


@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_labels_are_next_to_their_cells_and_cover_none(side: int) -> None:
    red = np.full((side, side, 3), (250, 5, 5), dtype=np.uint8)
    grid = image_grid([red] * 6, 3, ["seed 3\nimage", "NeRF"], ["-30°", "0°", "30°"])
    corners = cells_of(grid, side, (250, 5, 5))
    assert len(corners) == 6
    tops, lefts = sorted({y for y, _ in corners}), sorted({x for _, x in corners})
    assert len(tops) == 2 and len(lefts) == 3
    for left in lefts:
        label = grid[: tops[0], left : left + side]
        assert ink(label[:, side // 3 : 2 * side // 3]), "the heading is not above the middle"
        assert not ink(label[:, : side // 8]) and not ink(label[:, -side // 8 :])
        assert not ink(label[0]) and not ink(label[-1]), "the heading is cut"
    for top in tops:
        label = grid[top : top + side, : lefts[0]]
        assert ink(label[side // 3 : 2 * side // 3]) and not ink(label[: side // 8])
        assert not ink(label[:, 0]) and not ink(label[:, -1]), "the row's label is cut"
    outside = grid.copy()
    for y, x in corners:
        outside[y : y + side, x : x + side] = 255
    height = sum(outside[:, : lefts[0]].min(axis=(1, 2)) < 128)
    assert 0.03 * side < height, "the labels are too small to read"


def test_labels_that_do_not_fit_are_left_out_not_overlapped() -> None:
    """Eight pixels are too few for any label: every Nth one is written."""
    cells = [np.full((8, 8, 3), 200, dtype=np.uint8)] * 20
    grid = image_grid(cells, 20, headings=["100.5°"] * 20)
    columns = (grid < 128).any(axis=(0, 2))
    starts = np.flatnonzero(columns[1:] & ~columns[:-1])
    gaps = np.diff(starts)
    assert len(starts) > 3 and gaps.max() > 6, "headings run into each other"
    assert columns.sum() < 0.9 * len(columns)


def test_headings_can_be_above_any_row() -> None:
    cells = [np.full((64, 64, 3), 200, dtype=np.uint8)] * 4
    grid = image_grid(cells, 2, headings={1: ["w", "w+"]})
    tops = sorted({y for y, _ in cells_of(grid, 64, (200, 200, 200))})
    assert ink(grid[tops[0] + 64 : tops[1]]) and not ink(grid[: tops[0]])
    assert tops[1] - tops[0] > 64 + 10


def test_without_labels_there_is_no_margin() -> None:
    cell = np.zeros((1, 1, 4, 6, 3), dtype=np.uint8)
    grid = labelled_grid(2, 2, (4, 6), [(0, 0, [cell]), (1, 1, [cell[:, :, :3], cell[:, :, 3:]])])
    assert grid.shape == (10, 14, 3)
    expected = np.full((10, 14), 255)
    expected[:4, :6] = expected[6:, 8:] = 0
    assert (grid == expected[..., None]).all()
    with pytest.raises(UserError, match=r"^grid: 0 rows and 2 columns"):
        labelled_grid(0, 2, (4, 6), [])


def test_labels_change_no_cell(generator: Generator) -> None:
    codes, views = generator.sample_latents(2, 0), orbit_cameras(generator, [-30, 30])
    plain = view_sheet(generator, codes, views, 64, labels=False)
    labelled = view_sheet(generator, codes, views, 64, labels=["seed 3", "seed 14"])
    numbered = view_sheet(generator, codes, views, 64)
    bottom, right = labelled.shape[0] - 6, labelled.shape[1] - 6  # without the margin
    cells = labelled[bottom - plain.shape[0] : bottom, right - plain.shape[1] : right]
    assert np.array_equal(cells, plain)
    assert numbered.shape != plain.shape and not np.array_equal(labelled[:, :60], numbered[:, :60])


def test_a_single_image_has_no_labels(generator: Generator) -> None:
    codes, camera = generator.sample_latents(1, 0), orbit_cameras(generator, [20])
    for labels in (True, ["seed 3"]):
        assert view_sheet(generator, codes, camera, 64, show="image", labels=labels).shape == (
            64, 64, 3,
        )  # fmt: skip
        assert subject_grid(generator, codes, camera, 64, labels=labels).shape == (64, 64, 3)


def test_a_column_is_labelled_with_the_angles_that_vary(generator: Generator) -> None:
    assert camera_labels(generator, orbit_cameras(generator, [-22.5, -0.01, 30])) == [
        "-22.5°", "0°", "30°",
    ]  # fmt: skip
    assert camera_labels(generator, orbit_cameras(generator, [25, 25], 10)) == ["25°"] * 2
    tilted = Camera.orbit(torch.tensor([0.0, 0.5]), torch.tensor([0.1, -0.1]))
    assert camera_labels(generator, tilted) == ["yaw 0°\npitch 5.7°", "yaw 28.6°\npitch -5.7°"]
    zoom = Camera.orbit(torch.zeros(2), 0.0, 1.0, torch.tensor([12.0, 40.0]))
    assert camera_labels(generator, zoom) == ["fov 12°", "fov 40°"]
    far = Camera.orbit(0.2, 0.0, fov=torch.tensor([1.2044, 0.01204]))
    assert camera_labels(generator, far) == ["fov 1.2°", "fov 0.012°"]
