"""The generator: every pixel on its own, at any size; truncation; gradients; files."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd import forward_ad

import cips3d
import tiny as configurations
from cips3d.camera import Camera, Rays
from cips3d.configuration import to_dict
from cips3d.errors import UserError
from cips3d.models import generator as generator_module
from cips3d.models.config import Cips3dNetworks, GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.embedding import positional_encoding
from cips3d.models.generator import Generator
from cips3d.models.registry import build_generator
from cips3d.models.types import DEFAULT_PSI, Latents, RayDraws, RenderOutput, Styles
from cips3d.pretrained import load_discriminators, load_main_discriminator

TINY = GeneratorConfig(
    Cips3dNetworks(
        shape_dim=6, appearance_dim=7, shape_style_dim=8, appearance_style_dim=9,
        shape_mapping_layers=2, appearance_mapping_layers=2, nerf_width=12, density_gain=30.0,
        feature_dim=5, inr_width=10, inr_blocks=3, rgb_from_block=1, residual_from_block=2,
        background="plain",
    ),
    Sampling(5, 4),
    resolution=8,
)  # fmt: skip


def tiny(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> Generator:
    torch.manual_seed(seed)
    generator = Generator(configurations.generator(TINY, **changes)).to(dtype)
    generator.update_style_means(100)
    return generator


def setting(generator: Generator, height: int = 6, width: int = 9, draws: bool = True):
    """Styles, rays and draws of two subjects."""
    camera = Camera.orbit(torch.tensor([0.3, -0.5]), torch.tensor([0.1, -0.2])).to(
        generator.shape_mean
    )
    rays = camera.rays(height, width)
    drawn = RayDraws.sample(
        2, rays.count, generator.sampling, 0.5, torch.Generator().manual_seed(3)
    ).to(torch.float64)
    styles = generator.map(generator.sample_latents(2, seed=1))
    return styles, camera, rays, drawn if draws else None


# ---------------------------------------------------------------- independence of pixels
def test_an_image_is_its_rays_row_by_row() -> None:
    generator = tiny()
    styles, camera, rays, draws = setting(generator)
    image = generator.render(styles, camera, (6, 9), draws=draws)
    ray = generator.render_rays(styles, rays, generator.sampling, draws)
    assert torch.allclose(image.image.permute(0, 2, 3, 1).flatten(1, 2), ray.rgb, atol=1e-12)
    assert torch.allclose(
        image.aux_image.permute(0, 2, 3, 1).flatten(1, 2), ray.aux_rgb, atol=1e-12
    )
    for name in ("depth", "opacity", "last_weight"):
        assert torch.allclose(getattr(image, name).flatten(1), getattr(ray, name), atol=1e-12), name


def test_rendering_repeats_and_leaves_no_trace() -> None:
    generator = tiny()
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.3)
    weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    global_state = torch.get_rng_state()
    first, second = (generator.render(z, camera, 5, psi=0.7).image for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in generator.state_dict().items()
    )


@pytest.mark.parametrize("draws", [False, True])
def test_subsets_and_permutations_of_rays_give_the_same_pixels(draws: bool) -> None:
    generator = tiny()
    styles, _, rays, drawn = setting(generator, draws=draws)
    whole = generator.render_rays(styles, rays, generator.sampling, drawn)
    shuffle = torch.randperm(rays.count, generator=torch.Generator().manual_seed(4))
    for chosen in (shuffle, shuffle[:11], shuffle[:1]):
        part = generator.render_rays(
            styles, rays[chosen], generator.sampling, None if drawn is None else drawn[chosen]
        )
        for name in ("rgb", "aux_rgb", "depth", "opacity", "last_weight", "feature"):
            assert (getattr(part, name) - getattr(whole, name)[:, chosen]).abs().max() <= 1e-12, (
                name
            )


@pytest.mark.parametrize("chunk", [1, 7, 53, 54, 1000])
def test_chunks_change_no_pixel(chunk: int) -> None:
    generator = tiny()
    styles, camera, _, drawn = setting(generator)
    whole = generator.render(styles, camera, (6, 9), draws=drawn)
    parts = generator.render(styles, camera, (6, 9), draws=drawn, chunk=chunk)
    assert (whole.image - parts.image).abs().max() <= 1e-12
    assert (whole.depth - parts.depth).abs().max() <= 1e-12


@pytest.mark.parametrize("resolution", [1, 5, 33, (4, 11), (16, 2)])
def test_any_resolution_renders(resolution: int | tuple[int, int]) -> None:
    generator = tiny()
    out = generator.render(generator.sample_latents(1, 0), Camera.orbit(0.2), resolution)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert out.image.shape == (1, 3, height, width)
    assert out.depth.shape == out.opacity.shape == (1, 1, height, width)
    assert bool(torch.isfinite(out.image).all())


def test_a_crop_of_a_larger_image_is_the_smaller_one_seen_from_there() -> None:
    """The middle third of an image with three times the height and tangent is the image."""
    generator = tiny()
    z = generator.sample_latents(1, 0)
    fov = 12.0
    wide = float(
        torch.rad2deg(
            2 * torch.atan(3 * torch.tan(torch.deg2rad(torch.tensor(fov, dtype=torch.float64)) / 2))
        )
    )
    yaw = torch.tensor([0.2], dtype=torch.float64)
    small = generator.render(z, Camera.orbit(yaw, fov=fov), 7)
    large = generator.render(z, Camera.orbit(yaw, fov=wide), 21)
    assert (small.image - large.image[:, :, 7:14, 7:14]).abs().max() < 1e-6


def test_one_code_goes_with_many_cameras_and_one_camera_with_many_codes() -> None:
    generator = tiny()
    z = generator.sample_latents(3, 0)
    cameras = Camera.orbit(torch.tensor([-0.3, 0.0, 0.3]))
    turned = generator.render(z[1], cameras, 4)
    assert torch.allclose(turned.image[2:], generator.render(z[1], cameras[2], 4).image)
    several = generator.render(z, cameras[0], 4)
    assert torch.allclose(several.image[1:2], generator.render(z[1], cameras[0], 4).image)
    with pytest.raises(UserError, match="cameras"):
        generator.render(z[:2], cameras, 4)


def test_the_centre_pixel_is_the_same_at_every_odd_resolution() -> None:
    generator = tiny()
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.3, -0.2)
    centres = [
        generator.render(z, camera, (h, w)).image[:, :, h // 2, w // 2]
        for h, w in ((1, 1), (5, 7), (33, 3))
    ]
    assert torch.allclose(centres[0], centres[1], atol=1e-9)
    assert torch.allclose(centres[0], centres[2], atol=1e-9)


@pytest.mark.parametrize(
    "bad", [{"resolution": 0}, {"resolution": (4, 0)}, {"resolution": 4, "chunk": 0}]
)
def test_impossible_sizes(bad: dict) -> None:
    generator = tiny()
    with pytest.raises(UserError):
        generator.render(generator.sample_latents(1, 0), Camera.orbit(0.0), **bad)


# ---------------------------------------------------------------- codes
def test_latents_depend_on_the_seed_only() -> None:
    generator = tiny()
    first, second = generator.sample_latents(4, 7), generator.sample_latents(4, 7)
    assert torch.equal(first.shape, second.shape)
    assert torch.equal(first.appearance, second.appearance)
    assert not torch.equal(first.shape, generator.sample_latents(4, 8).shape)


def test_latents_are_standard_normal_and_independent() -> None:
    z = tiny().sample_latents(4000, 0)
    codes = torch.cat([z.shape, z.appearance], dim=1)
    assert codes.mean(dim=0).abs().max() < 5 / 4000**0.5
    assert (torch.cov(codes.T) - torch.eye(13)).abs().max() < 0.1


def test_stored_means_are_means_of_mapped_codes() -> None:
    generator = tiny()
    generator.update_style_means(300, seed=5)
    styles = generator.map(generator.sample_latents(300, 5))
    assert isinstance(styles.appearance, Tensor)
    assert torch.allclose(generator.shape_mean, styles.shape.mean(dim=0))
    assert torch.allclose(generator.appearance_mean, styles.appearance.mean(dim=0))


def test_full_truncation_shows_the_mean_subject() -> None:
    generator = tiny()
    z, camera = generator.sample_latents(3, 0), Camera.orbit(0.2)
    mean = generator.render(
        Styles(generator.shape_mean[None], generator.appearance_mean[None]), camera, 4
    ).image
    assert torch.allclose(generator.render(z, camera, 4, psi=0.0).image, mean.expand(3, -1, -1, -1))
    untruncated = generator.render(z, camera, 4, psi=1.0).image
    by_default = generator.render(z, camera, 4).image
    assert torch.equal(by_default, generator.render(z, camera, 4, psi=DEFAULT_PSI).image)
    generator.shape_mean.add_(1.0)
    assert torch.equal(generator.render(z, camera, 4, psi=1.0).image, untruncated)
    assert not torch.allclose(generator.render(z, camera, 4, psi=0.5).image, untruncated)


def test_truncation_goes_to_the_stored_mean() -> None:
    generator = tiny()
    z = generator.sample_latents(3, 0)
    full, none = generator.map(z, psi=1.0), generator.map(z, psi=0.0)
    assert torch.allclose(none.shape, generator.shape_mean.expand(3, -1))
    half = generator.map(z, psi=(0.5, 1.0))
    assert torch.allclose(half.shape, (full.shape + generator.shape_mean) / 2)
    assert isinstance(half.appearance, Tensor)
    assert isinstance(full.appearance, Tensor)
    assert torch.equal(half.appearance, full.appearance)
    generator.shape_mean.add_(1.0)
    assert torch.allclose(generator.map(z, psi=0.0).shape, none.shape + 1), (
        "the stored mean is used, not a fresh one"
    )
    assert torch.equal(generator.map(z).shape, full.shape), "ψ = 1 does not touch it"


def test_a_style_per_block_mixes() -> None:
    generator = tiny()
    styles, camera, _, _ = setting(generator)
    assert isinstance(styles.appearance, Tensor)
    plain = generator.render(styles, camera, 5).image
    repeated = generator.render(Styles(styles.shape, [styles.appearance] * 3), camera, 5).image
    assert torch.equal(plain, repeated)
    mixed = [styles.appearance, styles.appearance, styles.appearance.flip(0)]
    assert not torch.allclose(generator.render(Styles(styles.shape, mixed), camera, 5).image, plain)


# ---------------------------------------------------------------- options
@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": "learned"},
        {"embedding": "fixed", "embedding_octaves": 4},
        {"view_direction": True},
        {"view_direction": True, "embedding": "learned", "nerf_layers": 1},
        {"view_direction": True, "embedding": "fixed", "background": "last"},
        {"nerf_layers": 1},
        {"nerf_layers": 4},
        {"background": "endless"},
        {"background": "last"},
        {"background": "white"},
        {"background": "field"},
        {"fine": 0},
        {"inr_blocks": 9, "rgb_from_block": 0, "residual_from_block": 9, "rgb_tanh": False},
        {"appearance_mapping_norm": False},
    ],
)
def test_every_option_renders_and_trains(changes: dict) -> None:
    generator = tiny(**changes)
    _, camera, _, _ = setting(generator)
    sampling = generator.sampling
    draws = RayDraws.sample(2, 16, sampling, 0.5, torch.Generator().manual_seed(0)).to(
        torch.float64
    )
    out = generator(generator.sample_latents(2, 0), camera, 4, draws)
    (out.image.square().sum() + out.aux_image.square().sum()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("seen", [False, True])
def test_a_point_looks_different_from_elsewhere_only_with_a_view_direction(seen: bool) -> None:
    generator = tiny(view_direction=seen)
    point, w = (
        torch.tensor([[[0.03, -0.02, 0.05]]], dtype=torch.float64),
        torch.ones(1, 8, dtype=torch.float64),
    )
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.6, 0.0, -0.8]]], dtype=torch.float64)
    sigma, feature = generator.nerf(point.expand(1, 2, 3), directions, w)
    assert torch.equal(sigma[:, 0], sigma[:, 1]), "density never depends on the direction"
    assert torch.allclose(feature[:, 0], feature[:, 1]) is not seen


def test_positional_encoding() -> None:
    """Equation 7, written out."""
    x = torch.tensor([[0.3, -0.7, 0.1]], dtype=torch.float64)
    expected = [*x[0].tolist()]
    for value in x[0].tolist():
        for octave in range(4):
            expected += [
                math.sin(2**octave * math.pi * value),
                math.cos(2**octave * math.pi * value),
            ]
    encoded = positional_encoding(x, 4)[0]
    assert sorted(encoded.tolist()) == pytest.approx(sorted(expected))


def test_autocast_leaves_geometry_alone() -> None:
    """Sines, densities and weights keep float32 under autocast; only colours may round."""
    generator = tiny(dtype=torch.float32)
    styles, _, rays, _ = setting(generator, draws=False)
    exact = generator.render_rays(styles, rays, generator.sampling)
    with torch.autocast("cpu", torch.bfloat16):
        fast = generator.render_rays(styles, rays, generator.sampling)
    for name in ("depth", "opacity", "last_weight", "feature"):
        assert torch.equal(getattr(fast, name), getattr(exact, name)), name
    assert (fast.rgb - exact.rgb).abs().max() < 0.05
    camera = Camera.orbit(torch.zeros(2))
    exact_image = generator.render(styles, camera, 8)
    with torch.autocast("cpu", torch.bfloat16):
        image = generator.render(styles, camera, 8)
    assert torch.equal(image.depth, exact_image.depth) and torch.equal(
        image.opacity, exact_image.opacity
    )


def test_backgrounds() -> None:
    """In an empty volume, "plain" shows one feature, "white" ones, "last" the deepest sample."""
    for background in ("plain", "white", "last", "endless"):
        generator = tiny(background=background)
        torch.nn.init.zeros_(generator.nerf.density.weight)
        torch.nn.init.constant_(generator.nerf.density.bias, -1.0)
        styles, _, rays, _ = setting(generator)
        out = generator.render_rays(styles, rays, generator.sampling)
        feature = out.feature
        if background == "white":
            assert torch.allclose(feature, torch.ones_like(feature))
        if background == "plain":
            assert torch.allclose(feature, feature[:, :1].expand_as(feature))
            assert not torch.allclose(feature[0, 0], feature[1, 0]), "each shape code has its own"
        if background == "last":
            assert torch.allclose(out.opacity, torch.ones_like(out.opacity))
            assert torch.allclose(out.last_weight, torch.ones_like(out.opacity))
        else:
            assert float(out.opacity.detach().max()) < 1e-9
        assert torch.allclose(
            out.depth, rays.origins.norm(dim=-1) + generator.networks.extent, atol=1e-6
        )


def in_front(sigma: float) -> Generator:
    """A generator with the background "field" and an even density; empty below 0."""
    generator = tiny(background="field", density_gain=1.0)
    torch.nn.init.zeros_(generator.nerf.density.weight)
    torch.nn.init.constant_(generator.nerf.density.bias, sigma)
    return generator


def test_a_far_sphere_shows_the_direction_and_the_appearance_only() -> None:
    generator = in_front(-1.0)
    styles, camera, rays, _ = setting(generator)
    sampling = generator.sampling
    out = generator.render_rays(styles, rays, sampling)
    assert not out.opacity.any() and float(out.rgb.detach().std(dim=1).min()) > 1e-3
    assert torch.equal(out.rgb, out.aux_rgb)
    elsewhere = Rays(rays.origins * 1.5 + 0.3, rays.directions)
    assert torch.equal(generator.render_rays(styles, elsewhere, sampling).rgb, out.rgb)
    other = Styles(styles.shape.flip(0), styles.appearance)
    assert torch.equal(generator.render_rays(other, rays, sampling).rgb, out.rgb)
    assert isinstance(styles.appearance, Tensor)
    other = Styles(styles.shape, styles.appearance.flip(0))
    assert not torch.allclose(generator.render_rays(other, rays, sampling).rgb, out.rgb)
    generator.config = replace(generator.config, aux_luminance=True)
    gray = generator.render(styles, camera, 6).aux_image
    assert torch.equal(gray[:, 0], gray[:, 1])


@pytest.mark.parametrize("most", [0.0, 2.0])
def test_a_subject_hides_a_far_sphere_by_its_opacity(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its colour is that of its mean feature, however transparent it is."""
    monkeypatch.setattr(generator_module, "_MOST_MEETING", most)
    empty, thin, dense = (in_front(sigma) for sigma in (-1.0, 0.5, 1e6))
    for layer in (g.nerf.feature_layer for g in (empty, thin, dense)):
        torch.nn.init.zeros_(layer.linear.weight)  # the same feature everywhere
    styles, _, rays, _ = setting(empty)
    behind, mixed, front = (g.render_rays(styles, rays, g.sampling) for g in (empty, thin, dense))
    opacity = mixed.opacity[..., None]
    assert float(opacity.detach().min()) > 0.05 and float(opacity.detach().max()) < 0.5
    assert torch.allclose(front.opacity, torch.ones_like(front.opacity))
    for image in ("rgb", "aux_rgb"):
        sphere, colour = getattr(behind, image), getattr(front, image)
        assert not torch.allclose(sphere, colour, atol=0.01)
        expected = opacity * colour + (1 - opacity) * sphere
        assert torch.allclose(getattr(mixed, image), expected, atol=1e-9), image


