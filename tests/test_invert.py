"""Inversion finds subject and camera again, keeps the radiance field, and refuses bad input."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import cips3d
import tiny
from cips3d import Camera, UserError, cli, pretrained
from cips3d.camera import PoseDistribution
from cips3d.editing.comparisons import found_views_sheet
from cips3d.editing.inversion import Inversion, InversionConfig, invert
from cips3d.editing.reach import Nearness, Reach, reach
from cips3d.editing.similarity import discriminator_distance, lpips_distance, pixel_distance, psnr
from cips3d.editing.style_space import StyleSpace
from cips3d.editing.subject import Subject
from cips3d.editing.target import Target
from cips3d.editing.tuning import other_views, random_rays, rendered_features, tune
from cips3d.export import sheets
from cips3d.metrics.views import angle_between
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.registry import build_generator
from cips3d.models.types import Sampling, Styles

FEW = InversionConfig(steps=(4, 6, 6, 6))


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    made = build_generator(tiny.GENERATOR).eval().requires_grad_(False)
    made.update_style_means(64)
    return made


def image_of(generator: Generator, camera: Camera, seed: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return generator.render(
            generator.sample_latents(1, seed), camera, generator.config.resolution, psi=0.7
        ).image


def test_a_subject_of_the_bundled_model_is_found_again() -> None:
    generator = cips3d.load("heads")
    generator.config = replace(generator.config, resolution=32, sampling=Sampling(8, 8))
    camera = Camera.orbit(0.3, 0.05)
    image = image_of(generator, camera)
    found = invert(generator, image, "w", config=replace(FEW, steps=(25, 15, 0, 0)))
    assert float(angle_between(*camera.yaw_pitch(), *found.camera.yaw_pitch())) < 5.0
    with torch.no_grad():
        again = generator.render(found.styles, found.camera, 32).image
        other_side = generator.render(found.styles, Camera.orbit(-0.3), 32).image
        truth = image_of(generator, Camera.orbit(-0.3))
    assert float((again - image).abs().mean()) < 0.1
    assert float((other_side - truth).abs().mean()) < 0.15
    wrong = image_of(generator, Camera.orbit(-0.3), seed=4)  # another subject is much farther
    assert float((other_side - wrong).abs().mean()) > 2 * float((other_side - truth).abs().mean())


def test_each_step_comes_nearer_and_leaves_the_model_as_it_was(generator: Generator) -> None:
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    image = torch.tensor([0.6, -0.3, 0.1])[None, :, None, None].expand(
        1, 3, 8, 8
    )  # none of its own
    shares: list[float] = []
    found = invert(
        generator, image, start=Camera.orbit(0.1), config=replace(FEW, steps=(5, 20, 20, 20)),
        progress=lambda share, _: shares.append(share),
    )  # fmt: skip
    w, plus = found.earlier
    assert (
        isinstance(w.styles.appearance, torch.Tensor)
        and len(plus.styles.appearance) == tiny.GENERATOR.networks.inr_blocks
    )

    def distance(step: Inversion) -> float:
        return float(
            pixel_distance(step.generator.render(step.styles, step.camera, 8).image, image)
        )

    assert distance(found) < 0.9 * distance(plus) and distance(plus) < 1.001 * distance(w)
    assert [step.loss for step in (w, plus, found)] == pytest.approx(
        [distance(step) for step in (w, plus, found)], rel=1e-4
    )
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name])
        changed = not torch.equal(tensor, found.generator.state_dict()[name])
        assert changed == name.startswith("inr."), name
    assert plus.generator is generator


def reddened(model: Generator, yaw: float) -> tuple[Target, Styles, Camera]:
    """An image of one of the model's own subjects, made redder."""
    styles, camera = model.map(model.sample_latents(1, 3), 0.7), Camera.orbit(yaw)
    image = model.render(styles, camera).image + torch.tensor([0.1, 0.0, 0.0])[:, None, None]
    return Target(model, image, None, InversionConfig()), styles, camera


def bundled(side: int) -> Generator:
    model = cips3d.load("heads")
    model.config = replace(model.config, resolution=side)
    return model


