"""Transfer keeps the NeRF bit-exactly; blends take weights of both models; styles mix by block."""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
from cips3d import Camera, UserError, cli, pretrained
from cips3d.camera import PoseDistribution, Rays
from cips3d.editing.blending import interpolate, mix_styles, swap_layers
from cips3d.editing.comparisons import amounts_sheet, mixing_sheet, views_sheet
from cips3d.editing.subject import Subject
from cips3d.export import sheets
from cips3d.export import strips as tiles
from cips3d.export.media import to_uint8
from cips3d.export.sheets import orbit_cameras
from cips3d.models.config import Sampling
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.registry import build_generator
from cips3d.models.types import Styles
from cips3d.training.loop import train
from cips3d.training.networks import Networks, freeze_blocks
from cips3d.training.presets import PRESETS, preset, transfer
from cips3d.training.run import Run

CAMERA = Camera.orbit(torch.tensor([0.3, -0.2]))


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", lambda: tiny.config())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, with its model and discriminators."""
    folder = tmp_path_factory.mktemp("base") / "run"
    train(Run(tiny.config(), folder))
    return folder


@pytest.fixture
def model(run: Path) -> str:
    return str(run / "model.safetensors")


@pytest.fixture(params=["plain", "field"])
def pair(request: pytest.FixtureRequest) -> tuple[Generator, Generator]:
    """A generator, and the same with another implicit network and another far sphere."""
    torch.manual_seed(0)
    base = build_generator(tiny.generator(background=request.param)).requires_grad_(False)
    other = copy.deepcopy(base)
    far = [other.surroundings] if other.surroundings else []
    for part in (other.inr, other.appearance_mapping, *far):
        for parameter in part.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for generator in (base, other):
        generator.update_style_means(16)
    return base, other


def rendered(generator: Generator) -> torch.Tensor:
    return generator.render(generator.sample_latents(2, 0), CAMERA, 8, psi=0.6).image