def test_a_turned_far_sphere_is_what_a_turned_camera_sees() -> None:
    empty, subject = in_front(-1.0), tiny(background="field")
    styles = empty.map(empty.sample_latents(1, seed=1))
    for generator, same in ((empty, True), (subject, False)):
        sampling = generator.sampling
        rays, further = (Camera.orbit(yaw, 0.1).to(torch.float64).rays(4, 4) for yaw in (0.2, 1.1))
        draws = RayDraws.even(rays, sampling)
        turn = torch.full((1, rays.count, 1), 0.9, dtype=torch.float64)
        turned = generator.render_rays(styles, rays, sampling, replace(draws, turn=turn))
        still = generator.render_rays(styles, rays, sampling, draws)
        assert torch.equal(turned.depth, still.depth)
        assert not torch.allclose(turned.rgb, still.rgb)
        there = generator.render_rays(styles, further, sampling, draws)
        assert torch.allclose(turned.rgb, there.rgb, atol=1e-9) is same


def test_opacity_learns_from_colours_in_front_of_a_far_sphere() -> None:
    generator = in_front(0.5)
    styles, _, rays, _ = setting(generator)
    generator.render_rays(styles, rays, generator.sampling).rgb.sum().backward()
    for parameter in (generator.nerf.density.bias, *generator.surroundings.parameters()):
        assert parameter.grad is not None and bool(parameter.grad.any())


