"""Our networks against the numbers recorded from the authors' code (tests/data), stage by stage."""

from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cips3d
from cips3d import official, pretrained
from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.models import volume
from cips3d.models.config import Cips3dNetworks, FieldConfig, GeneratorConfig, Sampling
from cips3d.models.generator import Generator
from cips3d.models.layers import FilmSiren, ModulatedLinear
from cips3d.models.nerf import RadianceField
from cips3d.models.types import Latents, RayDraws, Styles
from official import DATA, below, discriminators, generator, recorded, worst

DOUBLE = 1e-9  # largest absolute error against float64 records
SINGLE = 2e-6  # and against float32 records of single functions, whose values are of order 1
CAMERAS, MODES = (0, 1, 2), {"coarse_only": Sampling(6, 0), "hierarchical": Sampling(6, 6)}
NEAR, FAR, COARSE = 0.88, 1.12, 6


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("generator")


@pytest.fixture(scope="module")
def network(tensors: dict[str, Tensor]) -> Generator:
    return generator(tensors, "param/").requires_grad_(False)


@pytest.fixture(scope="module")
def units() -> dict[str, Tensor]:
    with np.load(DATA / "units.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


# ---------------------------------------------------------------- the generator
def recorded_camera(tensors: dict[str, Tensor], i: int) -> Camera:
    yaw, pitch, fov = tensors[f"cam{i}/official_yaw_pitch_fov"]
    return Camera.orbit(math.pi / 2 - yaw, math.pi / 2 - pitch, 1.0, fov)


def recorded_rays(tensors: dict[str, Tensor], i: int) -> Rays:
    return Rays(tensors[f"cam{i}/ray_origins"], tensors[f"cam{i}/ray_directions"])


def recorded_styles(tensors: dict[str, Tensor]) -> Styles:
    return Styles(tensors["w_nerf"], tensors["w_inr"])


def recorded_draws(tensors: dict[str, Tensor], i: int) -> RayDraws:
    """The draws of the recorded depths; fine ones from the CDF of the recorded coarse densities."""
    t, fine = tensors[f"cam{i}/t_coarse"], tensors[f"cam{i}/hierarchical/t_fine"]
    even = torch.linspace(NEAR, FAR, COARSE, dtype=t.dtype)
    jitter = (t - even) / (even[1] - even[0]) + 0.5

    density = torch.relu(tensors[f"cam{i}/nerf_sigma_coarse"])
    alpha = 1 - torch.exp(-torch.diff(t, append=torch.full_like(t[..., :1], 1e10)) * density)
    transmittance = torch.cumprod(1 - alpha + 1e-10, dim=-1)
    weights = alpha * torch.cat([torch.ones_like(alpha[..., :1]), transmittance[..., :-1]], dim=-1)
    histogram = weights[..., 1:-1] + 2e-5
    histogram = histogram / histogram.sum(dim=-1, keepdim=True)
    edges = (t[..., 1:] + t[..., :-1]) / 2
    filled = (fine[..., None] - edges[..., None, :-1]) / torch.diff(edges)[..., None, :]
    return RayDraws(jitter, (filled.clamp(0, 1) * histogram[..., None, :]).sum(dim=-1))


def test_mapping_networks(network: Generator, tensors: dict[str, Tensor]) -> None:
    styles = network.map(Latents(tensors["z_nerf"], tensors["z_inr"]))
    assert worst(styles.shape, tensors["w_nerf"]) < DOUBLE
    assert isinstance(styles.appearance, Tensor)
    assert worst(styles.appearance, tensors["w_inr"]) < DOUBLE


@pytest.mark.parametrize("i", CAMERAS)
def test_rays(tensors: dict[str, Tensor], i: int) -> None:
    rays = recorded_camera(tensors, i).from_corner_grid(16).rays(16, 16)
    assert worst(rays.origins.expand(2, -1, -1), tensors[f"cam{i}/ray_origins"]) < DOUBLE
    assert worst(rays.directions.expand(2, -1, -1), tensors[f"cam{i}/ray_directions"]) < DOUBLE


@pytest.mark.parametrize("i", CAMERAS)
def test_density_and_feature_at_each_sample(
    network: Generator, tensors: dict[str, Tensor], i: int
) -> None:
    rays, t = recorded_rays(tensors, i), tensors[f"cam{i}/t_coarse"]
    sigma, hidden = network.nerf(rays.at(t).flatten(1, 2), None, tensors["w_nerf"])
    sigma, hidden = sigma.view_as(t), hidden.view(*t.shape, -1)
    assert worst(network.nerf.density_along(rays, t, tensors["w_nerf"]), sigma) < DOUBLE
    assert worst(sigma, tensors[f"cam{i}/nerf_sigma_coarse"]) < DOUBLE
    assert (
        worst(network.nerf.feature(hidden)[:, ::7], tensors[f"cam{i}/nerf_feature_coarse"]) < DOUBLE
    )


@pytest.mark.parametrize("i", CAMERAS)
def test_importance_depths(tensors: dict[str, Tensor], i: int) -> None:
    t, draws = tensors[f"cam{i}/t_coarse"], recorded_draws(tensors, i)
    weights = volume.compositing_weights(t, tensors[f"cam{i}/nerf_sigma_coarse"], volume.ENDLESS)
    assert (
        worst(
            volume.importance_depths(t, weights, draws.importance),
            tensors[f"cam{i}/hierarchical/t_fine"],
        )
        < DOUBLE
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("i", CAMERAS)
def test_rendered_rays(network: Generator, tensors: dict[str, Tensor], i: int, mode: str) -> None:
    rays, draws = recorded_rays(tensors, i), recorded_draws(tensors, i)
    out = network.render_rays(recorded_styles(tensors), rays, MODES[mode], draws)
    expected = below(tensors, f"cam{i}/{mode}/")
    assert worst(out.feature, expected["v"]) < DOUBLE
    assert worst(out.opacity, expected["weights_sum"]) < DOUBLE
    # recorded without the background, which our depth puts at the far bound
    assert worst(out.depth - (1 - out.opacity) * FAR, expected["depth"]) < DOUBLE
    assert worst(out.rgb, expected["rgb"]) < DOUBLE
    assert worst(out.aux_rgb, expected["aux_rgb"]) < DOUBLE


# ---------------------------------------------------------------- the discriminators
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("kind", ["main", "aux"])
def test_discriminator(kind: str, resolution: int, alpha: float) -> None:
    record = recorded("discriminator")
    network = discriminators(record, "param/main/", "param/aux/")[kind]
    logits = network(record[f"{kind}/image{resolution}"], alpha)
    assert worst(logits, record[f"{kind}/logit{resolution}_alpha{alpha}"]) < DOUBLE


# ---------------------------------------------------------------- importing checkpoints
def test_discriminators_of_a_checkpoint_are_imported_into_the_model_file(
    tmp_path: Path,
) -> None:
    of_step, out = recorded("training_step_discriminator"), tmp_path / "model.safetensors"
    tensors = of_step | recorded("training_step_generator")
    torch.save(below(tensors, "discriminator_before/"), tmp_path / "D_model.pth")
    imported = generator(tensors, "generator_before/")
    pretrained.save(imported, out, official.import_discriminators(tmp_path / "D_model.pth"))
    found = pretrained.load_discriminators(out)
    assert found is not None
    expected = discriminators(
        of_step, "discriminator_before/main_disc.", "discriminator_before/aux_disc."
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = images.to(next(expected.parameters()))
    for name in ("main", "aux"):
        torch.testing.assert_close(found[name](images), expected[name](images).to(images))
    loaded = cips3d.load(out)
    for name, value in imported.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    torch.save(below(tensors, "generator_before/"), tmp_path / "D_model.pth")
    with pytest.raises(UserError, match=r"main_disc\."):
        official.import_discriminators(tmp_path / "D_model.pth")


def test_the_command_writes_generator_and_discriminators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cips3d import cli

    of_step, out = recorded("training_step_discriminator"), tmp_path / "model.safetensors"
    checkpoints = [tmp_path / "G_ema_model.pth", tmp_path / "D_model.pth"]
    tensors = of_step | recorded("training_step_generator")
    for checkpoint, name in zip(checkpoints, ("generator", "discriminator"), strict=True):
        torch.save(below(tensors, f"{name}_before/"), checkpoint)
    words = ["import-official", str(checkpoints[0]), str(out), "--resolution", "16"]
    cli.main([*words, "--discriminators", str(checkpoints[1])])
    assert str(out) in capsys.readouterr().out
    expected = tmp_path / "expected.safetensors"
    both = official.import_discriminators(checkpoints[1])
    pretrained.save(generator(tensors, "generator_before/"), expected, both)
    assert out.read_bytes() == expected.read_bytes()
    cli.main(words)  # without them, the model has none
    assert pretrained.load_discriminators(out) is None
    out.unlink()
    with pytest.raises(SystemExit):
        cli.main([*words, "--discriminators", str(checkpoints[0])])  # the generator's file again
    assert "main_disc." in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_imported_checkpoint_renders_the_recorded_images(
    tensors: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    checkpoint, out = tmp_path / "G_ema_model.pth", tmp_path / "model.safetensors"
    state = {key: value.to(dtype) for key, value in below(tensors, "param/").items()}
    torch.save(state, checkpoint)
    cips3d.save(official.import_generator(official.read(checkpoint), "it", resolution=16), out)

    network = cips3d.load(out)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert (network.config.resolution, network.config.networks.background) == (16, "endless")
    tolerance = DOUBLE if dtype == torch.float64 else 2e-3  # gains of 30 amplify rounding
    codes = Latents(tensors["z_nerf"], tensors["z_inr"]).to(dtype)
    for i, (mode, sampling) in zip((0, 2), MODES.items(), strict=True):
        draws = recorded_draws(tensors, i).to(dtype)
        yaw, pitch, fov = tensors[f"cam{i}/official_yaw_pitch_fov"]
        cameras = [recorded_camera(tensors, i).from_corner_grid(16)]
        if fov == 12:  # the authors' camera prior, which the model has, in our grid
            cameras.append(network.config.poses.at(math.pi / 2 - yaw, math.pi / 2 - pitch))
        assert len(cameras) == (2 if i == 0 else 1)
        for camera in cameras:
            rendering = network.render(codes, camera, psi=1.0, sampling=sampling, draws=draws)
            for image, name in (rendering.image, "rgb"), (rendering.aux_image, "aux_rgb"):
                expected = tensors[f"cam{i}/{mode}/{name}"].transpose(1, 2).unflatten(2, (16, 16))
                assert expected.std() > 0.02
                assert worst(image, expected) < tolerance


def test_an_imported_checkpoint_has_mean_styles_for_truncation(network: Generator) -> None:
    codes = network.sample_latents(4000, seed=7)
    styles = network.map(codes)
    assert isinstance(styles.appearance, Tensor)
    for stored, drawn in (
        (network.shape_mean, styles.shape),
        (network.appearance_mean, styles.appearance),
    ):
        error = (stored - drawn.mean(dim=0)) / (drawn.std(dim=0) / math.sqrt(4000))
        assert error.abs().max() < 6
        assert stored.abs().max() > 0


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.mkdir, (self.trace,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, write):
    trace, checkpoint = tmp_path / "trace", tmp_path / "G.pth"
    write({"siren.final_layer.weight": torch.zeros(1, 2), "extra": Malicious(trace)}, checkpoint)
    with pytest.raises(UserError, match=r"G\.pth is not a checkpoint of plain tensors"):
        official.read(checkpoint)
    assert not trace.exists()


def test_the_command_refuses_a_checkpoint_with_code_in_one_line(tmp_path, capsys):
    from cips3d import cli

    trace, checkpoint, out = tmp_path / "trace", tmp_path / "G.pth", tmp_path / "out.safetensors"
    torch.save({"extra": Malicious(trace)}, checkpoint)
    with pytest.raises(SystemExit) as end:
        cli.main(["import-official", str(checkpoint), str(out)])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not trace.exists() and not out.exists()


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("these are no weights"),
        cut_in_half,
        lambda path: torch.save({"step": 3, "weights": torch.zeros(2)}, path),
        lambda path: torch.save(torch.zeros(2), path),
        lambda path: shutil.copy(DATA / "generator.safetensors", path),
    ],
    ids=["missing", "empty", "text", "truncated", "training state", "tensor", "safetensors"],
)
def test_other_files_are_refused(tensors, tmp_path, spoil):
    path = tmp_path / "G.pth"
    torch.save(below(tensors, "param/"), path)
    spoil(path)
    with pytest.raises(UserError, match=r"G\.pth"):
        official.read(path)


def changed(state: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    state = {name: tensor for name, tensor in state.items() if name != key}
    return state if value is None else state | {key: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("siren.network.0.gain_fc.weight", None),
        ("siren.final_layer.bias", None),
        ("inr_net.network.4.mod1.weight", None),
        ("siren.final_layer.bias", torch.zeros(7)),
        ("siren.color_layer_linear.0.weight", torch.zeros(3)),
        ("siren.network.0.attention.weight", torch.zeros(3, 3)),
        ("inr_net.network.last.mod1.weight", torch.zeros(1, 32, 32)),
        ("head.weight", torch.zeros(3)),
    ],
)
def test_a_generator_checkpoint_of_another_shape_is_refused(tensors, key, value):
    with pytest.raises(UserError, match="my checkpoint"):
        official.import_generator(changed(below(tensors, "param/"), key, value), "my checkpoint")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_conv.equal_conv.weight", None),
        ("conv_in.4.equal_conv.weight", None),
        ("conv_in.8.equal_conv.weight", None),
        ("out_linear.weight", None),
        ("space_linear.weight", torch.zeros(7, 7)),
        ("head.weight", torch.zeros(3)),
    ],
)
def test_a_discriminator_checkpoint_of_another_shape_is_refused(key, value):
    with pytest.raises(UserError):
        official.import_discriminator(
            changed(below(recorded("discriminator"), "param/main/"), key, value), "my checkpoint"
        )


