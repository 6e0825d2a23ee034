"""pi-GAN and the 2D CIPS: what their pictures depend on, against plain formulas; training, files and what they refuse."""

from __future__ import annotations

import itertools
import json
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
from cips3d.configuration import from_dict, to_dict, with_settings
from cips3d.heads import SyntheticHeads
from cips3d.errors import UserError
from cips3d.models.baselines import (
    GENERATORS,
    Cips2d,
    ColourField,
    PiGan,
    build_generator,
    picture_coordinates,
)
from cips3d.models.config import Architecture, GeneratorConfig
from cips3d.models.cost import generator_cost
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.generator import Generator
from cips3d.models.types import Latents, RayDraws, Sampling, Styles
from cips3d.training import gradients
from cips3d.training.health import Watch
from cips3d.training.planning import in_mode, parameters, step_cost, visible_share
from cips3d.training.presets import PI_GAN_RATE, preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.trainer import Trainer

BASELINES: tuple[Architecture, ...] = ("pi-gan", "cips-2d")
SIZES = GeneratorConfig(
    shape_dim=6, appearance_dim=7, shape_style_dim=8, appearance_style_dim=9, shape_mapping_layers=2,
    appearance_mapping_layers=2, nerf_width=12, nerf_layers=3, density_gain=30.0, feature_dim=11, inr_width=10, inr_blocks=3,
    rgb_from_block=1, residual_from_block=2, background="plain", coarse_samples=5, fine_samples=4, resolution=8,
)  # fmt: skip
F64 = torch.float64


def small(
    architecture: Architecture, seed: int = 0, dtype: torch.dtype = F64, **changes: Any
) -> Generator:
    torch.manual_seed(seed)
    generator = build_generator(replace(SIZES, architecture=architecture, **changes)).to(dtype)
    for (
        name,
        parameter,
    ) in generator.named_parameters():  # colour heads begin too small to tell pixels apart
        if "to_rgb" in name or "nerf.colour" in name:
            nn.init.normal_(parameter)
    generator.update_style_means(100)
    return generator


def camera_of_two() -> Camera:
    return Camera.orbit(torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([0.1, -0.2], dtype=F64))


def drawn(generator: Generator, rays: int, seed: int = 3) -> RayDraws:
    return RayDraws.sample(
        2, rays, generator.sampling, 0.5, torch.Generator().manual_seed(seed)
    ).to(F64)


