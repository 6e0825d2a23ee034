"""pi-GAN and the 2D CIPS: what their images depend on, against plain formulas; files."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cips3d
import tiny
from cips3d.camera import Camera, Rays
from cips3d.errors import UserError
from cips3d.models import rays as ray_choices
from cips3d.models.config import Cips3dNetworks, GeneratorConfig, NetworkConfig, Sampling
from cips3d.models.cost import generator_cost
from cips3d.models.generator import Generator
from cips3d.models.peers.cips import Cips2d, image_coordinates
from cips3d.models.peers.pi_gan import ColourField, PiGan, PiGanNetworks
from cips3d.models.protocol import RayGenerator
from cips3d.models.registry import GENERATORS, build_generator
from cips3d.models.types import Latents, RayDraws, Styles

PEERS = ("pi-gan", "cips-2d")
SIZES = GeneratorConfig(
    Cips3dNetworks(
        shape_dim=6, appearance_dim=7, shape_style_dim=8, appearance_style_dim=9,
        shape_mapping_layers=2, appearance_mapping_layers=2, nerf_width=12, nerf_layers=3,
        density_gain=30.0, feature_dim=11, inr_width=10, inr_blocks=3, rgb_from_block=1,
        residual_from_block=2, background="plain",
    ),
    Sampling(5, 4),
    resolution=8,
)  # fmt: skip
F64 = torch.float64


def small(
    architecture: str, seed: int = 0, dtype: torch.dtype = F64, **changes: Any
) -> RayGenerator:
    """A small generator; changes to fields that its architecture lacks are left out."""
    torch.manual_seed(seed)
    known = {*vars(GENERATORS[architecture].Networks()), "coarse", "fine"}
    changes = {name: value for name, value in changes.items() if name in known}
    config = tiny.generator(SIZES, architecture=architecture, **changes)
    generator = build_generator(config).to(dtype)
    assert isinstance(generator, RayGenerator)
    for name, parameter in generator.named_parameters():
        if "to_rgb" in name or "nerf.colour" in name:  # too small to tell pixels apart
            nn.init.normal_(parameter)
    generator.update_style_means(100)
    return generator


def camera_of_two() -> Camera:
    return Camera.orbit(torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([0.1, -0.2], dtype=F64))


def drawn(generator: RayGenerator, rays: int, seed: int = 3) -> RayDraws:
    return RayDraws.sample(
        2, rays, generator.sampling, 0.5, torch.Generator().manual_seed(seed)
    ).to(F64)


# ---------------------------------------------------------------- independence of pixels
@pytest.mark.parametrize("architecture", PEERS)
@pytest.mark.parametrize("with_draws", [False, True])
def test_subsets_permutations_and_chunks_of_rays_give_the_same_pixels(
    architecture: str, with_draws: bool
) -> None:
    generator = small(architecture, view_direction=True)
    styles, camera = generator.map(generator.sample_latents(2, 1)), camera_of_two()
    rays = camera.rays(6, 9)
    draws = drawn(generator, rays.count) if with_draws else None
    whole = generator.render_rays(styles, rays, generator.sampling, draws)
    assert whole.rgb.std(dim=1).min() > 1e-3
    shuffle = torch.randperm(rays.count, generator=torch.Generator().manual_seed(4))
    for chosen in (shuffle, shuffle[:11], shuffle[:1]):
        part = generator.render_rays(
            styles, rays[chosen], generator.sampling, None if draws is None else draws[chosen]
        )
        for name in ("rgb", "aux_rgb", "depth", "opacity", "last_weight", "feature"):
            assert (getattr(part, name) - getattr(whole, name)[:, chosen]).abs().max() <= 1e-12, (
                name
            )
    for chunk in (1, 7, 53, 1000):
        image = generator.render(styles, camera, (6, 9), draws=draws, chunk=chunk)
        assert (image.image.permute(0, 2, 3, 1).flatten(1, 2) - whole.rgb).abs().max() <= 1e-12
        assert torch.equal(image.image, image.aux_image)
        assert (image.depth.flatten(1) - whole.depth).abs().max() <= 1e-12


@pytest.mark.parametrize(("architecture", "code"), [("pi-gan", "shape"), ("cips-2d", "appearance")])
def test_one_code_makes_the_image_and_the_other_is_carried(architecture: str, code: str) -> None:
    generator = small(architecture)
    z, other = generator.sample_latents(2, 0), generator.sample_latents(2, 1)
    carried = "appearance" if code == "shape" else "shape"
    assert torch.equal(getattr(generator.map(z), carried), getattr(z, carried))
    changed = {
        name: generator.render(replace(z, **{name: getattr(other, name)}), camera_of_two(), 5).image
        for name in ("shape", "appearance")
    }
    image = generator.render(z, camera_of_two(), 5).image
    assert torch.equal(changed[carried], image)
    assert (changed[code] - image).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("architecture", PEERS)
def test_truncation_goes_to_the_mean_subject(architecture: str) -> None:
    generator = small(architecture)
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.2)
    mean = Styles(generator.shape_mean[None], generator.appearance_mean[None])
    expected = generator.render(mean, camera, 4).image
    assert torch.allclose(
        generator.render(z, camera, 4, psi=0.0).image, expected.expand(2, -1, -1, -1)
    )
    assert not torch.allclose(generator.render(z, camera, 4).image, expected.expand(2, -1, -1, -1))


# ---------------------------------------------------------------- pi-GAN
def film(layer: Any, x: Tensor, w: Tensor) -> Tensor:
    """Equation 2 for one point."""
    gain = 15 * (layer.gain.weight @ w + layer.gain.bias) + 30
    return torch.sin(
        gain * (layer.linear.weight @ x + layer.linear.bias)
        + layer.phase.weight @ w
        + layer.phase.bias
    )


def composited(
    generator: RayGenerator, w: Tensor, rays: Rays, ray: int, jitter: Tensor
) -> tuple[Tensor, float, float]:
    """Colour, depth and opacity of a ray of the first image, sample by sample."""
    field, networks = generator.nerf, generator.networks
    extent, background = networks.extent, networks.background
    origin, direction = rays.origins[0, ray], rays.directions[0, ray]
    count = len(jitter)
    spacing = 2 * extent / (count - 1)
    near, far = float(origin.norm()) - extent, float(origin.norm()) + extent
    depths = [near + (k + float(jitter[k]) - 0.5) * spacing for k in range(count)]
    colour, depth, light = torch.zeros(3, dtype=F64), 0.0, 1.0
    for k, t in enumerate(depths):
        point = origin + t * direction
        x = point / extent
        for layer in field.layers:
            x = film(layer, x, w)
        sigma = float(30 * (field.density.weight @ x + field.density.bias))
        sigma += 20.0 * (1 - float(point @ point) / (extent / 2) ** 2)
        x = torch.cat([x, direction]) if networks.view_direction else x
        rgb = torch.sigmoid(
            field.colour.weight @ film(field.feature_layer, x, w) + field.colour.bias
        )
        end = depths[k + 1] if k + 1 < count else 1e10 if background == "endless" else max(far, t)
        alpha = 1 - math.exp(-(end - t) * max(0.0, sigma))
        if background == "last" and k + 1 == count:
            alpha = 1.0
        colour, depth, light = (
            colour + light * alpha * (2 * rgb - 1),
            depth + light * alpha * t,
            light * (1 - alpha),
        )
    if background == "white":
        colour = colour + light
    if background == "plain":
        linear = generator.background[0]
        colour = colour + light * torch.tanh(linear.weight @ w + linear.bias)
    return colour, depth + light * far, 1 - light


@pytest.mark.parametrize("background", ["plain", "white", "last", "endless"])
@pytest.mark.parametrize("view_direction", [False, True])
@torch.no_grad()
def test_pi_gan_composites_the_colours_of_all_samples(
    background: Any, view_direction: bool
) -> None:
    generator = small(
        "pi-gan", background=background, view_direction=view_direction, density_blob=20.0
    )
    styles, rays = (
        generator.map(generator.sample_latents(1, 0)),
        Camera.orbit(torch.tensor([0.4], dtype=F64)).rays(4, 4),
    )
    jitter = torch.rand(1, 16, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    out = generator.render_rays(styles, rays, Sampling(6, 0), RayDraws(jitter, jitter[..., :0]))
    opacities = []
    for ray in range(16):
        colour, depth, opacity = composited(generator, styles.shape[0], rays, ray, jitter[0, ray])
        assert torch.allclose(out.rgb[0, ray], colour, atol=1e-8)
        assert float(out.depth[0, ray]) == pytest.approx(depth, abs=1e-8)
        assert float(out.opacity[0, ray]) == pytest.approx(opacity, abs=1e-8)
        opacities.append(opacity)
    assert max(opacities) > 0.6
    assert background in ("last", "endless") or min(opacities) < 0.5


@pytest.mark.parametrize("seen", [False, True])
def test_a_point_of_pi_gan_looks_different_from_elsewhere_only_with_a_view_direction(
    seen: bool,
) -> None:
    field = small("pi-gan", view_direction=seen).nerf
    point, w = torch.tensor([[[0.03, -0.02, 0.05]]], dtype=F64), torch.ones(1, 8, dtype=F64)
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.6, 0.0, -0.8]]], dtype=F64)
    sigma, colour = field(point.expand(1, 2, 3), directions, w)
    assert torch.allclose(sigma[:, 0], sigma[:, 1], rtol=0, atol=1e-12), (
        "density never depends on the direction"
    )
    assert torch.allclose(colour[:, 0], colour[:, 1]) is not seen
    assert colour.shape == (1, 2, 3) and colour.abs().max() < 1


def test_pi_gan_starts_with_the_published_weights() -> None:
    torch.manual_seed(0)
    field = ColourField(
        PiGanNetworks(nerf_width=256, nerf_layers=8, shape_style_dim=256, view_direction=True)
    )
    sizes = {
        name: float(p.detach().abs().max())
        for name, p in field.named_parameters()
        if name.endswith("weight")
    }
    assert sizes["layers.0.linear.weight"] == pytest.approx(1 / 3, rel=0.01)
    for name, fan_in in (
        ("layers.7.linear", 256),
        ("feature_layer.linear", 259),
        ("density", 256),
        ("colour", 256),
    ):
        assert sizes[f"{name}.weight"] == pytest.approx(math.sqrt(6 / fan_in) / 25, rel=0.01), name
    assert field.feature_layer.linear.weight.shape == (256, 259)


# ---------------------------------------------------------------- CIPS
def test_pixels_of_a_camera_of_the_prior_span_the_unit_square() -> None:
    camera = Camera.orbit(
        torch.tensor([0.0, 1.2, -2.5], dtype=F64),
        torch.tensor([0.0, 0.4, -1.3], dtype=F64),
        1.7,
        20.0,
    )
    for height, width in ((4, 4), (3, 5)):
        x, y = (
            image_coordinates(camera.rays(height, width), 20.0)
            .unflatten(1, (height, width))
            .unbind(-1)
        )
        for row, column in itertools.product(range(height), range(width)):
            assert torch.allclose(
                x[:, row, column], torch.tensor((2 * column + 1 - width) / height, dtype=F64)
            )
            assert torch.allclose(
                y[:, row, column], torch.tensor((height - 1 - 2 * row) / height, dtype=F64)
            )
    corners = image_coordinates(camera.from_corner_grid(2).rays(2, 2), 20.0)
    assert torch.allclose(corners[1], torch.tensor([[-1, 1], [1, 1], [-1, -1], [1, -1]], dtype=F64))


def test_cips_shows_the_same_from_everywhere() -> None:
    generator = small("cips-2d")
    z = generator.sample_latents(1, 0)
    angles = torch.tensor([[0.0, 0.7, -1.5, 3.0], [0.0, 0.2, 1.2, -0.9]], dtype=F64)
    out = generator.render(z, Camera.orbit(*angles, 1.3), 6)
    assert out.image.flatten(2).std(dim=2).min() > 1e-2
    assert (out.image - out.image[:1]).abs().max() < 1e-9
    assert torch.allclose(out.depth, torch.full_like(out.depth, 1.3))
    assert bool((out.opacity == 1).all()) and not out.last_weight.any()
    position = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    rolled = generator.render(
        z, Camera.look_at(position, up=torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)), 6
    ).image
    assert (rolled - out.image[:1].rot90(1, (2, 3))).abs().max() < 1e-9, "it has an up of its own"


def test_cips_keeps_its_scale_at_every_resolution_and_field_of_view() -> None:
    generator = small("cips-2d")
    z, camera = generator.sample_latents(2, 0), camera_of_two()
    image = generator.render(z, camera, 5).image
    large = generator.render(z, camera, 15).image
    assert (large[:, :, 1::3, 1::3] - image).abs().max() < 1e-9, (
        "the middle of three pixels is the pixel"
    )
    wide = math.degrees(2 * math.atan(3 * math.tan(math.radians(6.0))))
    around = generator.render(
        z, Camera(camera.cam_to_world, torch.full_like(camera.fov, wide)), 15
    ).image
    assert (around[:, :, 5:10, 5:10] - image).abs().max() < 1e-9
    assert (around[:, :, :5, :5] - image).abs().max() > 1e-2


# ---------------------------------------------------------------- gradients
@pytest.mark.parametrize("architecture", PEERS)
def test_gradients_equal_finite_differences(architecture: str) -> None:
    """gradcheck with respect to codes and all parameters."""
    generator = small(
        architecture, nerf_width=2, nerf_layers=2, feature_dim=2, inr_width=2, inr_blocks=2,
        shape_dim=2, appearance_dim=2, shape_style_dim=2, appearance_style_dim=2, coarse=4, fine=0,
        density_gain=5.0,
        density_blob=10.0, view_direction=True,
    )  # fmt: skip
    camera = Camera.orbit(torch.tensor([0.3], dtype=F64))
    draws = RayDraws.sample(1, 2, generator.sampling, 0.1, torch.Generator().manual_seed(1)).to(F64)
    names = [name for name, _ in generator.named_parameters()]
    z = generator.sample_latents(1, 2)

    def images(shape: Tensor, appearance: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        call = (Latents(shape, appearance), camera, (2, 1), draws)
        out = torch.func.functional_call(generator, dict(zip(names, parameters, strict=True)), call)
        return (out.image, out.depth, out.opacity) if architecture == "pi-gan" else (out.image,)

    inputs = [
        x.detach().clone().requires_grad_(True)
        for x in (z.shape, z.appearance, *generator.parameters())
    ]
    assert torch.autograd.gradcheck(images, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)
    found = torch.autograd.grad(images(*inputs)[0].square().sum(), inputs[2:])
    assert all(bool(gradient.any()) for gradient in found), "no parameter is idle"


@pytest.mark.parametrize("architecture", PEERS)
def test_choices_of_rays(architecture: str) -> None:
    generator = small(architecture)
    z, draws, rays = (
        generator.sample_latents(2, 0),
        drawn(generator, 64),
        camera_of_two().rays(8, 8),
    )
    index = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = []
    for choose, *choice in (
        (ray_choices.full,),
        (ray_choices.checkpointed, 7),
        (ray_choices.partial, index[None], 7),
        (ray_choices.partial, index[None, :9], 7),
    ):
        arguments = (generator.render_rays, generator.map(z), rays, generator.sampling, draws)
        out = ray_choices.as_images(choose(*arguments, *choice), 8, 8)
        out.image.pow(3).sum().backward()
        gradient = [p.grad.flatten() for p in generator.parameters() if p.grad is not None]
        found.append((out.image.detach(), torch.cat(gradient)))
        generator.zero_grad()
    for image, gradient in found[1:3]:
        assert torch.allclose(image, found[0][0], rtol=0, atol=1e-12)
        assert (gradient - found[0][1]).norm() < 1e-8 * gradient.norm()
    assert torch.allclose(found[3][0], found[0][0], rtol=0, atol=1e-12)
    assert 0 < found[3][1].norm() < 0.9 * found[0][1].norm()


def test_autocast_leaves_sines_and_coordinates_alone() -> None:
    for architecture in PEERS:
        generator = small(architecture, dtype=torch.float32)
        styles, rays = (
            generator.map(generator.sample_latents(2, 1)),
            camera_of_two().to(torch.float32).rays(5, 5),
        )
        exact = generator.render_rays(styles, rays, generator.sampling)
        with torch.autocast("cpu", torch.bfloat16):
            fast = generator.render_rays(styles, rays, generator.sampling)
        assert torch.equal(fast.feature, exact.feature) and torch.equal(fast.depth, exact.depth)
        assert torch.equal(fast.rgb, exact.rgb) is (architecture == "pi-gan")


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(("architecture", "kind"), [("pi-gan", PiGan), ("cips-2d", Cips2d)])
def test_files_bring_back_the_class_and_the_bits(
    architecture: str, kind: type[RayGenerator], tmp_path: Path
) -> None:
    generator = small(architecture, dtype=torch.float32)
    cips3d.save(generator, tmp_path / "m.safetensors")
    generator.save_pretrained(tmp_path / "hub")
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.2)
    image = generator.render(z, camera, psi=0.8).image
    for loaded in (
        cips3d.load(tmp_path / "m.safetensors"), cips3d.load(tmp_path / "hub"),
        kind.from_pretrained(tmp_path / "hub"),
    ):  # fmt: skip
        assert type(loaded) is kind and loaded.config == generator.config
        assert torch.equal(loaded.render(z, camera, psi=0.8).image, image)
    words = f"architecture {architecture} is not Generator's; use cips3d.load"
    with pytest.raises(UserError, match=words):
        Generator.from_pretrained(tmp_path / "hub")
    with pytest.raises(UserError, match=words):
        Generator(generator.config)
    with pytest.raises(UserError, match=f"architecture cips-3d is not {kind.__name__}'s"):
        kind(SIZES)
    assert type(RayGenerator.from_pretrained(tmp_path / "hub")) is kind


@pytest.mark.parametrize("architecture", GENERATORS)
def test_parts_are_the_networks(architecture: str) -> None:
    palette = {"aux_palette": True} if architecture == "cips-3d" else {}

    def networks(background: str) -> set[str]:
        made = small(architecture, background=background, **palette)
        return {name for name, _ in made.named_children()}

    behind = {"plain": {"background"}, "field": {"surroundings"}, "last": set()}
    parts = {*GENERATORS[architecture].parts}
    for background, names in behind.items():
        if background != "field" or architecture == "cips-3d":
            assert networks(background) == parts - ({"background", "surroundings"} - names)


@pytest.mark.parametrize("architecture", GENERATORS)
def test_every_generator_answers_the_protocol(architecture: str) -> None:
    generator = small(architecture)
    kind = GENERATORS[architecture]
    assert type(generator) is kind and generator.config.networks.architecture == architecture
    assert issubclass(kind.Networks, NetworkConfig) and kind.Networks().architecture == architecture
    assert set(generator.geometry_parts) <= set(generator.parts)
    assert generator.device == torch.device("cpu") and generator.sampling == Sampling(5, 4)
    assert generator.activations_per_ray(generator.sampling) > 0

    z = generator.sample_latents(2, 0)
    styles = generator.map(z)
    assert torch.equal(generator.mapped(z).shape, styles.shape)
    blocks = [styles.appearance] * generator.style_blocks
    out = generator.render(z, camera_of_two(), 4, psi=1.0)
    assert torch.equal(out.image, out.aux_image) is not generator.has_aux_image
    assert out.image.shape == out.aux_image.shape == (2, 3, 4, 4)
    if blocks:
        again = generator.render(Styles(styles.shape, blocks), camera_of_two(), 4)
        assert torch.equal(again.image, out.image)


@pytest.mark.parametrize("architecture", GENERATORS)
@pytest.mark.parametrize(
    "changes", [{}, {"view_direction": True, "density_blob": 20.0}, {"embedding": "fixed"}]
)
def test_density_along_rays_is_the_density_at_their_points(
    architecture: str, changes: dict[str, Any]
) -> None:
    generator = small(architecture, **changes)
    styles, rays = generator.map(generator.sample_latents(2, 0)), camera_of_two().rays(3, 3)
    t = 0.88 + 0.24 * torch.rand(2, 9, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    points = rays.at(t).flatten(1, 2)
    if not generator.has_density:
        assert not generator.geometry_parts
        with pytest.raises(NotImplementedError):
            generator.density(points, styles)
        with pytest.raises(NotImplementedError):
            generator.density_along(rays, t, styles)
        return
    sigma = generator.density(points, styles)
    assert sigma.std() > 0.1 and sigma.requires_grad
    for along in (type(generator).density_along, RayGenerator.density_along):
        found = along(generator, rays, t, styles)
        assert (found.flatten(1) - sigma).abs().max() < 1e-9 and not found.requires_grad
    moved = generator.density(points, styles[torch.tensor([1, 0])])
    assert (moved - sigma).abs().max() > 0.1, "each image has its own shape"


@pytest.mark.parametrize("architecture", PEERS)
def test_costs(architecture: str) -> None:
    generator = small(architecture)
    numbers = sum(p.numel() for p in generator.parameters())
    cost = generator_cost(generator.config, 8)
    sparse = generator_cost(replace(generator.config, sampling=Sampling(3, 0)), 8)
    assert cost.parameters == numbers
    assert (sparse.flops < cost.flops) is (architecture == "pi-gan")