# ---------------------------------------------------------------- transfer
def test_transfer_keeps_the_nerf_and_trains_the_rest(model: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    settings = ["--seed", "3", "--set", "stages.0.warm_up_kimg=0.016"]
    cli.main(["finetune", model, run, "--data", "heads-cartoon", "--kimg", "0.04", *settings])
    before, after = pretrained.load(model), pretrained.load(tmp_path / "run" / "model.safetensors")
    latents, camera = before.sample_latents(2, 0), CAMERA
    old, new = (g.render(latents, camera, 8) for g in (before, after))
    assert torch.equal(old.depth, new.depth) and torch.equal(old.opacity, new.opacity)
    assert torch.equal(old.aux_image, new.aux_image)
    assert not torch.allclose(old.image, new.image, atol=1e-4)
    points = torch.rand(1, 50, 3) * 0.2 - 0.1
    densities = [g.nerf(points, None, g.map(latents[0]).shape)[0] for g in (before, after)]
    assert torch.equal(*densities)


def test_the_discriminators_continue_from_their_weights(model: str, tmp_path: Path) -> None:
    config = replace(tiny.config(), start=model)
    networks = Networks(config, torch.device("cpu"))
    saved = pretrained.load_discriminators(model)
    assert saved is not None and set(saved) == {"main", "aux"}
    image = torch.rand(2, 3, 8, 8)
    for name in saved:
        assert torch.equal(saved[name](image), networks.discriminators[name](image))
    # of another form: new ones
    other = replace(config.discriminator, channels={4: 8, 8: 16})
    anew = Networks(replace(config, discriminator=other), torch.device("cpu")).discriminators
    assert not torch.equal(anew["main"](image), saved["main"](image))
    assert torch.equal(anew["aux"](image), saved["aux"](image))


def test_discriminators_without_pose_heads_continue_too() -> None:
    base = preset("heads-32")
    silent = (
        replace(base.discriminator, pose_head=False),
        replace(base.aux_discriminator, pose_head=False),
    )
    discriminators = nn.ModuleDict(
        {name: ProgressiveDiscriminator(c) for name, c in zip(("main", "aux"), silent, strict=True)}
    )
    config = transfer(base.generator, "model", "heads-cartoon", discriminators, 10.0)
    assert (config.discriminator, config.aux_discriminator) == silent
    assert config.objective.pose is None


@pytest.mark.parametrize(
    ("name", "side", "taken", "weight"),
    [
        ("heads-32", 32, "heads-32", 15),
        ("heads-64", 64, "heads-64", 15),
        ("ffhq-256", 256, "ffhq-256", 0),
        ("ffhq-64", 64, "ffhq-64", 0),
    ],
)
def test_a_presets_model_finds_rates_and_discriminators(
    name: str, side: int, taken: str, weight: float
) -> None:
    generator = replace(
        preset(name).generator, resolution=side, poses=PoseDistribution(yaw_mean=0.1)
    )
    config = transfer(generator, "model", "heads-cartoon", None, 20.0)
    assert config.stages[0].warm_up_kimg == 3.0
    # in that stage all networks had to learn
    first = next(stage for stage in preset(taken).stages if stage.resolution == side)
    rates = [(stage.generator_lr, stage.discriminator_lr) for stage in (config.stages[0], first)]
    assert rates[0] == rates[1]
    assert [stage.resolution for stage in config.stages] == [side]
    assert config.discriminator == preset(taken).discriminator
    pose = config.objective.pose
    assert (0 if pose is None else pose.weight) == weight


def test_a_far_sphere_learns_the_new_domain() -> None:
    """It is an appearance, as the implicit network; the plain background is of the shape."""
    frozen = {}
    for background in ("plain", "field"):
        config = tiny.generator(background=background)
        found = transfer(config, "model", "heads-cartoon", None, 20.0, "tiny")
        frozen[background] = {*found.stages[0].frozen}
    assert "background" in frozen["plain"] and "surroundings" not in frozen["field"]


def test_the_authors_models_find_the_preset_of_their_networks() -> None:
    wider = PoseDistribution(fov=12.05)  # the authors' pixel grid in ours
    imported = replace(preset("ffhq-256").generator, sampling=Sampling(10, 10), poses=wider)
    config = transfer(imported, "official.safetensors", "heads-cartoon", None, 20.0)
    assert config.discriminator == preset("ffhq-256").discriminator and config.generator == imported


def test_a_short_transfer_trains_the_generator_too(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(
        ["finetune", model, str(tmp_path / "run"), "--data", "heads-cartoon", "--kimg", "0.04"]
    )
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["stages"][0]["warm_up_kimg"]
        == 0.01
    )
    before, after = (
        pretrained.load(path).inr.state_dict()
        for path in (model, tmp_path / "run" / "model.safetensors")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # a run that is shorter than the distance between sample sheets has none
    said = re.findall(r"^  (\w+): (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in said] == ["log"] and Path(said[0][1]).exists()


def test_a_transferred_model_keeps_the_mean_shape(model: str, tmp_path: Path) -> None:
    """Bit-exactly, though another machine computes another mean: truncated shapes stay the same."""
    before = pretrained.load(model)
    before.shape_mean.add_(1e-4)
    source = tmp_path / "source.safetensors"
    pretrained.save(before, source)
    cli.main(
        [
            "finetune",
            str(source),
            str(tmp_path / "run"),
            "--data",
            "heads-cartoon",
            "--kimg",
            "0.04",
        ]
    )
    after = pretrained.load(tmp_path / "run" / "model.safetensors")
    old, new = (g.render(g.sample_latents(2, 0), CAMERA, 8, psi=0.7) for g in (before, after))
    assert torch.equal(old.depth, new.depth) and not torch.equal(
        before.appearance_mean, after.appearance_mean
    )


def test_a_model_without_discriminators_is_transferred_with_new_ones(
    model: str, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.safetensors"
    pretrained.save(pretrained.load(model), alone)
    assert pretrained.load_discriminators(alone) is None
    cli.main(
        ["finetune", str(alone), str(tmp_path / "run"), "--data", "heads-cartoon", "--kimg", "0.01"]
    )
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["stages"][0]["warm_up_kimg"]
        == 0.0025
    )
    with pytest.raises(SystemExit):
        cli.main(
            [
                "finetune",
                str(alone),
                str(tmp_path / "run2"),
                "--data",
                "heads-cartoon",
                "--freeze-d",
                "1",
            ]
        )


def test_the_generator_waits_while_the_discriminators_warm_up(model: str, tmp_path: Path) -> None:
    stage = replace(tiny.config().stages[1], warm_up_kimg=0.031)  # of 0.032
    trainer = Run(replace(tiny.config(), start=model, stages=(stage,)), tmp_path / "run")
    first = copy.deepcopy(trainer.networks)
    train(trainer)
    for (name, old), new in zip(
        first.generator.named_parameters(), trainer.networks.generator.parameters(), strict=True
    ):
        assert torch.equal(old, new), name
    both = first.discriminators, trainer.networks.discriminators
    moved = [
        not torch.equal(*pair) for pair in zip(*(part.parameters() for part in both), strict=True)
    ]
    assert any(moved)


def test_a_stage_that_only_warms_up_is_refused() -> None:
    with pytest.raises(UserError, match=r"warm_up_kimg is 1.* so its generator would not train"):
        replace(tiny.config().stages[1], warm_up_kimg=1.0)


def test_a_transfer_resumes_without_the_model_it_came_from(model: str, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    pretrained.save(pretrained.load(model), source)
    config = replace(tiny.config(), start=str(source))
    trainer = Run(config, tmp_path / "run")
    trainer.save()
    source.unlink()
    again = Run(config, tmp_path / "run")
    for a, b in zip(
        trainer.networks.generator.parameters(), again.networks.generator.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="no such file"):
        Run(config, tmp_path / "other")


def test_freeze_d_freezes_the_blocks_next_to_the_image() -> None:
    discriminator = Networks(tiny.config(), torch.device("cpu")).discriminators["main"]
    freeze_blocks(discriminator, 8, 1)
    frozen = {
        name.split(".")[0] for name, p in discriminator.named_parameters() if not p.requires_grad
    }
    assert frozen == {"from_rgb", "blocks"}
    freeze_blocks(discriminator, 4, 1)  # at 4² there is no block
    assert {
        n.split(".")[0] for n, p in discriminator.named_parameters() if not p.requires_grad
    } == {"from_rgb"}
    freeze_blocks(discriminator, 8, 0)
    assert all(p.requires_grad for p in discriminator.parameters())


def test_freeze_d_passes_over_an_auxiliary_discriminator_that_ends_below_the_stage(
    tmp_path: Path,
) -> None:
    config = tiny.config(tiny.images(tmp_path / "data", size=16), frozen_discriminator_blocks=1)
    config = replace(
        config, discriminator=replace(config.discriminator, channels={4: 8, 8: 8, 16: 8}),
        stages=(config.stages[1], replace(config.stages[1], resolution=16, auxiliary=False)),
    )  # fmt: skip
    assert train(Run(config, tmp_path / "run")).exists()


def test_a_model_trained_without_the_auxiliary_discriminator_at_the_end_is_transferred() -> None:
    """Its discriminators do not fit the preset's own stages, which transfer replaces."""
    generator = preset("heads-64").generator
    configs = preset("heads-32").discriminator, preset("heads-32").aux_discriminator
    main = replace(configs[0], channels={**configs[0].channels, 64: 16}, pose_head=False)
    aux = replace(configs[1], pose_head=False)
    known = nn.ModuleDict(
        {"main": ProgressiveDiscriminator(main), "aux": ProgressiveDiscriminator(aux)}
    )
    config = transfer(generator, "model", "heads-cartoon", known, 10.0)
    assert (config.discriminator, config.aux_discriminator) == (main, aux)
    assert config.objective.pose is None


def test_what_freeze_d_freezes_keeps_its_bits(model: str, tmp_path: Path) -> None:
    cli.main(
        [
            "finetune",
            model,
            str(tmp_path / "run"),
            "--data",
            "heads-cartoon",
            "--kimg",
            "0.008",
            "--freeze-d",
            "1",
        ]
    )
    before, after = (
        pretrained.load_discriminators(path)
        for path in (model, tmp_path / "run" / "model.safetensors")
    )
    assert before is not None and after is not None
    trained = dict(after["main"].named_parameters())
    moved = {
        name for name, p in before["main"].named_parameters() if not torch.equal(p, trained[name])
    }
    assert "final_conv.weight" in moved and not any(
        name.startswith(("from_rgb.", "blocks.")) for name in moved
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "heads-cartoon", "--kimg", "nan"], "--kimg"),
        (["--data", "heads-cartoon", "--kimg", "0"], "kimg"),
        (["--data", "heads-cartoon", "--augment", "2"], "--augment"),
        (["--data", "heads-cartoon", "--freeze-d", "7"], "frozen_discriminator_blocks"),
        (["--data", "heads-cartoon", "--preset", "ffhq-64"], "ffhq-64"),
        (["--data", "heads-cartoon", "--preset", "none"], "none"),
        (["--data", "heads-cartoon", "--seed", "-1"], "--seed"),
    ],
)
def test_a_transfer_that_is_impossible_is_refused_in_one_line(
    options: list[str], said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["finetune", model, str(tmp_path / "run"), *options])
    line = capsys.readouterr().err
    assert exit.value.code == 2 and said in line and line.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- blending
@pytest.mark.parametrize("index", [0, 1])
def test_at_0_and_1_blending_gives_the_two_models(
    pair: tuple[Generator, Generator], index: int
) -> None:
    blended = interpolate(*pair, float(index))
    for name, tensor in pair[index].state_dict().items():
        assert torch.equal(tensor, blended.state_dict()[name]), name
    assert torch.equal(rendered(blended), rendered(pair[index]))
    swapped = swap_layers(*pair, from_block=(tiny.GENERATOR.networks.inr_blocks, 0)[index])
    assert torch.equal(rendered(swapped), rendered(pair[index]))


def test_blended_weights_lie_between(pair: tuple[Generator, Generator]) -> None:
    base, other = pair
    weight = [
        g.state_dict()["inr.blocks.1.second.weight"]
        for g in (base, interpolate(base, other, 0.25), other)
    ]
    torch.testing.assert_close(weight[1], 0.75 * weight[0] + 0.25 * weight[2])
    assert torch.equal(
        *[
            g.render(g.sample_latents(1, 0), CAMERA, 8).depth
            for g in (base, interpolate(base, other, 0.5))
        ]
    )
    assert not torch.equal(weight[0], weight[2])


def test_a_block_takes_its_own_amount(pair: tuple[Generator, Generator]) -> None:
    base, other = pair
    swapped = swap_layers(base, other, from_block=1).state_dict()
    for name, tensor in swapped.items():
        theirs = name.startswith(("inr.blocks.1.", "inr.to_rgb.1."))
        assert torch.equal(tensor, (other if theirs else base).state_dict()[name]), name


def test_models_that_do_not_fit_are_refused(pair: tuple[Generator, Generator]) -> None:
    base, other = pair
    elsewhere = copy.deepcopy(other)
    elsewhere.nerf.density.bias += 1e-6
    with pytest.raises(UserError, match=r"NeRFs differ \(nerf\.density\.bias\)"):
        interpolate(base, elsewhere, 0.5)
    with pytest.raises(UserError, match="inr_width is 16 and 24"):
        interpolate(base, build_generator(tiny.generator(base.config, inr_width=24)), 0.5)
    elsewhere = copy.deepcopy(other)
    elsewhere.config = replace(other.config, sampling=Sampling(9, 4))
    with pytest.raises(UserError, match="samples per ray differ"):
        interpolate(base, elsewhere, 0.5)
    with pytest.raises(UserError, match="3 given for 2 blocks"):
        interpolate(base, other, [0.0, 1.0, 1.0])
    with pytest.raises(UserError, match="nan"):
        interpolate(base, other, float("nan"))
    with pytest.raises(UserError, match="from_block"):
        swap_layers(base, other, 3)
    with pytest.raises(UserError, match="pi-gan"):
        interpolate(base, build_generator(tiny.generator(architecture="pi-gan")), 0.5)


def test_styles_are_mixed_by_block(pair: tuple[Generator, Generator]) -> None:
    base, _ = pair
    latents = base.sample_latents(2, 5)
    plain = base.render(latents[0], CAMERA, 8, psi=0.5).image
    blocks = tiny.GENERATOR.networks.inr_blocks
    alike = mix_styles(base, latents[0], latents[1], from_block=blocks, psi=0.5)
    assert torch.equal(base.render(alike, CAMERA, 8).image, plain)
    mixed = base.render(mix_styles(base, latents[0], latents[1], from_block=1, psi=0.5), CAMERA, 8)
    assert not torch.equal(mixed.image, plain)
    assert torch.equal(
        mixed.depth, base.render(latents[0], CAMERA, 8, psi=0.5).depth
    )  # the shape is the content's
    with pytest.raises(UserError, match="from_block"):
        mix_styles(base, latents[0], latents[1], from_block=-1)


@pytest.mark.parametrize(
    ("options", "rows", "columns"),
    [
        ([], 2, 3),
        (["--amount", "0.5"], 6, 3),
        (["--from-block", "1"], 6, 3),
        (["--weights", "0", "1"], 6, 3),
    ],
)
def test_blend_draws_a_sheet(
    options: list[str], rows: int, columns: int, pair: tuple[Generator, Generator], tmp_path: Path
) -> None:
    names = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for generator, name in zip(pair, names, strict=True):
        pretrained.save(generator, name)
    cli.main(
        [
            "blend",
            *names,
            str(tmp_path / "sheet.png"),
            "--count",
            "2",
            "--views",
            "3",
            "--resolution",
            "8",
            *options,
        ]
    )
    names = ["subject 0", "subject 1"] if rows == 2 else ["base", "blended", "other"] * 2
    headings = ["amount 0", "", ""] if rows == 2 else ["-25°", "", ""]
    expected = sheets.labelled_grid(rows, columns, (8, 8), [], names, headings).shape
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape == expected


def test_sheets_show_what_they_say(pair: tuple[Generator, Generator]) -> None:
    base, other = pair
    latents = base.sample_latents(2, 0)

    def seen(generator: Generator, i: int, yaw: float) -> np.ndarray:
        out = generator.render(latents[i], orbit_cameras(generator, [yaw]), 8, psi=0.6)
        return to_uint8(out.image)[0]

    def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
        return sheet[10 * row : 10 * row + 8, 10 * column : 10 * column + 8]

    amounts = amounts_sheet(base, other, latents, 2, 8, psi=0.6, yaw=20, labels=False)
    views = views_sheet(pair, latents, 30, 3, 8, psi=0.6)
    single = views_sheet(pair, latents, 30, 1, 8, psi=0.6)
    mixed = mixing_sheet(base, latents[:1], latents[1:], 0, 8, psi=0.6, labels=False)
    for got, expected in (
        (cell(amounts, 1, 0), seen(base, 1, 20)), (cell(amounts, 0, 1), seen(other, 0, 20)),
        (cell(views, 0, 0), seen(base, 0, -30)), (cell(views, 3, 1), seen(other, 1, 0)),
        (cell(views, 2, 2), seen(base, 1, 30)), (cell(single, 0, 0), seen(base, 0, 30)),
        (cell(mixed, 0, 1), seen(base, 1, 0)), (cell(mixed, 1, 0), seen(base, 0, 0)),
        (cell(mixed, 0, 0), np.full((8, 8, 3), 255)),
    ):  # fmt: skip
        np.testing.assert_allclose(got, expected, atol=1)


def test_a_sheet_is_made_strip_by_strip(
    pair: tuple[Generator, Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = views_sheet(pair, pair[0].sample_latents(1, 0), 30, 2, 8)
    rays: list[int] = []
    render_rays = Generator.render_rays

    def counted(self: Generator, styles: Styles, part: Rays, *others: object) -> object:
        rays.append(part.count)
        return render_rays(self, styles, part, *others)

    monkeypatch.setattr(tiles, "_MOST_RAYS", 16)
    monkeypatch.setattr(Generator, "render_rays", counted)
    assert np.array_equal(views_sheet(pair, pair[0].sample_latents(1, 0), 30, 2, 8), whole)
    assert max(rays) == 16


def test_blend_saves_the_model(
    pair: tuple[Generator, Generator], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for generator, name in zip(pair, names, strict=True):
        pretrained.save(generator, name)
    out = tmp_path / "blended.safetensors"
    for options, expected in (
        (["--amount", "0.5"], interpolate(*pair, 0.5)),
        (["--from-block", "1"], swap_layers(*pair, from_block=1)),
        (["--weights", "0", "1"], interpolate(*pair, (0.0, 1.0))),
        (["--weights", "1", "0.25"], interpolate(*pair, (1.0, 0.25))),
    ):
        cli.main(["blend", *names, str(out), *options])
        assert torch.equal(rendered(pretrained.load(out)), rendered(expected)), options
    for options, said in (
        ([], "--amount"),
        (["--amount", "0.5", "--from-block", "1"], "--from-block"),
        (["--weights", "1"], "amounts"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["blend", *names, str(tmp_path / "no.safetensors"), *options])
        assert said in capsys.readouterr().err and not (tmp_path / "no.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_blend_on_a_full_disk_changes_neither_file(model: str, tmp_path: Path) -> None:
    """The model has discriminators; the older file in its place had none."""
    out = tmp_path / "blended.safetensors"
    pretrained.save(pretrained.load(model), out)
    before = out.read_bytes()
    with tiny.full_disk_after(4000), pytest.raises(SystemExit):
        cli.main(["blend", model, model, str(out), "--amount", "0.5"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {out.name: before}
    cli.main(["blend", model, model, str(out), "--amount", "0.5"])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert pretrained.load_discriminators(out) is not None


def test_mix_draws_a_sheet(pair: tuple[Generator, Generator], tmp_path: Path) -> None:
    pretrained.save(pair[0], tmp_path / "model.safetensors")
    files = [str(tmp_path / "model.safetensors"), str(tmp_path / "sheet.png")]
    size = ["--rows", "2", "--columns", "3", "--resolution", "8"]
    cli.main(["mix", *files, "--from-block", "1", *size])
    names, headings = ["style from\nblock 1", "content 0", "content 1"], ["", "style 0"]
    expected = sheets.labelled_grid(3, 4, (8, 8), [], names, headings).shape
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape == expected


def test_mix_takes_an_inverted_subject(pair: tuple[Generator, Generator], tmp_path: Path) -> None:
    base = pair[0]
    pretrained.save(base, tmp_path / "model.safetensors")
    plain = base.map(base.sample_latents(1, 9))
    assert isinstance(plain.appearance, torch.Tensor)
    by_block = Styles(
        plain.shape, [plain.appearance + i for i in range(tiny.GENERATOR.networks.inr_blocks)]
    )  # as w+ has it
    Subject(by_block, CAMERA[0]).save(tmp_path / "subject.safetensors", base)
    model, subject = str(tmp_path / "model.safetensors"), str(tmp_path / "subject.safetensors")
    options = ["--from-block", "1", "--columns", "2", "--resolution", "8", "--subject", subject]
    cli.main(["mix", model, str(tmp_path / "sheet.png"), *options])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    names, headings = ["style from\nblock 1", "content 0"], ["", "style 0"]
    assert sheet.shape == sheets.labelled_grid(2, 3, (8, 8), [], names, headings).shape
    options = ["--from-block", "1", "--seed", "5", "--rows", "1", "--style", subject, "--yaw", "20"]
    cli.main(["mix", model, str(tmp_path / "mixed.safetensors"), *options])
    saved = Subject.load(tmp_path / "mixed.safetensors", base)
    assert float(saved.camera.yaw_pitch()[0]) == pytest.approx(0.349, abs=1e-3)
    left = base.map(base.sample_latents(1, 5), 0.7)
    torch.testing.assert_close(saved.styles.shape, left.shape)
    torch.testing.assert_close(saved.styles.appearance[0], left.appearance)
    torch.testing.assert_close(saved.styles.appearance[1], by_block.appearance[1])
    mixed = mix_styles(base, by_block, base.sample_latents(1, 3), from_block=1)
    assert torch.equal(mixed.appearance[0], by_block.appearance[0])
    assert not torch.equal(mixed.appearance[1], by_block.appearance[1])