# ---------------------------------------------------------------- independence of pixels
@pytest.mark.parametrize("architecture", BASELINES)
@pytest.mark.parametrize("with_draws", [False, True])
def test_subsets_permutations_and_chunks_of_rays_give_the_same_pixels(
    architecture: Architecture, with_draws: bool
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
        picture = generator.render(styles, camera, (6, 9), draws=draws, chunk=chunk)
        assert (picture.image.permute(0, 2, 3, 1).flatten(1, 2) - whole.rgb).abs().max() <= 1e-12
        assert torch.equal(picture.image, picture.aux_image)
        assert (picture.depth.flatten(1) - whole.depth).abs().max() <= 1e-12


@pytest.mark.parametrize(("architecture", "code"), [("pi-gan", "shape"), ("cips-2d", "appearance")])
def test_one_code_makes_the_picture_and_the_other_is_carried(
    architecture: Architecture, code: str
) -> None:
    generator = small(architecture)
    z, other = generator.sample_latents(2, 0), generator.sample_latents(2, 1)
    carried = "appearance" if code == "shape" else "shape"
    assert torch.equal(getattr(generator.map(z), carried), getattr(z, carried))
    pictures = {
        name: generator.render(replace(z, **{name: getattr(other, name)}), camera_of_two(), 5).image
        for name in ("shape", "appearance")
    }
    image = generator.render(z, camera_of_two(), 5).image
    assert torch.equal(pictures[carried], image)
    assert (pictures[code] - image).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("architecture", BASELINES)
def test_truncation_goes_to_the_mean_subject(architecture: Architecture) -> None:
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
    generator: Generator, w: Tensor, rays: Rays, ray: int, jitter: Tensor
) -> tuple[Tensor, float, float]:
    """Colour, depth and opacity of a ray of the first picture, sample after sample."""
    field, extent, background = generator.nerf, generator.config.extent, generator.config.background
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
        x = torch.cat([x, direction]) if field.view_direction else x
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
        GeneratorConfig(nerf_width=256, nerf_layers=8, shape_style_dim=256, view_direction=True)
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
            picture_coordinates(camera.rays(height, width), 20.0)
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
    corners = picture_coordinates(camera.rays(2, 2, corner_aligned=True), 20.0)
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
@pytest.mark.parametrize("architecture", BASELINES)
def test_gradients_equal_finite_differences(architecture: Architecture) -> None:
    """gradcheck with respect to codes and all parameters."""
    generator = small(
        architecture, nerf_width=2, nerf_layers=2, feature_dim=2, inr_width=2, inr_blocks=2, shape_dim=2,
        appearance_dim=2, shape_style_dim=2, appearance_style_dim=2, coarse_samples=4, fine_samples=0, density_gain=5.0,
        density_blob=10.0, view_direction=True,
    )  # fmt: skip
    camera = Camera.orbit(torch.tensor([0.3], dtype=F64))
    draws = RayDraws.sample(1, 2, generator.sampling, 0.1, torch.Generator().manual_seed(1)).to(F64)
    names = [name for name, _ in generator.named_parameters()]
    z = generator.sample_latents(1, 2)

    def pictures(shape: Tensor, appearance: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        call = (Latents(shape, appearance), camera, (2, 1), draws)
        out = torch.func.functional_call(generator, dict(zip(names, parameters, strict=True)), call)
        return (out.image, out.depth, out.opacity) if architecture == "pi-gan" else (out.image,)

    inputs = [
        x.detach().clone().requires_grad_(True)
        for x in (z.shape, z.appearance, *generator.parameters())
    ]
    assert torch.autograd.gradcheck(pictures, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)
    found = torch.autograd.grad(pictures(*inputs)[0].square().sum(), inputs[2:])
    assert all(bool(gradient.any()) for gradient in found), "no parameter is idle"


@pytest.mark.parametrize("architecture", BASELINES)
def test_ways_of_gradients(architecture: Architecture) -> None:
    generator = small(architecture)
    z, draws, sampling = generator.sample_latents(2, 0), drawn(generator, 64), generator.sampling
    arguments = (generator, z, camera_of_two(), 8, draws, sampling)
    index = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = []
    for out in (
        gradients.full(*arguments),
        gradients.checkpointed(*arguments, 7),
        gradients.partial(*arguments, index, 7),
        gradients.partial(*arguments, index[:9], 7),
    ):
        out.image.pow(3).sum().backward()
        found.append(
            (
                out.image.detach(),
                torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None]),
            )
        )
        generator.zero_grad()
    for image, gradient in found[1:3]:
        assert torch.allclose(image, found[0][0], rtol=0, atol=1e-12)
        assert (gradient - found[0][1]).norm() < 1e-8 * gradient.norm()
    assert torch.allclose(found[3][0], found[0][0], rtol=0, atol=1e-12)
    assert 0 < found[3][1].norm() < 0.9 * found[0][1].norm()


def test_autocast_leaves_sines_and_coordinates_alone() -> None:
    for architecture in BASELINES:
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
    architecture: Architecture, kind: type[Generator], tmp_path: Path
) -> None:
    generator = small(architecture, dtype=torch.float32)
    cips3d.save(generator, tmp_path / "m.safetensors")
    generator.save_pretrained(tmp_path / "hub")
    z, camera = generator.sample_latents(2, 0), Camera.orbit(0.2)
    image = generator.render(z, camera, psi=0.8).image
    for loaded in (
        cips3d.load(tmp_path / "m.safetensors"), cips3d.load(tmp_path / "hub"), kind.from_pretrained(tmp_path / "hub"),
    ):  # fmt: skip
        assert type(loaded) is kind and loaded.config == generator.config
        assert torch.equal(loaded.render(z, camera, psi=0.8).image, image)
    with pytest.raises(
        UserError,
        match=rf"architecture {architecture} is not what Generator makes; use cips3d\.load",
    ):
        Generator.from_pretrained(tmp_path / "hub")
    with pytest.raises(UserError, match=f"architecture {architecture} is not what Generator makes"):
        Generator(generator.config)
    with pytest.raises(UserError, match=f"architecture cips-3d is not what {kind.__name__} makes"):
        kind(SIZES)