def test_invalid_configurations() -> None:
    for bad in (
        {"inr_width": 0},
        {"rgb_from_block": 3},
        {"extent": float("nan")},
        {"extent": 1.0},
        {"nerf_width": 1},
        {"resolution": 0},
    ):
        with pytest.raises(UserError):
            configurations.generator(TINY, **bad)
    with pytest.raises(UserError, match="samples"):
        Sampling(2, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g, z, c: g.map(z.shape), "latents: Tensor given; pass what sample_latents returns"),
        (lambda g, z, c: g.map(g.map(z)), "latents: Styles given"),
        (lambda g, z, c: g.map(Latents(z.appearance, z.shape)), "codes have (7, 6) numbers, but"),
        (lambda g, z, c: g.render(3, c, 4), "latents: int given"),
        (
            lambda g, z, c: g.render(z, None, 4),
            "camera: NoneType given; make one with Camera.orbit",
        ),
        (lambda g, z, c: g.render(z, 0.3, 4), "camera: float given"),
        (lambda g, z, c: g.render(z, c, "big"), "resolution.0: input should be a valid integer"),
        (lambda g, z, c: g.render(z, c, (1, 2, 3)), "resolution: "),
        (lambda g, z, c: g.render(z, c, 4.5), "resolution.0: input should be a valid integer"),
        (lambda g, z, c: Generator(3), "config.json: input should be a dictionary"),
        (lambda g, z, c: Generator(None), "config.json: input should be a dictionary"),
        (lambda g, z, c: Generator({"resolution": 0}), "config.json: resolution is 0"),
    ],
)
def test_wrong_types_are_one_line(call, words: str) -> None:
    generator = tiny()
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.3)
    with configurations.unchecked(), pytest.raises(UserError) as error:
        call(generator, z, camera)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    generator = tiny()
    z, camera = generator.sample_latents(2, 3), Camera.orbit(0.3, 0.1)
    expected = generator.render(z, camera, (4, 6), psi=(0.5, 0.75)).image
    with configurations.unchecked():
        assert torch.equal(generator.sample_latents(2, np.int64(3)).shape, z.shape)
        for half, more in ((np.float32(0.5), np.float64(0.75)), torch.tensor([0.5, 0.75])):
            size = (np.int64(4), torch.tensor(6))
            found = generator.render(z, camera, size, psi=(half, more)).image
            assert torch.equal(found, expected)
        assert generator.render(z, camera, [4, 6], psi=np.float32(0.5)).image.shape == (2, 3, 4, 6)