def turned(model: Generator, yaw: float) -> Generator:
    """The same subjects and cameras, turned about y, as a learned prior may have drifted."""
    first = model.nerf.layers[0].linear.weight
    turn = Camera.orbit(yaw).cam_to_world[0, :3, :3]
    first.data = first @ turn.T
    model.config = replace(model.config, poses=replace(model.config.poses, yaw_mean=yaw))
    return model


@pytest.mark.parametrize("front", [0.0, 0.3])
def test_targets_of_other_views(front: float) -> None:
    model = turned(bundled(64), front)
    for yaw in (0.0, 0.4, -0.4):
        target, styles, camera = reddened(model, front + yaw)
        target = replace(target, config=InversionConfig(keep_weight=0.25, mirror_weight=0.5))
        rays = random_rays(target, torch.Generator().manual_seed(0))
        field, wanted, weight = other_views(target, camera, styles, rays)
        change = wanted - model.inr(field.feature, styles.appearance)
        solid = rendered_features(model, styles, rays).opacity > 0.5
        shown, mirrored, kept = (weight == value for value in (1.0, 0.5, 0.25))
        assert float(shown.sum() / solid.sum()) > 0.5
        assert not bool(((shown | mirrored) & ~solid).any())
        share = float(mirrored.sum() / solid.sum())
        assert share < 0.02 if yaw == 0 else 0.05 < share < 0.5
        redder = shown | mirrored | ~solid  # the background is redder in the image too
        red = torch.tensor([0.1, 0.0, 0.0]).expand(int(redder.sum()), 3)
        torch.testing.assert_close(change[redder], red, atol=1e-4, rtol=0)
        assert float(change[kept & solid].abs().max()) < 1e-5


def test_the_hidden_side_stays_or_follows_its_mirror_image() -> None:
    model, changes = bundled(32), []
    target, styles, camera = reddened(model, 0.5)

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    rays = random_rays(target, draws())
    strong = replace(target, config=InversionConfig(mirror_weight=30.0))
    field, _, weight = other_views(strong, camera, styles, rays)
    before, hidden = model.inr(field.feature, styles.appearance), weight == 30.0
    for keep, mirror in ((0.0, 0.0), (30.0, 0.0), (30.0, 30.0)):
        config = InversionConfig((0, 0, 0, 40), keep_weight=keep, mirror_weight=mirror)
        tuned = tune(replace(target, config=config), camera, styles, draws(), lambda: None)
        after = tuned.inr(field.feature, styles.appearance)
        changes.append(float((after - before)[hidden][:, 0].mean()))
    free, kept, mirrored = changes
    assert kept < 0.5 * free and mirrored > 2 * kept, changes