def test_a_configuration_without_architecture_is_cips_3d(tmp_path: Path) -> None:
    old = to_dict(SIZES)
    del old["architecture"]
    config = from_dict(GeneratorConfig, old, "old")
    assert config == SIZES and type(build_generator(config)) is Generator
    build_generator(config).save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(old))
    assert type(cips3d.load(tmp_path / "hub")) is Generator
    (tmp_path / "hub" / "config.json").write_text(json.dumps(old | {"architecture": "vae"}))
    with pytest.raises(UserError, match=r"config\.json: architecture"):
        cips3d.load(tmp_path / "hub")


# ---------------------------------------------------------------- training
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.pictures(tmp_path_factory.mktemp("data") / "pictures")


TELLING = {"discriminator": DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)}


def run_config(architecture: Architecture, data: str = "heads", **changes: Any) -> TrainConfig:
    """Two steps of four pictures."""
    stage = {
        name: changes.pop(name) for name in tuple(changes) if name in Stage.__dataclass_fields__
    }
    stages = (
        Stage(8, **({"kimg": 0.008, "batch": 4, "auxiliary": architecture == "cips-3d"} | stage)),
    )
    generator = replace(tiny.GENERATOR, architecture=architecture)
    return tiny.config(data, **({"generator": generator, "stages": stages} | changes))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("pi-gan", {"sample_kimg": 0.004}),
        (
            "pi-gan",
            {
                "transmittance_weight": 0.5,
                "share_fakes": True,
                "gradients": "checkpointed",
                "chunk": 30,
            },
        ),
        ("pi-gan", {"gradients": "partial", "gradient_rays": 40, "frozen": ("shape_mapping",)}),
        ("cips-2d", {"sample_kimg": 0.004}),
        ("cips-2d", {"share_fakes": True, "gradients": "checkpointed"}),
        ("cips-2d", {"gradients": "partial", "gradient_rays": 40, "frozen": ("embedding",)}),
    ],
)
def test_the_trainer_takes_two_steps(
    architecture: Architecture, changes: dict[str, Any], tmp_path: Path, data: str
) -> None:
    config = run_config(architecture, data, **changes)
    trainer = Trainer(config, tmp_path / "run")
    start = {name: p.clone() for name, p in trainer.networks.generator.named_parameters()}
    model = trainer.run()
    assert (trainer.counters.step, trainer.counters.skipped) == (2, 0)
    averaged = dict(trainer.networks.ema.named_parameters())
    for name, p in trainer.networks.generator.named_parameters():
        if name.startswith(config.stages[0].frozen):
            assert torch.equal(p, start[name])
        else:
            assert not torch.equal(p, start[name]) and not torch.equal(
                averaged[name], start[name]
            ), name
    assert type(cips3d.load(model)) is GENERATORS[architecture]
    assert Trainer(config, tmp_path / "run").counters.step == 2
    assert ("sample_kimg" in changes) == (tmp_path / "run/samples").exists()


@pytest.mark.parametrize("architecture", GENERATORS)
def test_parts_are_the_networks(architecture: Architecture) -> None:
    generator = small(architecture)
    assert {name for name, _ in generator.named_children()} == set(generator.parts)
    bare = {name for name, _ in small(architecture, background="last").named_children()}
    assert bare == set(generator.parts) - {"background"}


def test_only_a_geometry_can_be_flat_or_mirrored() -> None:
    watch = Watch.of(SyntheticHeads(4, 8))
    of_geometry = {"non_flatness", "mirror_jump", "two_hypothesis_score"}
    for architecture, names in (
        ("pi-gan", {"diversity"} | of_geometry),
        ("cips-2d", {"diversity"}),
    ):
        generator = small(architecture, dtype=torch.float32)
        assert watch.figures(generator, generator.sampling).keys() == names


@pytest.mark.parametrize("architecture", BASELINES)
def test_costs(architecture: Architecture) -> None:
    generator = small(architecture)
    numbers = sum(p.numel() for p in generator.parameters())
    assert generator_cost(generator.config, 8).parameters == numbers
    config = run_config(architecture, precision="bf16")
    for mode in ("full", "partial", "checkpointed"):
        assert step_cost(config, in_mode(config.stages[0], mode), 4, 2**34).flops > 0
    assert visible_share(config) <= 1
    sparse = replace(generator.config, coarse_samples=3, fine_samples=0)
    assert (generator_cost(sparse, 8).flops < generator_cost(generator.config, 8).flops) is (
        architecture == "pi-gan"
    )