def test_a_generator_is_where_its_parameters_are() -> None:
    assert tiny().device == torch.device("cpu")
    assert tiny().to("meta").device == torch.device("meta")


# ---------------------------------------------------------------- what a rendering gives
def test_images_as_pil() -> None:
    generator = tiny()
    out = generator.render(generator.sample_latents(2, 0), Camera.orbit(0.3), (3, 5))
    shown = out.to_pil()
    assert [image.size for image in shown] == [(5, 3)] * 2 and shown[0].mode == "RGB"
    for image, expected in zip(shown, out.image, strict=True):
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
        # half a level, plus float32 rounding
        assert (levels / 127.5 - 1 - expected.detach()).abs().max() <= 0.51 / 127.5
    extremes = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, math.nan]).expand(1, 3, 1, 6)
    flat = torch.zeros(1, 1, 1, 6)
    (image,) = RenderOutput(extremes, extremes, flat, flat, flat).to_pil()
    assert np.array(image)[0, :5, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_rendering_has_a_short_repr_and_moves() -> None:
    generator = tiny()
    out = generator.render(generator.sample_latents(2, 0), Camera.orbit(0.3), (3, 5))
    assert repr(out) == "RenderOutput(2 images of 3x5, cpu)"
    assert repr(out[1]) == "RenderOutput(1 image of 3x5, cpu)"
    assert out.to(torch.float32).depth.dtype == torch.float32 and len(out[1]) == 1
    with Image.open(io.BytesIO(out._repr_png_())) as row:
        assert row.size == (10, 3)
        assert np.array_equal(np.array(row)[:, 5:], np.array(out.to_pil()[1]))


# ---------------------------------------------------------------- gradients
def test_gradients_equal_finite_differences() -> None:
    """gradcheck through the whole generator, with respect to codes and all parameters."""
    generator = tiny(
        seed=5, nerf_width=2, feature_dim=2, inr_width=2, inr_blocks=2, shape_dim=2,
        appearance_dim=2, shape_style_dim=2, appearance_style_dim=2, coarse=4, fine=0,
        density_gain=5.0,
    )  # fmt: skip
    camera = Camera.orbit(torch.tensor([0.3], dtype=torch.float64))
    draws = RayDraws.sample(1, 2, generator.sampling, 0.1, torch.Generator().manual_seed(1)).to(
        torch.float64
    )
    names = [name for name, _ in generator.named_parameters()]
    z = generator.sample_latents(1, 2)

    def images(shape: Tensor, appearance: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        call = (Latents(shape, appearance), camera, (1, 2), draws)
        out = torch.func.functional_call(generator, dict(zip(names, parameters, strict=True)), call)
        return out.image, out.aux_image, out.depth, out.opacity

    inputs = [z.shape, z.appearance, *generator.parameters()]
    inputs = [x.detach().clone().requires_grad_(True) for x in inputs]
    assert torch.autograd.gradcheck(images, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_importance_samples_are_constants_to_the_gradient() -> None:
    """With fixed fine depths, finite differences along a direction of all parameters agree."""
    generator = tiny(seed=6)
    _, camera, _, draws = setting(generator, 3, 3)
    z = generator.sample_latents(2, 1)
    held = []
    original = cips3d.models.volume.importance_depths
    direction = [
        torch.randn_like(p) * p.detach().std().nan_to_num(0.1).clamp(min=0.01)
        for p in generator.parameters()
    ]

    def loss() -> Tensor:
        out = generator(z, camera, (3, 3), draws)
        return out.image.sum() + out.aux_image.sum()

    def holding(*args: Tensor) -> Tensor:
        if not held:
            held.append(original(*args))
        return held[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cips3d.models.volume, "importance_depths", holding)
        value = loss()
        gradients = torch.autograd.grad(value, list(generator.parameters()))
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        eps, values = 1e-7, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(generator.parameters(), direction, strict=True):
                    p.add_(sign * eps * d)
                values.append(float(loss()))
                for p, d in zip(generator.parameters(), direction, strict=True):
                    p.sub_(sign * eps * d)
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=1e-5)


# ---------------------------------------------------------------- files
def test_one_file_round_trip(tmp_path: Path) -> None:
    generator = tiny(dtype=torch.float32)
    cips3d.save(generator, tmp_path / "m.safetensors")
    loaded = cips3d.load(tmp_path / "m.safetensors")
    assert loaded.config == generator.config
    assert not loaded.training
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_hub_form_round_trip(tmp_path: Path) -> None:
    generator = tiny(dtype=torch.float32)
    generator.save_pretrained(tmp_path / "model")
    for loaded in (Generator.from_pretrained(tmp_path / "model"), cips3d.load(tmp_path / "model")):
        assert loaded.config == generator.config
        for name, tensor in generator.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name


def judges(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(1)
    configs = {
        "main": DiscriminatorConfig({4: 8, 8: 6}, pose_head=True),
        "aux": DiscriminatorConfig({4: 4}, downsample_first=True),
    }
    return nn.ModuleDict(
        {name: ProgressiveDiscriminator(config).to(dtype) for name, config in configs.items()}
    )


@pytest.mark.parametrize("name", ["m.safetensors", "folder"])
def test_discriminators_are_in_the_same_file(tmp_path: Path, name: str) -> None:
    generator, discriminators, path = tiny(dtype=torch.float32), judges(), tmp_path / name
    cips3d.save(generator, path, discriminators)
    loaded, found = cips3d.load(path), load_discriminators(path)
    assert found is not None and set(found) == {"main", "aux"} and not found.training
    for key, part in discriminators.items():
        assert found[key].config == part.config
    for module, again in ((generator, loaded), (discriminators, found)):
        assert module.state_dict().keys() == again.state_dict().keys()
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[key]), key
    main = load_main_discriminator(path)
    assert main is not None and main.config == discriminators["main"].config
    cips3d.save(generator, path)  # without them
    assert load_discriminators(path) is None and load_main_discriminator(path) is None
    assert cips3d.load(path).config == generator.config


def test_a_folder_is_the_hub_form_of_the_file(tmp_path: Path) -> None:
    """The folder's model file is the one-file model; `save_pretrained` writes no discriminators."""
    generator = tiny(dtype=torch.float32)
    cips3d.save(generator, tmp_path / "m.safetensors", judges())
    cips3d.save(generator, tmp_path / "folder", judges())
    whole = (tmp_path / "m.safetensors").read_bytes()
    assert (tmp_path / "folder/model.safetensors").read_bytes() == whole
    cips3d.save(generator, tmp_path / "folder")
    generator.save_pretrained(tmp_path / "hub")
    for file in ("model.safetensors", "config.json"):
        ours, theirs = ((tmp_path / place / file).read_bytes() for place in ("folder", "hub"))
        if file.endswith("json"):
            ours, theirs = json.loads(ours), json.loads(theirs)
        assert ours == theirs, file


@pytest.mark.parametrize(
    "entry",
    [3, {"main": 3}, {"main": {"channels": {"4": 0}}}, {"main": {"channels": {"4": 9}}}, {}],
)
def test_damaged_discriminators_are_refused_and_the_generator_is_not(
    tmp_path: Path, entry: object
) -> None:
    generator, path = tiny(dtype=torch.float32), tmp_path / "m.safetensors"
    tensors = generator.state_dict() | {
        f"discriminators.{name}": value for name, value in judges().state_dict().items()
    }
    header = {"generator": to_dict(generator.config), "discriminators": entry}
    save_file(tensors, path, {"cips3d": json.dumps(header)})
    assert cips3d.load(path).config == generator.config
    with pytest.raises(UserError, match=r"m\.safetensors") as error:
        load_discriminators(path)
    assert "\n" not in str(error.value)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    generator = tiny(dtype=torch.float32)
    good = tmp_path / "good.safetensors"
    cips3d.save(generator, good)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    for path in (truncated, foreign, text, tmp_path / "empty", tmp_path / "missing.safetensors"):
        with pytest.raises(UserError) as error:
            cips3d.load(path)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)


def test_a_loaded_model_renders_the_same_bits(tmp_path: Path) -> None:
    generator = tiny(dtype=torch.float32)
    cips3d.save(generator, tmp_path / "m.safetensors")
    generator.save_pretrained(tmp_path / "folder")
    z = generator.sample_latents(2, 0)
    image = generator.render(z, Camera.orbit(0.2), psi=0.8).image
    for name in ("m.safetensors", "folder"):
        loaded = cips3d.load(tmp_path / name)
        assert torch.equal(loaded.render(z, Camera.orbit(0.2), psi=0.8).image, image)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    cips3d.save(tiny(dtype=torch.float32), path)
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            cips3d.load(path)


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[1, 2]",
        "3",
        "{}",
        '{"generator": 3}',
        '{"generator": {"networks": []}}',
        '{"generator": {"networks": {"inr_width": "wide"}}}',
        '{"generator": {"networks": {"inr_widht": 10}}}',
        '{"generator": {"networks": {"inr_width": 0}}}',
        '{"generator": {"networks": {"architecture": "vae"}}}',
        '{"generator": {"inr_width": 10}}',
        "changed",
    ],
)
def test_a_model_with_another_configuration_is_refused(tmp_path: Path, header: str) -> None:
    generator, path = tiny(dtype=torch.float32), tmp_path / "m.safetensors"
    if header == "changed":
        header = json.dumps({"generator": to_dict(configurations.generator(TINY, inr_width=12))})
    save_file(generator.state_dict(), path, metadata={"cips3d": header})
    with pytest.raises(UserError, match=r"m\.safetensors") as error:
        cips3d.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "surplus"), [("inr.to_rgb.0.bias", None), (None, "extra"), ("shape_mean", None)]
)
def test_a_model_with_other_weights_is_refused(
    tmp_path: Path, missing: str | None, surplus: str | None
) -> None:
    generator, path = tiny(dtype=torch.float32), tmp_path / "m.safetensors"
    weights = {name: tensor for name, tensor in generator.state_dict().items() if name != missing}
    if surplus is not None:
        weights[surplus] = torch.zeros(2)
    metadata = {"cips3d": json.dumps({"generator": to_dict(generator.config)})}
    save_file(weights, path, metadata)
    generator.save_pretrained(tmp_path / "folder")
    save_file(weights, tmp_path / "folder" / "model.safetensors", metadata)
    for place in (path, tmp_path / "folder"):
        for load in (cips3d.load, Generator.from_pretrained):
            with pytest.raises(UserError, match=str(missing or surplus)):
                load(place)