def test_tuning_fits_a_far_sphere_too() -> None:
    """It shows the image where the subject is not, and stays as it was in the model."""
    torch.manual_seed(1)
    model = build_generator(tiny.generator(background="field", resolution=12)).eval()
    model.requires_grad_(False).nerf.density.bias -= 0.2
    model.update_style_means(64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.tensor([0.6, -0.3, 0.1])[None, :, None, None].expand(1, 3, 12, 12)
    config = replace(FEW, steps=(4, 6, 6, 40))
    found = invert(model, image, start=Camera.orbit(0.1), config=config)
    w = found.earlier[-1]
    errors, empty = [], None
    for step in (w, found):
        out = step.generator.render(step.styles, step.camera, 12)
        empty = out.opacity < 0.1 if empty is None else empty
        errors.append(float((out.image - image).abs()[empty.expand_as(image)].mean()))
    assert float(empty.float().mean()) > 0.1
    assert errors[1] < 0.5 * errors[0], errors
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("space", ["w", "tuned"])
def test_short_memory_changes_nothing_but_rounding(
    space: Literal["w", "tuned"], generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, losses = image_of(generator, Camera.orbit(0.2)), []
    for chunk in (10**6, 7):
        monkeypatch.setattr(Target, "chunk", lambda *_, chunk=chunk: chunk)
        losses.append(invert(generator, image, space, start=Camera.orbit(0.1), config=FEW).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_it_starts_from_the_camera_that_the_discriminator_predicts(generator: Generator) -> None:
    discriminator = ProgressiveDiscriminator(
        DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    ).requires_grad_(False)
    assert discriminator.pose is not None
    discriminator.pose.weight.zero_()
    discriminator.pose.bias.copy_(torch.tensor([0.25, -0.1]))
    image = image_of(generator, Camera.orbit(0.2))
    config = replace(FEW, steps=(1, 1, 1, 1))
    found = invert(generator, image, "w", discriminator=discriminator, config=config)
    yaw, pitch = found.camera.yaw_pitch()
    assert float(yaw) == pytest.approx(0.25, abs=0.03) and float(pitch) == pytest.approx(
        -0.1, abs=0.03
    )
    elsewhere = invert(
        generator, image, "w", start=Camera.orbit(-0.4), discriminator=discriminator, config=config
    )
    assert float(elsewhere.camera.yaw_pitch()[0]) == pytest.approx(-0.4, abs=0.03)
    assert (
        elsewhere.loss > invert(generator, image, "w", start=Camera.orbit(-0.4), config=config).loss
    )  # features count


def test_a_model_in_double_precision_takes_its_discriminator_in_single(
    generator: Generator,
) -> None:
    discriminator = ProgressiveDiscriminator(
        DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    ).requires_grad_(False)
    image = image_of(generator, Camera.orbit(0.2))
    double = copy.deepcopy(generator).double()
    found = invert(
        double,
        image.double(),
        "w",
        discriminator=discriminator,
        config=replace(FEW, steps=(1, 1, 1, 1)),
    )
    assert (
        found.styles.shape.dtype == torch.float64
        and next(discriminator.parameters()).dtype == torch.float32
    )


def test_a_network_of_one_block_takes_each_steps_own_number() -> None:
    one = build_generator(tiny.generator(inr_blocks=1)).eval().requires_grad_(False)
    calls: list[tuple[float, str]] = []
    config = replace(FEW, steps=(1, 2, 3, 4))
    invert(
        one,
        image_of(one, Camera.orbit(0.1)),
        config=config,
        progress=lambda *call: calls.append(call),
    )
    assert [step for _, step in calls] == ["w"] * 3 + ["w+"] * 3 + ["tuned"] * 4
    assert calls[-1][0] == pytest.approx(1.0)


def test_it_is_the_same_for_the_same_seed(generator: Generator) -> None:
    image = image_of(generator, Camera.orbit(0.2))
    first, again = (invert(generator, image, "w", config=FEW, seed=5) for _ in range(2))
    assert torch.equal(first.styles.shape, again.styles.shape)
    assert torch.equal(first.camera.cam_to_world, again.camera.cam_to_world)


def test_the_camera_of_a_uniform_prior_keeps_its_radius(generator: Generator) -> None:
    poses = PoseDistribution("uniform", yaw_std=0.5, pitch_std=0.0, radius=1.3, fov=20.0)
    other = build_generator(tiny.generator(poses=poses)).requires_grad_(False)
    found = invert(other, image_of(other, Camera.orbit(0.1, radius=1.3, fov=20.0)), "w", config=FEW)
    assert (
        float(found.camera.position.norm()) == pytest.approx(1.3, abs=1e-5)
        and float(found.camera.fov) == 20.0
    )


def test_styles_that_are_fitted_start_where_the_subject_is(generator: Generator) -> None:
    """Styles survive the round trip through normal coordinates."""
    space = StyleSpace(generator, torch.Generator().manual_seed(0))
    styles = generator.map(generator.sample_latents(5, 1))
    assert isinstance(styles.appearance, torch.Tensor)
    for normal, w in ((space.shape, styles.shape), (space.appearance, styles.appearance)):
        torch.testing.assert_close(normal.styles(normal.coordinates(w)), w, atol=1e-4, rtol=1e-3)
    many = space.shape.coordinates(generator.map(generator.sample_latents(2000, 2)).shape)
    torch.testing.assert_close(many.mean(dim=0), torch.zeros(8), atol=0.2, rtol=0)
    assert float(many.square().mean()) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(1, 3, 8, 9), "9x8"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 3, 8, 8), 127.0), "outside"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "outside"),
        (torch.zeros(2, 3, 8, 8), r"shape \(2, 3"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8"),
    ],
)
def test_a_tensor_that_is_not_an_image_is_refused(
    generator: Generator, image: torch.Tensor, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        invert(generator, image)


def test_an_image_is_a_path_a_pil_image_an_array_or_a_tensor(
    generator: Generator, tmp_path: Path
) -> None:
    """All forms of one image find the same subject."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    floats = pixels.astype(np.float32) / 127.5 - 1
    tensor = torch.from_numpy(floats).permute(2, 0, 1)[None]
    config = replace(FEW, steps=(2, 2, 0, 0))
    forms: list[Any] = [tensor, tmp_path / "image.png", str(tmp_path / "image.png"), image]
    forms += [image.convert("RGBA"), pixels, pixels[:, ::-1][:, ::-1], floats, floats.astype(float)]
    found = [invert(generator, form, "w", config=config).styles.shape for form in forms]
    assert all(torch.equal(shape, found[0]) for shape in found)
    wide = np.pad(pixels, ((0, 0), (3, 3), (0, 0)))  # the central square is used
    for form in (wide, Image.fromarray(wide)):
        assert torch.equal(invert(generator, form, "w", config=config).styles.shape, found[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "image: int given; give a path, a PIL image, an array .* or a tensor"),
        (None, "image: NoneType given"),
        ([[0.0]], "image: list given"),
        (b"bytes", "image: bytes given"),
        ("nowhere.png", "nowhere.png: there is no such file"),
        (np.zeros((8, 8), np.uint8), r"image: the array has the shape \(8, 8\); give \(height"),
        (np.zeros((3, 8, 8), np.uint8), r"image: the array has the shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"image: the array has the shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "image: the array is of int64; give uint8"),
        (np.zeros((8, 9, 3)), "image: is 9x8; give a square one"),
        (np.full((8, 8, 3), 255.0), "image: has colours far outside"),
        (np.full((8, 8, 3), np.nan), "image: has NaN"),
        (Image.new("F", (8, 8)), "image: cannot be read"),
    ],
)
def test_anything_else_is_refused_in_one_line(
    generator: Generator, image: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        invert(generator, image)
    assert "\n" not in str(error.value)


def test_other_architectures_are_refused() -> None:
    for name in ("pi-gan", "cips-2d"):
        with pytest.raises(UserError, match=name):
            invert(build_generator(tiny.generator(architecture=name)), torch.zeros(1, 3, 8, 8))


# ---------------------------------------------------------------- distances
def test_features_of_a_discriminator_measure_similarity() -> None:
    torch.manual_seed(0)
    distance = discriminator_distance(
        ProgressiveDiscriminator(DiscriminatorConfig({4: 8, 8: 8, 16: 8}))
    )
    a = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(distance(a, a), torch.zeros(2))
    near, far = distance(a, a + 0.05 * torch.randn_like(a)), distance(a, a.flip(3))
    assert bool((near < far).all()) and bool((near > 0).all())
    larger = torch.rand(1, 3, 64, 64)  # than the discriminator takes
    assert float(distance(larger, larger.flip(2)).detach()) > 0


def test_pixels_see_a_shift_as_small_and_a_change_as_large() -> None:
    board = torch.zeros(1, 3, 16, 16)
    board[..., 4:8] = 1.0
    shifted, gone = board.roll(1, dims=3), torch.zeros_like(board)
    assert 0 < float(pixel_distance(board, shifted)) < float(pixel_distance(board, gone))
    assert float(pixel_distance(board, board)) == 0


def test_lpips_that_is_not_installed_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(UserError, match="pip install lpips"):
        lpips_distance(torch.device("cpu"), 64)
    with pytest.raises(
        UserError, match="features lpips: needs images of at least 32², the model's are 8²"
    ):
        lpips_distance(torch.device("cpu"), 8)


# ---------------------------------------------------------------- subjects as files
def test_lpips_is_the_default_without_a_discriminator_if_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compared: list[torch.Size] = []

    class Lpips(torch.nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            compared.append(a.shape)
            return (a - b).square().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(
        sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips, __spec__=ModuleSpec("lpips", None))
    )
    monkeypatch.setattr("cips3d.editing.similarity._LPIPS_SIDE", 8)
    command = [
        "invert",
        str(folder / "me.png"),
        str(folder / "model.safetensors"),
        "--space",
        "w",
        "--effort",
        "0.02",
    ]
    cli.main([*command, str(tmp_path / "out")])
    assert compared
    compared.clear()
    cli.main([*command, str(tmp_path / "other"), "--features", "none"])
    monkeypatch.setattr(
        Lpips,
        "__init__",
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("of another torch\nat length")),
    )
    cli.main([*command, str(tmp_path / "third")])
    assert (
        not compared
        and "of another torch); choose another distance; only colours are compared" in caplog.text
    )
    with pytest.raises(SystemExit):
        cli.main([*command, str(tmp_path / "fourth"), "--features", "lpips"])


@pytest.mark.parametrize("by_block", [False, True])
def test_a_subject_is_read_as_it_was_written(
    generator: Generator, tmp_path: Path, by_block: bool
) -> None:
    styles = generator.map(generator.sample_latents(1, 0))
    assert isinstance(styles.appearance, torch.Tensor)
    if by_block:
        styles = Styles(styles.shape, [styles.appearance, styles.appearance + 1])
    camera = Camera.orbit(0.3, 0.1, fov=14.0)
    Subject(styles, camera).save(tmp_path / "subject.safetensors", generator)
    again = Subject.load(tmp_path / "subject.safetensors", generator)
    sampling = Sampling(4, 4)
    torch.testing.assert_close(again.camera.cam_to_world, camera.cam_to_world)
    torch.testing.assert_close(again.camera.fov, camera.fov)
    images = [
        generator.render(s, camera, 8, sampling=sampling).image for s in (styles, again.styles)
    ]
    assert torch.equal(*images)
    other = build_generator(tiny.generator(shape_style_dim=9))
    with pytest.raises(UserError, match="other networks"):
        Subject.load(tmp_path / "subject.safetensors", other)
    with pytest.raises(UserError, match="other networks"):
        Subject.load(
            tmp_path / "subject.safetensors",
            build_generator(tiny.generator(appearance_style_dim=9)),
        )


def test_a_subject_is_one_of_the_models_with_its_nerf(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "subject.safetensors"
    Subject(generator.map(generator.sample_latents(1, 0)), Camera.orbit(0.3)).save(path, generator)
    tuned, other = copy.deepcopy(generator), copy.deepcopy(generator)
    tuned.inr.to_rgb[0].weight.add_(1.0)
    Subject.load(path, tuned)
    Subject.load(path, copy.deepcopy(generator).double())
    other.nerf.density.bias.add_(1e-6)
    with pytest.raises(
        UserError, match=r"subject\.safetensors is a subject of another model; give its own"
    ):
        Subject.load(path, other)


def test_damaged_subjects_are_refused_in_one_line(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "subject.safetensors"
    pretrained.save(generator, path)
    with pytest.raises(UserError, match="not a subject"):
        Subject.load(path, generator)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"subject\.safetensors"):
        Subject.load(path, generator)
    with pytest.raises(UserError, match="nowhere"):
        Subject.load(tmp_path / "nowhere", generator)
    styles, camera = generator.map(generator.sample_latents(1, 0)), Camera.orbit(0.1)
    Subject(replace(styles, shape=styles.shape * torch.nan), camera).save(path, generator)
    with pytest.raises(UserError, match=r"subject\.safetensors is damaged: it contains NaN"):
        Subject.load(path, generator)
    Subject(styles, replace(camera, cam_to_world=camera.cam_to_world * 2)).save(path, generator)
    with pytest.raises(UserError, match=r"subject\.safetensors is damaged: camera label"):
        Subject.load(path, generator)


# ---------------------------------------------------------------- the command line
@pytest.fixture(scope="module")
def folder(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("invert")
    pretrained.save(generator, folder / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "me.png")
    return folder


def test_invert_writes_everything_needed_to_continue(folder: Path, generator: Generator) -> None:
    out = folder / "found"
    cli.main(
        [
            "invert",
            str(folder / "me.png"),
            str(folder / "model.safetensors"),
            str(out),
            "--effort",
            "0.03",
        ]
    )
    result = json.loads((out / "inversion.json").read_text())
    subject = Subject.load(out / "subject.safetensors", pretrained.load(out / "model.safetensors"))
    assert result["yaw"] == pytest.approx(
        float(torch.rad2deg(subject.camera.yaw_pitch()[0])), abs=1e-3
    )
    headings = {0: ["input", "w", "w+", "tuned"], 1: ["-40°", "-20°", "0°", "20°", "40°"]}
    expected = sheets.labelled_grid(3, 5, (256, 256), [], ["", "views", "depth"], headings)
    assert np.asarray(Image.open(out / "report.png")).shape == expected.shape
    width, height = Image.open(out / "views.png").size
    assert 7 * 256 < width < 9 * 256 and 2 * 256 < height < 3 * 256
    by_block = [
        "--subject",
        str(out / "subject.safetensors"),
        "--seeds",
        "3",
        "--views",
        "1",
    ]  # of one appearance
    cli.main(
        [
            "render",
            str(out / "model.safetensors"),
            str(out / "both.gif"),
            *by_block,
            "--seconds",
            "0.1",
        ]
    )


def test_what_was_reached_is_printed_and_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that is farther away than the model's subjects are from each other is foreign."""
    near, far = (Nearness(psnr, distance) for psnr, distance in ((30.0, 0.01), (10.0, 1.2)))
    words = ["invert", str(folder / "me.png"), str(folder / "model.safetensors")]
    for found, foreign in ((near, False), (far, True)):
        monkeypatch.setattr(
            "cips3d.editing.reach.reach", lambda *_, f=found, **__: Reach(near, f, near, 0.7)
        )
        cli.main([*words, str(folder / "out"), "--effort", "0.003"])
        printed = capsys.readouterr()
        assert "reached: 30.0 dB, perceptual distance 0.010" in printed.out
        assert "own subjects reach 30.0 dB" in printed.out
        assert ("warning: the image is far from what the model knows" in printed.err) == foreign
        stored = json.loads((folder / "out/inversion.json").read_text())["reach"]
        assert stored["among_subjects"]["distance"] == found.distance


def test_a_subject_is_nearer_than_noise_which_is_foreign() -> None:
    """With the bundled model, a few steps and its discriminator's features."""
    bundled = pretrained.load("heads")
    discriminator = pretrained.load_main_discriminator("heads")
    steps = InversionConfig(steps=(6, 10, 1, 1))
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        camera = bundled.config.poses.sample(1, draws)
        own = bundled.render(bundled.sample_latents(1, draws), camera, 64, psi=0.7).image
    options: dict[str, Any] = {"discriminator": discriminator, "config": steps}
    results = []
    for image in (own, torch.rand(own.shape, generator=draws) * 2 - 1):
        found = cips3d.invert(bundled, image, "w", **options)
        assert isinstance(bundled, Generator)
        results.append(reach(bundled, image, found, **options))
    known, foreign = results
    assert not known.is_foreign and foreign.is_foreign
    assert known.reached.psnr > 20 > foreign.reached.psnr
    assert known.own == foreign.own and known.among_subjects == known.reached


def test_psnr() -> None:
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image, image) == 100
    assert psnr(image, image + 0.02) == pytest.approx(40, abs=1e-3)
    assert psnr(image + 1, image + 5) == 100  # beyond white