@pytest.mark.parametrize(
    ("architecture", "transmittance_weight"), [("pi-gan", 0.5), ("cips-2d", 0.0)]
)
def test_presets_differ_from_heads_32_by_the_generator(
    architecture: Architecture, transmittance_weight: float
) -> None:
    ours, theirs = preset("heads-32"), preset(f"heads-32-{architecture}")
    assert theirs.generator.architecture == architecture
    assert parameters(theirs)["generator"] == pytest.approx(parameters(ours)["generator"], rel=0.03)
    rate = {"generator_lr": PI_GAN_RATE} if architecture == "pi-gan" else {}
    stages = tuple(replace(stage, auxiliary=False, **rate) for stage in ours.stages)
    assert theirs.pose_weight == (
        0.0 if architecture == "cips-2d" else ours.pose_weight
    )  # cips-2d shows no pose
    weights = {"transmittance_weight": ours.transmittance_weight, "pose_weight": ours.pose_weight}
    same = replace(theirs, generator=ours.generator, discriminator=ours.discriminator, **weights)
    assert replace(theirs.discriminator, pose_head=True) == ours.discriminator
    assert (
        same == replace(ours, stages=stages) and theirs.transmittance_weight == transmittance_weight
    )


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("pi-gan", {"auxiliary": True}, "pi-gan has no auxiliary picture; give auxiliary=false"),
        ("cips-2d", {"auxiliary": True}, "cips-2d has no auxiliary picture; give auxiliary=false"),
        (
            "cips-2d",
            {"transmittance_weight": 0.5},
            "cips-2d has no density; give transmittance_weight=0",
        ),
        ("cips-2d", {"cameras": "learned"}, "same from every camera; give cameras=prior"),
        (
            "cips-2d",
            {"pose_weight": 15.0} | TELLING,
            "same from every camera; give cameras=prior and pose_weight=0",
        ),
        ("pi-gan", {"frozen": ("inr", "nerf")}, "frozen names inr, which pi-gan does not have"),
        ("cips-2d", {"frozen": ("nerf",)}, "its parts are appearance_mapping, embedding, inr"),
        (
            "cips-3d",
            {"frozen": ("embedding",)},
            "frozen names embedding, which cips-3d does not have",
        ),
        ("pi-gan", {"frozen": ("shape_mapping", "nerf", "background")}, "freezes all"),
        ("cips-2d", {"frozen": ("appearance_mapping", "embedding", "inr")}, "freezes all"),
        (
            "cips-3d",
            {"frozen": ("shape_mapping", "appearance_mapping", "nerf", "inr", "background")},
            "freezes all",
        ),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    architecture: Architecture, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        run_config(architecture, **changes)
    assert "\n" not in str(error.value)


def test_a_stage_needs_something_that_its_pictures_can_train(tmp_path: Path, data: str) -> None:
    """The auxiliary head is not enough, and a background that there is not neither; one that there is, or the cameras, is."""
    frozen = ("shape_mapping", "appearance_mapping", "nerf", "inr")
    endless = replace(tiny.GENERATOR, background="endless")
    with pytest.raises(
        UserError, match="leave one of shape_mapping, appearance_mapping, nerf, inr to train"
    ):
        run_config("cips-3d", frozen=frozen, generator=endless)
    for name, changes in (("a", {}), ("b", {"generator": endless, "cameras": "learned"})):
        trainer = Trainer(
            run_config("cips-3d", data, frozen=frozen, auxiliary=False, **changes), tmp_path / name
        )
        trained = trainer.networks.poses or trainer.networks.generator.background
        assert trained is not None
        start = torch.cat([p.flatten() for p in trained.parameters()])
        trainer.run()
        assert not torch.equal(torch.cat([p.flatten() for p in trained.parameters()]), start)


def test_settings_turn_a_preset_into_another_architecture() -> None:
    changes = ["generator.architecture=pi-gan", "stages.*.auxiliary=false"]
    assert with_settings(preset("heads-32"), changes, "--set").generator.architecture == "pi-gan"
    with pytest.raises(UserError, match="give auxiliary=false"):
        with_settings(preset("heads-32"), changes[:1], "--set")