def test_a_folder_keeps_the_current_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = tiny(dtype=torch.float64)
    generator.config = replace(generator.config, resolution=24)
    generator.save_pretrained(tmp_path / "heads")
    monkeypatch.chdir(tmp_path)
    for name in ("./heads", Path("heads")):  # neither is the bundled model
        loaded = cips3d.load(name)
        assert loaded.config == generator.config
        assert all(
            torch.equal(tensor, generator.state_dict()[key])
            for key, tensor in loaded.state_dict().items()
        )


@pytest.mark.parametrize("content", ["hello", "", None])
def test_a_damaged_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "folder"
    tiny(dtype=torch.float32).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if content is not None:
        (folder / "model.safetensors").write_text(content)
    with pytest.raises(UserError, match="folder") as error:
        cips3d.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"networks": {"inr_width": 0}}', "\udcff", None]
)
def test_a_model_is_complete_without_config_json(tmp_path: Path, content: str | None) -> None:
    """config.json repeats the header of the model's file, for people and for the hub."""
    generator, folder = tiny(dtype=torch.float32), tmp_path / "folder"
    generator.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()) == to_dict(generator.config)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content, errors="surrogateescape")
    assert cips3d.load(folder).config == generator.config


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        cips3d.save(tiny(dtype=torch.float32), tmp_path / "file" / "m.safetensors")