def test_the_image_is_beside_the_views_of_its_subject(generator: Generator) -> None:
    image = torch.full((1, 3, 8, 8), -1.0)
    styles = generator.map(generator.sample_latents(1, 0))
    found = Inversion(Camera.orbit(0.1), styles, generator, 0.0)
    sheet = found_views_sheet(image, found, (-10, 0, 10))
    headings = ["input", "-10°", "0°", "10°"]
    grid = sheets.labelled_grid(2, 4, (256, 256), [], ["image", "depth"], headings)
    assert sheet.shape == grid.shape
    black = (sheet == 0).all(axis=2)
    assert black.sum() >= 256 * 256 and black[:, : black.shape[1] // 3].sum() >= 256 * 256


def test_options_reach_the_search(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def find(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise UserError("asked")

    monkeypatch.setattr("cips3d.invert", find)
    model = str(folder / "model.safetensors")
    options = ["--yaw", "-20", "--pitch", "5", "--mirror", "0", "--effort", "0.5", "--seed", "4"]
    with pytest.raises(SystemExit):
        cli.main(["invert", str(folder / "me.png"), model, str(tmp_path / "out"), *options])
    usual, (config, start) = InversionConfig(), (asked["config"], asked["start"])
    assert (
        config.mirror_weight == 0
        and config.steps == tuple(round(steps / 2) for steps in usual.steps)
        and asked["seed"] == 4
    )
    torch.testing.assert_close(
        start.cam_to_world, Camera.orbit(*torch.tensor([[-20.0], [5.0]]).deg2rad()).cam_to_world
    )
    monkeypatch.setitem(sys.modules, "test_invert", SimpleNamespace(SIGHT=SIGHT))
    with pytest.raises(SystemExit):
        cli.main(
            [
                "invert",
                str(folder / "me.png"),
                model,
                str(tmp_path / "out"),
                "--predictor",
                "test_invert:SIGHT",
            ]
        )
    torch.testing.assert_close(asked["start"].cam_to_world, Camera.orbit(0.25, -0.125).cam_to_world)
    assert asked["discriminator"] is None and asked["features"] is None


def test_a_predictor_that_finds_nothing_gives_no_start(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.full((1,), torch.nan)
    blind = SimpleNamespace(pose=lambda _: (nothing, nothing), identity=SIGHT.identity)
    monkeypatch.setitem(sys.modules, "test_invert", SimpleNamespace(BLIND=blind))
    image, model = str(folder / "me.png"), str(folder / "model.safetensors")
    with pytest.raises(SystemExit) as exit:
        options = ["--predictor", "test_invert:BLIND"]
        cli.main(["invert", image, model, str(tmp_path / "out"), *options])
    said = "--predictor test_invert:BLIND: finds no subject in the image; give --yaw"
    assert exit.value.code == 2 and said in capsys.readouterr().err


#: Sees everything from one side.
SIGHT = SimpleNamespace(
    pose=lambda images: (torch.full((len(images),), 0.25), torch.full((len(images),), -0.125)),
    identity=lambda images: torch.ones(len(images), 2),
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--yaw", "nan"], "--yaw"),
        (["--yaw", "3", "--predictor", "heads"], "--yaw and --predictor"),
        (["--effort", "0"], "--effort"),
        (["--mirror", "-1"], "--mirror"),
        (["--yaw", "0", "--pitch", "90"], "--pitch is 90"),
        (["--features", "discriminator"], "--features discriminator"),
        (["--predictor", "no.such:thing"], "--predictor no.such:thing"),
        (["--seed", "-2"], "--seed"),
    ],
)
def test_options_that_make_no_sense(
    folder: Path, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(
            [
                "invert",
                str(folder / "me.png"),
                str(folder / "model.safetensors"),
                str(tmp_path / "out"),
                *options,
            ]
        )
    assert exit.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_image(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(
            [
                "invert",
                str(tmp_path / "no.png"),
                str(folder / "model.safetensors"),
                str(tmp_path / "out"),
            ]
        )
    assert (
        exit.value.code == 2 and "no.png: no such file; check the path" in capsys.readouterr().err
    )


def test_the_image_is_not_replaced_by_a_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("views.png", "report.png"):
        shutil.copy(folder / "me.png", tmp_path / name)
        with pytest.raises(SystemExit) as exit:
            cli.main(
                ["invert", str(tmp_path / name), str(folder / "model.safetensors"), str(tmp_path)]
            )
        assert (
            exit.value.code == 2
            and f"{name}: is an input, which would be replaced" in capsys.readouterr().err
        )
        assert (tmp_path / name).read_bytes() == (folder / "me.png").read_bytes()


def test_the_model_is_not_replaced_by_the_tuned_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    (tmp_path / "config.json").touch()  # a run
    for out in (folder, tmp_path):
        with pytest.raises(SystemExit) as exit:
            cli.main(
                ["invert", str(folder / "me.png"), str(folder / "model.safetensors"), str(out)]
            )
        assert exit.value.code == 2 and "would be replaced; give another" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "mine").mkdir()
    shutil.copy(folder / "model.safetensors", tmp_path / "mine")  # not an inversion's
    with pytest.raises(SystemExit):
        cli.main(["invert", str(folder / "me.png"), "heads", str(tmp_path / "mine")])
    assert "is not from an inversion" in capsys.readouterr().err
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == before


def test_a_model_that_cannot_be_written_leaves_the_last_inversion_whole(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "invert",
        str(folder / "me.png"),
        str(folder / "model.safetensors"),
        str(tmp_path),
        "--effort",
        "0.03",
    ]
    cli.main(words)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with tiny.full_disk_after(4000), pytest.raises(SystemExit) as exit:
        cli.main([*words, "--seed", "1"])
    assert (
        exit.value.code == 2
        and f"cannot write {tmp_path / 'model.safetensors'}" in capsys.readouterr().err
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "subject.safetensors", "inversion.json", "report.png", "views.png"],
)
def test_unwritable_results_are_reported_before_the_search(
    name: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "inversion.json").touch()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    monkeypatch.setattr("cips3d.invert", None)
    with pytest.raises(SystemExit) as exit:
        cli.main(
            ["invert", str(folder / "me.png"), str(folder / "model.safetensors"), str(tmp_path)]
        )
    assert exit.value.code == 2 and f"cannot write {tmp_path / name}" in capsys.readouterr().err


def test_the_tuned_model_has_the_discriminators_of_the_model(
    generator: Generator, folder: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "found"
    networks = torch.nn.ModuleDict(
        {
            name: ProgressiveDiscriminator(DiscriminatorConfig({4: 8, 8: 8}))
            for name in ("main", "aux")
        }
    )
    pretrained.save(generator, model, networks)
    words = ["invert", str(folder / "me.png"), str(model), str(out), "--effort", "0.03"]
    cli.main(words)
    kept = pretrained.load_discriminators(out / "model.safetensors")
    assert kept is not None
    for name, tensor in networks.state_dict().items():
        assert torch.equal(kept.state_dict()[name], tensor)
    pretrained.save(generator, model)
    cli.main(words)
    assert pretrained.load_discriminators(out / "model.safetensors") is None


def test_a_damaged_image_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(SystemExit) as exit:
            cli.main(
                [
                    "invert",
                    str(tmp_path / name),
                    str(folder / "model.safetensors"),
                    str(tmp_path / "out"),
                ]
            )
        assert exit.value.code == 2 and name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_found_subject_can_be_shown_and_blended(
    generator: Generator, folder: Path, tmp_path: Path
) -> None:
    model, subject = str(folder / "model.safetensors"), tmp_path / "subject.safetensors"
    styles = generator.map(generator.sample_latents(1, 9))
    Subject(styles, Camera.orbit(0.1)).save(subject, generator)
    view = ["--views", "1", "--show", "image", "--resolution", "8", "--yaw", "10"]
    cli.main(["render", model, str(tmp_path / "view.png"), "--subject", str(subject), *view])
    cli.main(["render", model, str(tmp_path / "same.png"), "--seeds", "9", "--psi", "1", *view])
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("view.png", "same.png")]
    assert np.array_equal(*images)
    cli.main(
        [
            "render",
            model,
            str(tmp_path / "less.png"),
            "--subject",
            str(subject),
            "--psi",
            "0.2",
            *view,
        ]
    )
    cli.main(["render", model, str(tmp_path / "least.png"), "--seeds", "9", "--psi", "0.2", *view])
    less = [np.asarray(Image.open(tmp_path / name)) for name in ("less.png", "least.png")]
    assert np.array_equal(*less) and not np.array_equal(less[0], images[0])
    cli.main(
        [
            "blend",
            model,
            model,
            str(tmp_path / "blend.png"),
            "--subject",
            str(subject),
            "--views",
            "2",
        ]
    )
    width, height = Image.open(tmp_path / "blend.png").size
    assert 2 * 256 < width < 3 * 256 and 256 < height < 2 * 256
    cli.main(
        [
            "render",
            model,
            str(tmp_path / "both.png"),
            "--subject",
            str(subject),
            "--seeds",
            "9",
            "--psi",
            "1",
            *view,
        ]
    )
    both = np.asarray(Image.open(tmp_path / "both.png"))
    column = both[:, -14:-6]  # cells of 8 pixels, gaps of 2, a margin of 6
    top, bottom = column[-24:-16], column[-14:-6]
    assert np.array_equal(top, bottom) and np.array_equal(top, images[0])
    with pytest.raises(SystemExit):
        cli.main(["render", model, str(tmp_path / "no.png"), "--subject", str(folder / "me.png")])
    assert not (tmp_path / "no.png").exists()
