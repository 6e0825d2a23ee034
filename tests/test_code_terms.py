"""Discriminators that read the codes in the images, and a gray auxiliary image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d import UserError, pretrained
from cips3d.camera import Camera
from cips3d.configuration import with_settings
from cips3d.models.generator import Generator
from cips3d.models.layers import luminance
from cips3d.models.registry import build_generator
from cips3d.models.types import Latents, RenderOutput
from cips3d.training.loop import train
from cips3d.training.networks import Networks
from cips3d.training.objective import AppearanceCode, Objective, ShapeCode
from cips3d.training.planning import parameters, step_cost
from cips3d.training.presets import PRESETS, preset, transfer
from cips3d.training.recipe import TrainConfig
from cips3d.training.run import Run
from cips3d.training.step import geometry_maps
from steps import PLAIN, discriminator_step, generator_step

CODES = Objective(
    r1=None,
    appearance_code=AppearanceCode(0.5, numbers=3),
    shape_code=ShapeCode(0.25, numbers=5),
)


def networks(objective: Objective = CODES, **changes: Any) -> Networks:
    return Networks(tiny.config(objective=objective, **changes), torch.device("cpu"))


def batch(count: int = 4) -> tuple[Tensor, RenderOutput, Latents]:
    """Real images, generated ones and the latents that these are made from."""
    draws = torch.Generator().manual_seed(0)
    real, image, aux_image = torch.randn(3, count, 3, 8, 8, generator=draws)
    latents = Latents(*torch.randn(2, count, 8, generator=draws))
    geometry = 0.9 + 0.1 * torch.rand(3, count, 1, 8, 8, generator=draws)
    return real, RenderOutput(image, aux_image, *geometry), latents


def maps(n: Networks, fake: RenderOutput) -> Tensor:
    """What the shape code is read from."""
    found = geometry_maps(n, fake)
    assert found is not None
    return found


def trained(config: TrainConfig, folder: Path) -> Run:
    run = Run(config, folder)
    train(run)
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


# ---------------------------------------------------------------- the losses
@pytest.mark.parametrize("r1", [False, True])  # one call of each discriminator, or two
def test_each_code_is_learned_from_what_is_generated_alone(r1: bool) -> None:
    n, (real, fake, latents) = networks(), batch()
    objective = replace(CODES, r1=Objective().r1 if r1 else None)
    figures = discriminator_step(n, real, fake, objective, latents=latents)
    readers = ("main", "geometry")
    by_step = {name: n.discriminators[name].code.weight.grad.clone() for name in readers}
    n.discriminators.zero_grad()
    appearance = n.discriminators["main"].judge(fake.image).code - latents.appearance[:, :3]
    shape = n.discriminators["geometry"].judge(maps(n, fake)).code - latents.shape[:, :5]
    losses = 0.5 * appearance.square().mean(), 0.25 * shape.square().mean()
    torch.testing.assert_close(
        (figures["d_appearance_code"], figures["d_shape_code"]), tuple(x.detach() for x in losses)
    )
    sum(losses).backward()
    for name, gradient in by_step.items():
        torch.testing.assert_close(gradient, n.discriminators[name].code.weight.grad)
    parts = [figures[k] for k in ("d_adversarial", "d_appearance_code", "d_shape_code")]
    parts += [figures["d_r1"]] if r1 else []
    torch.testing.assert_close(figures["d_loss"], sum(parts))


@pytest.mark.parametrize("of", ["z", "w"])
@pytest.mark.parametrize("error", ["square", "cosine"])
def test_the_generator_learns_to_show_the_codes(of: Any, error: Any) -> None:
    options = {"of": of, "error": error}
    objective = Objective(
        r1=None,
        appearance_code=AppearanceCode(1e4, 3, **options),
        shape_code=ShapeCode(1e4, 5, **options),
    )
    n, (_, fake, latents) = networks(objective), batch()
    codes = latents if of == "z" else n.generator.map(latents)

    @torch.no_grad()
    def errors(shown: RenderOutput) -> list[float]:
        found = []
        predicted = n.judge([shown.image], 1.0)[2] | n.read_geometry(maps(n, shown))
        for judge, code in (("main", codes.appearance[:, :3]), ("geometry", codes.shape[:, :5])):
            if of == "w":
                code = (code - code.mean(dim=0)) / code.std(dim=0, correction=0)
            difference = (predicted[judge] - code).square().mean()
            cosine = torch.cosine_similarity(predicted[judge], code).mean()
            found.append(float(1 - cosine if error == "cosine" else difference))
        return found

    shown = fake.map(lambda x: x.requires_grad_())
    figures = generator_step(n, shown, objective, latents=latents)
    before = errors(shown)
    found = [float(figures[f"g_{name}_code"]) / 1e4 for name in ("appearance", "shape")]
    assert found == pytest.approx(before, rel=1e-3)

    def nearer(x: Tensor) -> Tensor:
        return x.detach() if x.grad is None else x.detach() - 1e-3 * x.grad / x.grad.std()

    after = errors(shown.map(nearer))
    assert all(a < b for a, b in zip(after, before, strict=True))
    assert all(p.grad is None for p in n.discriminators.parameters())
    assert all(p.grad is None for p in n.generator.parameters())  # codes are what they are


def test_both_terms_do_without_the_auxiliary_discriminator() -> None:
    n, (real, fake, latents) = networks(), batch()
    figures = discriminator_step(n, real, fake, CODES, latents=latents, auxiliary=False)
    assert {"d_appearance_code", "d_shape_code"} <= figures.keys()


def test_an_error_of_one_means_that_nothing_is_predicted() -> None:
    latents = Latents(*(10 * torch.randn(2, 4096, 8, generator=torch.Generator().manual_seed(0))))
    count = len(latents)
    image = torch.zeros(count, 3, 8, 8, requires_grad=True)
    fake = RenderOutput(image, image, *[torch.zeros(count, 1, 8, 8)] * 3)
    for error in ("square", "cosine"):
        terms = {"appearance_code": AppearanceCode(1.0, 3, "w", error)}
        objective = Objective(r1=None, **terms)
        n = networks(objective)
        figure = float(generator_step(n, fake, objective, latents=latents)["g_appearance_code"])
        assert figure == pytest.approx(1.0, abs=0.1)


def test_without_the_terms_networks_and_steps_have_their_old_bits() -> None:
    with_codes, without, (real, fake, latents) = networks(), networks(PLAIN), batch()
    assert not any("code" in name for name in without.discriminators.state_dict())
    shapes = {k: tuple(v.shape) for k, v in with_codes.discriminators.state_dict().items()}
    assert shapes["main.code.weight"] == (3, 8) and shapes["geometry.code.weight"] == (5, 8)
    figures = []
    for n in (with_codes, without):
        n.discriminators.load_state_dict(without.discriminators.state_dict(), strict=False)
        figures.append(discriminator_step(n, real, fake, PLAIN, latents=latents))
    assert figures[0] == figures[1]
    own = dict(without.discriminators.named_parameters())
    for name, p in with_codes.discriminators.named_parameters():
        if "code" in name:
            assert p.grad is None
        elif p.grad is not None:
            assert torch.equal(p.grad, own[name].grad)


# ---------------------------------------------------------------- runs
def test_a_run_with_code_terms_resumes_bit_exactly(tmp_path: Path, data: str) -> None:
    options = {"of": "w", "error": "cosine"}
    objective = replace(CODES, shape_code=ShapeCode(0.5, 4, **options))
    gray = replace(tiny.GENERATOR, aux_luminance=True)
    config = tiny.config(data, objective=objective, generator=gray, share_fakes=True)
    whole, stopped = trained(config, tmp_path / "whole"), Run(config, tmp_path / "stopped")

    def stop(*_: object) -> None:
        if stopped.counters.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop)
    resumed = trained(config, tmp_path / "stopped")
    for name in ("generator", "discriminators"):
        expected = whole.networks.modules[name].state_dict()
        for key, value in resumed.networks.modules[name].state_dict().items():
            assert "mean" in key or torch.equal(value, expected[key]), key


def test_code_heads_start_anew_where_the_model_to_start_from_has_none(
    tmp_path: Path, data: str
) -> None:
    plain = trained(tiny.config(data), tmp_path / "plain")
    start = str(plain.model_path)
    codes = replace(CODES, shape_code=ShapeCode(numbers=2))
    gray = replace(tiny.GENERATOR, aux_luminance=True)
    run = Run(tiny.config(data, objective=codes, generator=gray, start=start), tmp_path / "codes")
    saved = plain.networks.discriminators.state_dict()

    def shared(discriminators: torch.nn.Module) -> bool:
        found = discriminators.state_dict()
        both = [k for k in saved if k in found and ".code." not in k]
        return all(torch.equal(found[k], saved[k]) for k in both)

    assert shared(run.networks.discriminators)
    assert run.networks.discriminators["main"].code.weight.shape == (3, 8)
    train(run)
    saved = run.networks.discriminators.state_dict()
    for objective, kept in ((codes, ["main", "geometry"]), (CODES, ["main"]), (PLAIN, [])):
        config = tiny.config(data, objective=objective, generator=gray, start=str(run.model_path))
        found = Networks(config, torch.device("cpu")).discriminators
        assert shared(found)
        same = [k for k in ("main", "geometry") if _equal(found, saved, f"{k}.code.weight")]
        assert same == kept


def _equal(module: torch.nn.Module, saved: dict[str, Tensor], name: str) -> bool:
    own = module.state_dict().get(name)
    return own is not None and own.shape == saved[name].shape and torch.equal(own, saved[name])


def test_discriminators_of_another_form_still_start_anew(tmp_path: Path) -> None:
    base = tiny.config()
    model = str(tmp_path / "model.safetensors")
    first = Networks(base, torch.device("cpu"))
    pretrained.save(first.generator, model, first.discriminators)
    other = replace(base.discriminator, channels={4: 8, 8: 16})
    found = networks(discriminator=other, start=model, seed=1).discriminators["main"]
    assert not torch.equal(found.final_conv.weight, first.discriminators["main"].final_conv.weight)


def test_the_steps_cost_is_counted_with_code_terms() -> None:
    for precision in ("no", "bf16"):
        config = tiny.config(objective=CODES, precision=precision)
        assert step_cost(config, config.stages[-1], 4, 2**34).flops > 0
        assert "reader of the geometry" in parameters(config)


def test_presets_of_the_heads_have_code_terms_and_a_transfer_keeps_the_models() -> None:
    for name in PRESETS:
        config = preset(name)
        has_them = name in ("heads-32", "heads-64")
        assert (config.objective.appearance_code == AppearanceCode(1.0)) is has_them, name
        assert (config.objective.shape_code == ShapeCode()) is has_them, name
        assert config.generator.aux_luminance is has_them, name
    base = preset("heads-32")
    made: Callable[[TrainConfig], Any] = lambda c: Networks(c, torch.device("cpu")).discriminators  # noqa: E731
    numbers = with_settings(base, ["objective.appearance_code.numbers=8"], "--set")
    silent = with_settings(base, ["objective.appearance_code=null"], "--set")
    for config, expected in ((numbers, AppearanceCode(numbers=8)), (silent, None)):
        found = transfer(base.generator, "m", "heads-cartoon", made(config), 9.0)
        assert found.objective.appearance_code == expected and found.objective.shape_code is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective": replace(CODES, shape_code=ShapeCode(numbers=9))},
            r"objective\.shape_code\.numbers is 9, but cips-3d's shape code z has 8; give at most",
        ),
        (
            {"objective": Objective(appearance_code=AppearanceCode(numbers=9, of="w"))},
            r"cips-3d's appearance code w has 8",
        ),
        (
            {"discriminator": replace(tiny.config().discriminator, code_numbers=4)},
            r"discriminator\.code_numbers is 4; leave it 0",
        ),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny.config(**changes)


# ---------------------------------------------------------------- the gray auxiliary image
def test_a_gray_auxiliary_image_is_the_luminance_of_the_colours_everywhere() -> None:
    torch.manual_seed(0)
    colour = build_generator(tiny.GENERATOR).requires_grad_(False)
    gray = build_generator(replace(tiny.GENERATOR, aux_luminance=True)).requires_grad_(False)
    gray.load_state_dict(colour.state_dict())
    latents, camera = colour.sample_latents(1, 0), Camera.orbit(torch.tensor([0.3]))
    expected = colour.render(latents, camera, 8)
    red, green, blue = expected.aux_image.unbind(dim=1)
    of_colours = torch.stack([0.299 * red + 0.587 * green + 0.114 * blue] * 3, dim=1)
    out = gray.render(latents, camera, 8)
    for name in ("image", "depth", "opacity", "last_weight"):
        assert torch.equal(getattr(out, name), getattr(expected, name))
    torch.testing.assert_close(out.aux_image, of_colours)
    assert not torch.allclose(expected.aux_image, of_colours, atol=1e-3)
    assert isinstance(gray, Generator)
    prepared = gray.render(gray.prepare(gray.map(latents, 0.7)), camera, 8).aux_image
    torch.testing.assert_close(prepared, of_colours, rtol=0, atol=1e-2)
    assert torch.equal(prepared[:, 0], prepared[:, 1])


@pytest.mark.parametrize("adversarial", ["logistic", "relativistic"])
def test_real_images_are_gray_for_the_auxiliary_discriminator(
    adversarial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(adversarial, r1=None)
    n, (real, fake, latents) = networks(objective), batch()
    seen = []
    judge = n.judge

    def watched(images: list[Tensor], *arguments: Any) -> Any:
        seen.append(images)
        return judge(images, *arguments)

    monkeypatch.setattr(n, "judge", watched)
    for gray in (False, True):
        n.generator.config = replace(n.generator.config, aux_luminance=gray)
        expected = luminance(real, 1) if gray else real
        seen.clear()
        discriminator_step(n, real, fake, objective, latents=latents)
        ((main, aux),) = seen
        assert torch.equal(main[4:], real) and torch.equal(aux[4:], expected)
        seen.clear()
        shown = replace(fake, image=fake.image.clone().requires_grad_())
        generator_step(n, shown, objective, latents=latents, real=real)
        if adversarial == "relativistic":
            assert torch.equal(seen[1][0], real) and torch.equal(seen[1][1], expected)
        seen.clear()
        discriminator_step(n, real, fake, objective, latents=latents, auxiliary=False)
        assert len(seen[0]) == 1


# ---------------------------------------------------------------- the auxiliary head's palette
def test_a_palette_leaves_the_colours_of_the_auxiliary_image_to_the_appearance_code() -> None:
    torch.manual_seed(0)
    generator = build_generator(tiny.generator(aux_palette=True)).requires_grad_(False)
    assert isinstance(generator, Generator)
    latents, camera = generator.sample_latents(2, 0), Camera.orbit(torch.tensor([0.3, 0.3]))
    other = replace(latents, appearance=latents.appearance.flip(0))
    out, changed = (generator.render(codes, camera, 8) for codes in (latents, other))
    assert torch.equal(out.depth, changed.depth)
    assert not torch.allclose(out.aux_image, changed.aux_image, atol=1e-3)
    styles = generator.map(latents, 0.7)
    prepared = generator.prepare(styles[:1])
    torch.testing.assert_close(
        generator.render(prepared, camera[:1], 8).aux_image,
        generator.render(styles[:1], camera[:1], 8).aux_image,
        rtol=0, atol=1e-4,
    )  # fmt: skip
    blocks = replace(styles, appearance=[styles.appearance.flip(0), styles.appearance])
    torch.testing.assert_close(
        generator.render(blocks, camera, 8).aux_image,
        generator.render(styles, camera, 8).aux_image,
    )


def test_a_palette_that_is_zero_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = build_generator(tiny.GENERATOR).requires_grad_(False)
    generator = build_generator(tiny.generator(aux_palette=True)).requires_grad_(False)
    generator.load_state_dict(plain.state_dict(), strict=False)
    assert isinstance(generator, Generator) and generator.aux_palette is not None
    for parameter in generator.aux_palette.parameters():
        parameter.zero_()
    latents, camera = plain.sample_latents(1, 0), Camera.orbit(0.3)
    assert torch.equal(
        generator.render(latents, camera, 8).aux_image, plain.render(latents, camera, 8).aux_image
    )


# ---------------------------------------------------------------- the shape code from geometry
def test_the_shape_code_is_read_from_geometry_and_from_no_colour() -> None:
    n, (real, fake, latents) = networks(), batch()
    assert {name: d.config.code_numbers for name, d in n.discriminators.items()} == {
        "main": 3, "aux": 0, "geometry": 5,
    }  # fmt: skip
    shape = discriminator_step(n, real, fake, CODES, latents=latents)["d_shape_code"]
    other = replace(fake, image=fake.image.flip(0), aux_image=fake.aux_image.flip(0))
    figures = discriminator_step(networks(), real, other, CODES, latents=latents)
    torch.testing.assert_close(figures["d_shape_code"], shape)


def test_a_model_keeps_the_network_that_reads_geometry(tmp_path: Path, data: str) -> None:
    config = tiny.config(data, objective=CODES, share_fakes=True)
    first = trained(config, tmp_path / "first")
    found = Networks(replace(config, start=str(first.model_path)), torch.device("cpu"))
    expected = first.networks.discriminators.state_dict()
    assert any(key.startswith("geometry.") for key in expected)
    assert all(_equal(found.discriminators, expected, key) for key in expected)