@pytest.mark.parametrize("psi", [1.0, 0.7])
def test_autocast_leaves_codes_and_geometry_alone_from_latents_on(psi: float) -> None:
    generator = tiny(dtype=torch.float32)
    latents, camera = generator.sample_latents(2, 0), Camera.orbit(torch.zeros(2))
    exact = generator.render(latents, camera, 8, psi=psi)
    with torch.autocast("cpu", torch.bfloat16):
        styles = generator.map(latents, psi)
        fast = generator.render(latents, camera, 8, psi=psi)
    assert torch.equal(styles.shape, generator.map(latents, psi).shape)
    assert torch.equal(fast.depth, exact.depth)
    assert (fast.image - exact.image).abs().max() < 0.05


def test_rendering_takes_part_in_autocast() -> None:
    generator = tiny(dtype=torch.float32)
    types = []
    generator.inr.blocks[0].register_forward_hook(lambda _, __, out: types.append(out.dtype))
    z, camera = generator.sample_latents(1, 0), Camera.orbit(0.2)
    with torch.autocast("cpu", torch.bfloat16):
        generator.render(z, camera, 4)
    generator.render(z, camera, 4)
    assert types == [torch.bfloat16, torch.float32]


def test_autocast_keeps_the_gradients_of_saturated_pixels() -> None:
    """The slope of tanh is 1e-5 at 6; in bfloat16 it would be 0."""
    generator = tiny(dtype=torch.float32)
    styles, _, rays, _ = setting(generator, draws=False)
    styles = styles.map(Tensor.detach)
    heads = [*generator.inr.to_rgb, generator.aux_head]
    for head in heads:
        torch.nn.init.constant_(head.bias, 6.0 if head is heads[0] or head is heads[-1] else 0.0)

    def gradients() -> list[Tensor]:
        out = generator.render_rays(styles, rays, generator.sampling)
        parameters = [head.weight for head in heads]
        return list(torch.autograd.grad(out.rgb.sum() + out.aux_rgb.sum(), parameters))

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        fast = gradients()
    for a, b in zip(exact, fast, strict=True):
        assert a.abs().max() > 0
        assert (a - b).norm() < 0.1 * a.norm()