# ---------------------------------------------------------------- single functions
COMPOSITED = {"relu": 0.0, "relu_noise05": 0.5}


@pytest.mark.parametrize("name", COMPOSITED)
def test_compositing(units, name):
    features, sigma = units["integ.rgb_sigma"].split([4, 1], dim=-1)
    t, noise = units["integ.z_vals"][..., 0], units["integ.noise"][..., 0] * COMPOSITED[name]
    weights = volume.compositing_weights(t, sigma[..., 0] + noise, volume.ENDLESS)
    assert worst(weights, units[f"integ.{name}.weights"][..., 0]) < SINGLE
    assert worst((weights[..., None] * features).sum(dim=2), units[f"integ.{name}.V"]) < SINGLE
    assert worst((weights * t).sum(dim=2), units[f"integ.{name}.depth"][..., 0]) < SINGLE


class RecordedSamples(RadianceField):
    """A radiance field of given samples, found again by their depths along rays from (0, 0, 1)."""

    def __init__(self, config: FieldConfig, samples: Tensor, t: Tensor) -> None:
        super().__init__(config, 4)
        self.samples, self.t = samples, t

    def density_along(self, rays: Rays, t: Tensor, w: Tensor) -> Tensor:
        return self.samples[..., 4]

    def forward(
        self, points: Tensor, directions: Tensor | None, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        nearest = (
            ((1 - points[..., 2])[..., None] - self.t.flatten(1)[:, None]).abs().argmin(dim=-1)
        )
        found = self.samples.flatten(1, 2).gather(1, nearest[..., None].expand(-1, -1, 5))
        return found[..., 4], found[..., :4]

    def project(self, hidden: Tensor, opacity: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize(
    ("background", "name"),
    [("endless", "relu"), ("last", "relu_lastback"), ("white", "relu_whiteback")],
)
def test_backgrounds(units, background, name):
    samples, t = units["integ.rgb_sigma"], units["integ.z_vals"][..., 0]
    networks = Cips3dNetworks(
        feature_dim=4, shape_style_dim=2, inr_width=2, background=background, extent=0.2
    )
    network = Generator(GeneratorConfig(networks))
    network.nerf = RecordedSamples(networks, samples, t)
    even = torch.linspace(1 - 0.2, 1 + 0.2, 7, dtype=torch.float64)
    jitter = (t - even) / (even[1] - even[0]) + 0.5
    draws = RayDraws(jitter.float(), torch.zeros(2, 5, 0))
    origins = torch.tensor([0.0, 0.0, 1.0]).expand(2, 5, 3)
    feature, depth, opacity, _ = network.render_features(
        torch.zeros(2, 2), Rays(origins, -origins), Sampling(7, 0), draws
    )
    # white shows through the last interval; in the authors' code any density there hides it
    same = samples[:, :, -1, 4] <= 0 if background == "white" else torch.full((2, 5), True)
    assert same.sum() >= 3
    assert worst(feature[same], units[f"integ.{name}.V"][same]) < 2 * SINGLE
    recorded_depth = units[f"integ.{name}.depth"][..., 0]
    assert worst((depth - (1 - opacity) * 1.2)[same], recorded_depth[same]) < 2 * SINGLE
    assert worst(opacity[same], units[f"integ.{name}.weights"].sum(dim=(2, 3))[same]) < SINGLE


@pytest.mark.parametrize("name", ["det", "rand"])
def test_importance_sampling(units, name):
    bins, weights = units["pdf.bins"], units["pdf.weights"]
    u = units["pdf.u"] if name == "rand" else torch.linspace(0, 1, 12).expand(6, 12)
    assert worst(volume.invert_cdf(bins, weights, u), units[f"pdf.{name}"]) < SINGLE


def test_camera_poses(units):
    yaw, pitch = (math.pi / 2 - units["cam.yaw_pitch_in"]).unbind(-1)
    pitch = pitch.clamp(max=math.pi / 2 - 1e-5)  # the authors stay this far from the pole
    camera = Camera.orbit(yaw.double(), pitch.double())
    assert worst(camera.position, units["cam.origin"].double()) < SINGLE
    off_pole = pitch < 1.5  # nearer to the pole, float32 leaves three digits of up
    assert off_pole.sum() == 6
    assert worst(camera.cam_to_world[off_pole], units["cam.cam2world"][off_pole].double()) < SINGLE
    assert worst(camera.cam_to_world, units["cam.cam2world"].double()) < 2e-2


def test_free_cameras(units):
    position, forward = units["cam.lookup_origin"], units["cam.lookup_in"]
    camera = Camera.look_at(position, position + forward, units["cam.up_in"])
    assert worst(camera.cam_to_world, units["cam.lookup_cam2world"]) < SINGLE


# the authors' half width of "spherical_uniform" is one of (1 − sin pitch)/2 in units of π
SPHERICAL_PITCH = math.asin(2 * 0.155 / math.pi)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gaussian", PoseDistribution(kind="gaussian")),
        ("uniform", PoseDistribution(kind="uniform")),
        ("spherical_uniform", PoseDistribution(kind="spherical", pitch_std=SPHERICAL_PITCH)),
    ],
)
def test_camera_distributions(units, theirs, ours):
    record = below(units, f"camdist.{theirs}.")
    draws = torch.cat([record["draw0"], record["draw1"]], dim=-1)
    # the authors' angles run the other way
    draws = -draws if theirs == "gaussian" else 1 - draws
    yaw, pitch = ours.angles(draws)
    assert worst(math.pi / 2 - yaw, record["yaw"][:, 0]) < SINGLE
    assert worst(math.pi / 2 - pitch, record["pitch"][:, 0]) < SINGLE
    assert worst(ours.camera(draws).position, record["origin"]) < SINGLE