def test_draws_do_not_depend_on_the_default_type() -> None:
    generator = tiny(dtype=torch.float32)

    def draws() -> list[Tensor]:
        rays = RayDraws.sample(1, 4, generator.sampling, 1.0, torch.Generator().manual_seed(0))
        angles = generator.config.poses.draw(3, torch.Generator().manual_seed(0))
        return [generator.sample_latents(2, 0).shape, rays.jitter, rays.importance, angles]

    expected = draws()
    torch.set_default_dtype(torch.float64)
    try:
        found = draws()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# ---------------------------------------------------------------- cameras anywhere
def psnr(image: Tensor, expected: Tensor) -> float:
    """Of images in [-1, 1], decibels."""
    error = (image.detach().double() - expected.detach().double()).square().mean()
    return float(-10 * torch.log10(error / 4))


def dollied(radius: float) -> Camera:
    """The camera of a dolly zoom from 12° at distance 1, single precision."""
    fov = math.degrees(2 * math.atan(math.tan(math.radians(6)) / radius))
    return Camera.orbit(0.35, 0.13, radius, fov)


@pytest.fixture(scope="module")
def heads() -> Generator:
    found = cips3d.load("heads")
    assert isinstance(found, Generator)
    return found


@pytest.mark.parametrize("prepared", [False, True])
def test_a_camera_that_moves_away_ends_as_an_orthographic_one(
    heads: Generator, prepared: bool
) -> None:
    styles = heads.map(heads.sample_latents(1, 3), 0.7)
    codes = heads.prepare(styles, "float32") if prepared else styles
    views = [dollied(radius) for radius in (1, 10, 100, 1000)]
    with torch.no_grad():
        end = heads.render(codes, views[0].as_orthographic(), 48)
        images = [heads.render(codes, view, 48) for view in views]
    likeness = [psnr(out.image, end.image) for out in images]
    assert likeness[0] < 35 < 45 < likeness[1] < likeness[2]
    assert min(likeness[2:]) > 55
    solid = end.solid & images[3].solid
    assert (images[3].depth - 999 - end.depth)[solid].abs().max() < 5e-3


@pytest.mark.parametrize("radius", [1, 100, 1000])
def test_single_precision_is_enough_from_anywhere(heads: Generator, radius: int) -> None:
    precise = Generator(heads.config).double()
    precise.load_state_dict(heads.state_dict())
    camera, z = dollied(radius), heads.sample_latents(1, 3)
    with torch.no_grad():
        exact = precise.render(z, camera.to(torch.float64), 48)
        found = heads.render(z, camera, 48)
    assert psnr(found.image, exact.image) > (55 if radius == 1000 else 70)


def test_an_orthographic_image_does_not_depend_on_the_distance() -> None:
    generator = tiny()
    z, yaw = generator.sample_latents(1, 0), torch.tensor(0.4, dtype=torch.float64)
    near, far = (
        generator.render(z, Camera.orthographic(yaw, 0.2, radius), 8) for radius in (0.5, 50.0)
    )
    torch.testing.assert_close(near.image, far.image, rtol=0, atol=1e-12)
    torch.testing.assert_close(near.depth + 49.5, far.depth)