@pytest.mark.parametrize(("size", "fov"), [(4, 12.0), (5, 30.0)])
def test_pixel_grids(units, size, fov):
    record = below(units, f"rays.px{size}_fov{fov:.0f}.")
    camera = Camera(torch.eye(4, dtype=torch.float64)[None], torch.tensor([fov]).double())
    rays = camera.from_corner_grid(size).to(torch.float32).rays(size, size)
    assert worst(rays.directions, record["dirs"]) < SINGLE
    bounds = torch.full((1, size * size, 1), NEAR), torch.full((1, size * size, 1), FAR)
    t = volume.stratified_depths(*bounds, COARSE)
    assert worst(t, record["z_vals"][..., 0]) < SINGLE
    assert worst(t[..., None] * rays.directions[:, :, None], record["points"]) < SINGLE


@pytest.mark.parametrize("way", ["bmm", "group_conv"])
def test_modulated_layer(units, way):
    record = below(units, "sinstylemod.")
    layer = ModulatedLinear(6, 5, 4)
    layer.load_state_dict(
        {
            "weight": record["state.weight"][0],
            "affine.weight": record["state.modulation.weight"],
            "affine.bias": record["state.modulation.bias"],
        }
    )
    product = record["x"] @ layer.modulated_weight(record["style"])
    assert worst(product, record[way]) < SINGLE


def test_film_siren_layer(units):
    record = below(units, "film.")
    layer = FilmSiren(6, 5, 4)
    names = {"linear": "linear", "gain_fc": "gain", "bias_fc": "phase"}
    state = below(record, "state.")
    layer.load_state_dict(
        {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    )
    # arguments of the sine reach 100, where float32 is spaced by 8e-6
    assert worst(layer(record["x"], record["style"]), record["out"]) < 5e-5