@pytest.mark.parametrize("name", ["yaw", "pitch", "radius", "fov", "span", "sideways"])
def test_gradients_of_cameras_equal_finite_differences(name: str) -> None:
    generator = tiny(seed=5, coarse=6, fine=0)
    z = generator.sample_latents(1, 2)

    def loss(value: Tensor) -> Tensor:
        if name == "span":
            camera = Camera.orthographic(torch.zeros_like(value), span=value)
        elif name == "sideways":
            camera = Camera.orbit(torch.full_like(value, 0.3))
            moved = camera.position + value * value.new_tensor([0.4, 0.2, 0.1])
            camera = Camera.look_at(moved, moved.new_tensor([[0.01, 0.02, 0.03]]))
        else:
            given = {"yaw": value.new_tensor([0.3]), "pitch": 0.1, "radius": 1.0, "fov": 12.0}
            camera = Camera.orbit(**(given | {name: value}))
        out = generator.render(z, camera, 5, psi=1.0)
        return out.image.square().sum() + out.depth.square().sum() + out.opacity.sum()

    start = {"radius": 1.1, "fov": 14.0, "span": 0.2}.get(name, 0.2)
    value = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, value, eps=1e-7, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- other types, sizes, transforms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["cips-3d", "pi-gan", "cips-2d"])
def test_parameters_of_16_bits_compute_in_32(architecture: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = configurations.generator(architecture=architecture)
    generator = build_generator(config)
    generator.update_style_means(100)
    rounded = build_generator(config)
    rounded.load_state_dict(generator.to(dtype).state_dict())
    camera, z = Camera.orbit(0.3, 0.1), rounded.sample_latents(2, 0)
    for psi in (1.0, 0.7):
        found = generator.render(generator.sample_latents(2, 0), camera, 8, psi=psi)
        expected = rounded.render(z, camera, 8, psi=psi)
        assert found.image.dtype == torch.float32
        assert psnr(found.image, expected.image) > 100
        torch.testing.assert_close(found.depth, expected.depth)
    found.image.sum().backward()
    assert all(p.grad is None or p.grad.dtype == dtype for p in generator.parameters())
    if isinstance(generator, Generator):
        with torch.no_grad():
            subject = generator.prepare(generator.map(z[0], 0.7), "float32")
            assert psnr(generator.render(subject, camera, 8).image, found.image[:1]) > 80


def test_empty_batches_give_empty_images() -> None:
    for dtype in (torch.float32, torch.float64):
        generator = tiny(dtype=dtype)
        z, camera = generator.sample_latents(1, 0), Camera.orbit(0.2)
        for codes, cameras in ((z[:0], camera), (z, camera[:0]), (z[:0], camera[:0])):
            out = generator.render(codes, cameras, (4, 6))
            assert out.image.shape == (0, 3, 4, 6) and out.depth.shape == (0, 1, 4, 6)
        generator.render(z[:0], camera, 4).image.sum().backward()
        styles, rays = generator.map(z), camera.to(dtype).rays(4, 4)
        assert generator.render_rays(styles, rays[:0], generator.sampling).rgb.shape == (1, 0, 3)
        with torch.no_grad():
            subject = generator.prepare(styles)
            assert generator.render(subject, camera[:0], 4).image.shape == (0, 3, 4, 4)
            assert subject.render_rays(styles, rays[:0], generator.sampling).depth.shape == (1, 0)
        assert generator.sample_latents(0, 0).shape.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_function_transforms_and_forward_mode(dtype: torch.dtype) -> None:
    generator = tiny(seed=1, dtype=dtype)
    z = generator.sample_latents(3, 1)
    yaw = torch.tensor([0.2], dtype=dtype)
    like = {"float32": (1e-3, 1e-5), "float64": (1e-9, 1e-12)}[str(dtype).removeprefix("torch.")]
    close = partial(torch.testing.assert_close, rtol=like[0], atol=like[1])

    def loss(shape: Tensor, yaw: Tensor) -> Tensor:
        latents = Latents(shape, z.appearance[:1])
        return generator.render(latents, Camera.orbit(yaw, 0.1), 4, psi=1.0).image.square().sum()

    inputs = z.shape[:1].clone().requires_grad_(), yaw.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*inputs), inputs)
    given = z.shape[:1], yaw
    close(torch.func.grad(loss, argnums=(0, 1))(*given), expected)
    directions = torch.ones_like(z.shape[:1]), torch.ones_like(yaw)
    slope = sum((g * d).sum() for g, d in zip(expected, directions, strict=True))
    close(torch.func.jvp(loss, given, directions)[1], slope)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(given, directions, strict=True)]
        close(forward_ad.unpack_dual(loss(*duals)).tangent, slope)

    def image(shape: Tensor, appearance: Tensor, yaw: Tensor) -> Tensor:
        latents = Latents(shape[None], appearance[None])
        return generator.render(latents, Camera.orbit(yaw, 0.1), 4, psi=1.0).image[0]

    yaws = torch.tensor([0.1, 0.2, -0.3], dtype=dtype)
    together = generator.render(z, Camera.orbit(yaws, 0.1), 4, psi=1.0).image
    close(torch.func.vmap(image)(z.shape, z.appearance, yaws), together)

    def of_weights(weights: dict[str, Tensor], shape: Tensor, appearance: Tensor) -> Tensor:
        latents = Latents(shape[None], appearance[None])
        call = latents, Camera.orbit(0.2), 4
        return torch.func.functional_call(generator, weights, call).image.square().sum()

    weights = {name: p.detach() for name, p in generator.named_parameters()}
    each = torch.func.vmap(torch.func.grad(of_weights), (None, 0, 0))(weights, *vars(z).values())
    generator(z, Camera.orbit(0.2), 4).image.square().sum().backward()
    for name, p in generator.named_parameters():
        if p.grad is not None:
            close(each[name].sum(dim=0), p.grad)
