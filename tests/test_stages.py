"""Options of a stage (frozen parts, averages, gradient modes, augmentation); recovery from NaN."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d import pretrained
from cips3d.configuration import from_dict, to_dict
from cips3d.errors import UserError
from cips3d.models.config import Cips3dNetworks
from cips3d.models.generator import Generator
from cips3d.models.protocol import MODEL_FILE
from cips3d.models.registry import build_generator
from cips3d.models.types import RenderOutput
from cips3d.training import loop
from cips3d.training import step as training_step
from cips3d.training.checkpoint import checkpoints
from cips3d.training.loop import step_draws, train
from cips3d.training.objective import (
    Convexity,
    Opacity,
    bulge,
    opacity_loss,
    transmittance_loss,
)
from cips3d.training.presets import PRESETS, preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run
from cips3d.training.step import render_fakes
from steps import context, generator_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


def with_last_stage(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, stages=(*config.stages[:-1], replace(config.stages[-1], **changes)))


def generator_weights(trainer: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.networks.generator.named_parameters()}


def test_parts_that_can_be_frozen_are_those_of_the_generator(tmp_path: Path, data: str) -> None:
    generator = Run(tiny.config(data), tmp_path).networks.generator
    assert {name for name, _ in generator.named_children()} == {*generator.parts} - {
        "aux_palette", "surroundings",
    }  # fmt: skip


def test_frozen_parts_keep_their_bits_and_the_others_learn(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = ("nerf", "shape_mapping", "background")
    trainer = Run(with_last_stage(tiny.config(data), frozen=frozen), tmp_path)
    between: dict[str, Tensor] = {}

    one_step = training_step.generator_step

    def step(*args: Any) -> Any:
        if not between and trainer.counters.stage == 1:
            between.update(generator_weights(trainer))
        return one_step(*args)

    before = generator_weights(trainer)
    monkeypatch.setattr(training_step, "generator_step", step)
    train(trainer)
    after = generator_weights(trainer)
    for name, value in between.items():
        assert torch.equal(value, after[name]) == name.startswith(frozen), name
        assert not torch.equal(value, before[name]), name


def test_a_stage_can_start_from_the_average(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(with_last_stage(tiny.config(data), from_average=True), tmp_path)
    seen: list[bool] = []

    one_step = training_step.generator_step

    def step(*args: Any) -> Any:
        averaged = dict(trainer.networks.ema.named_parameters())
        seen.append(
            all(
                torch.equal(value, averaged[name])
                for name, value in generator_weights(trainer).items()
            )
        )
        return one_step(*args)

    monkeypatch.setattr(training_step, "generator_step", step)
    train(trainer)
    assert seen == [i in (0, 1, 4) for i in range(12)]  # the first average of all is a copy


@pytest.mark.parametrize(
    "changes",
    [{"gradients": "checkpointed", "chunk": 5}, {"gradients": "partial", "gradient_rays": 64}],
)
def test_gradient_modes_that_see_all_rays_train_alike(
    tmp_path: Path, data: str, changes: dict[str, Any]
) -> None:
    found = []
    for name, config in (
        ("a", tiny.config(data)),
        ("b", with_last_stage(tiny.config(data), **changes)),
    ):
        trainer = Run(config, tmp_path / name)
        trainer.networks.generator.double()
        trainer.networks.averaged.double()
        trainer.networks.discriminators.double()
        # one step of the last stage, since rounding grows along a run
        stage, positions = config.stages[-1], range(4)
        draws = loop.step_draws(trainer, stage)
        drawn = draws.fakes(positions, "G")
        drawn = replace(
            drawn,
            latents=drawn.latents.to(torch.float64),
            camera=drawn.camera.to(torch.float64),
            rays=drawn.rays.to(torch.float64),
        )
        fake = render_fakes(trainer.networks.generator, drawn, draws, context(stage))
        generator_step(trainer.networks, fake)
        found.append(
            torch.cat(
                [
                    p.grad.flatten()
                    for p in trainer.networks.generator.parameters()
                    if p.grad is not None
                ]
            )
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-12)


def test_rays_of_partial_gradients_go_by_groups_of_four_images(tmp_path: Path, data: str) -> None:
    """As the authors' processes draw them, on however many processes the batch is."""
    config = with_last_stage(tiny.config(data), batch=8, gradients="partial", gradient_rays=16)
    trainer = Run(config, tmp_path / "run")
    draws = loop.step_draws(trainer, config.stages[-1])
    whole = draws.gradient_rays(range(8), 16)
    for size in (4, 2, 1):  # images of a process
        parts = [draws.gradient_rays(range(i, i + size), 16) for i in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(whole[i], whole[4 * (i // 4)]) for i in range(8))
    assert set(whole[0].tolist()) != set(whole[4].tolist())
    assert all(len(set(row.tolist())) == 16 for row in whole)
    assert draws.gradient_rays(range(0), 16).shape == (0, 16)

    # the gradients of the generator add up too
    generator, stage = trainer.networks.generator, config.stages[-1]
    assert isinstance(generator, Generator)

    def gradient(positions: range) -> torch.Tensor:
        fake = render_fakes(generator, draws.fakes(positions, "G"), draws, context(stage))
        weights = [p for p in generator.parameters() if p.requires_grad]
        found = torch.autograd.grad(fake.image.square().sum(), weights, allow_unused=True)
        return torch.cat([x.flatten() for x in found if x is not None])

    total = gradient(range(4)) + gradient(range(4, 8))
    torch.testing.assert_close(total, gradient(range(8)), rtol=1e-3, atol=1e-5)


def test_augmentation_and_partial_gradients_resume_bit_exactly(tmp_path: Path, data: str) -> None:
    config = with_last_stage(tiny.config(data), gradients="partial", gradient_rays=16, augment=0.7)
    whole = Run(config, tmp_path / "whole")
    train(whole)
    stopped = Run(config, tmp_path / "stopped")

    def stop(*_: object) -> None:
        if stopped.counters.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop)
    resumed = Run(config, tmp_path / "stopped")
    assert resumed.counters.step == 7
    train(resumed)
    expected = generator_weights(whole)
    assert all(
        torch.equal(value, expected[name]) for name, value in generator_weights(resumed).items()
    )


def test_opacity_is_asked_to_be_whole_and_to_cover_its_share() -> None:
    opacity = torch.stack([torch.full((1, 4, 4), a) for a in (0.9, 0.2, 0.6)]).requires_grad_()
    loss = opacity_loss(opacity, 0.4)
    assert loss.item() == pytest.approx((0.1 + 0.2 + 0.4) / 3 + 0.2 / 3)
    loss.backward()
    assert opacity.grad is not None
    # whole rays are to be wholly opaque; the share that is missing outweighs faint ones
    expected = torch.tensor([-1.0, 0.0, -1.0])[:, None, None, None] / 48
    torch.testing.assert_close(opacity.grad, expected.expand_as(opacity))
    out, image = torch.full((1, 1, 2, 2), 0.8), torch.zeros(1, 3, 2, 2)
    fake = RenderOutput(image, image, out, out, last_weight=out - 0.5)
    loss = Opacity(2.0, 0.7).rendering_loss(fake)
    assert loss is not None and loss.item() == pytest.approx(2 * (0.5 + 0.2))


def test_the_bulge_of_a_sphere_a_plane_and_a_mould() -> None:
    side, radius = 129, 0.3
    along = (torch.arange(side) + 0.5) / side - 0.4  # off the image's centre
    r2 = along.square()[:, None] + along.square()
    height = torch.sqrt((radius**2 - r2).clamp(min=0))[None, None]
    opacity = (height > 0).float()
    depths = torch.cat([1 - height, torch.ones_like(height), 1 + height])
    found = bulge(depths, opacity.expand(3, -1, -1, -1))
    quarter = radius / 4.3
    torch.testing.assert_close(found, torch.tensor([quarter, 0, -quarter]), atol=2e-3, rtol=0)
    # what is beside the subject does not count
    behind = torch.where(opacity > 0, 1 - height, 9.0)
    torch.testing.assert_close(bulge(behind, opacity), found[:1])


def test_convexity_pulls_the_middle_of_a_mould_nearer_and_leaves_a_head_alone() -> None:
    along = torch.linspace(-1, 1, 9)
    bowl = (along.square()[:, None] + along.square())[None, None]
    full, image = torch.ones(1, 1, 9, 9), torch.zeros(1, 3, 9, 9)
    for sign, left_alone in ((0.05, True), (-0.05, False)):
        depth = (1 + sign * bowl).requires_grad_()
        fake = RenderOutput(image, image, depth, full, last_weight=torch.zeros_like(full))
        loss = Convexity(2.0, 0.01).rendering_loss(fake)
        assert loss is not None and (loss.item() == 0) is left_alone
        if not left_alone:
            loss.backward()
            assert depth.grad is not None
            assert depth.grad[0, 0, 4, 4] > 0 > depth.grad[0, 0, 0, 0]
            assert loss.item() > 2


def test_transmittance_is_rewarded_up_to_the_target() -> None:
    opacity = torch.stack([torch.full((1, 4, 4), 0.9), torch.full((1, 4, 4), 0.2)]).requires_grad_()
    loss = transmittance_loss(opacity, 0.5)
    assert loss.item() == pytest.approx(-(0.1 + 0.5) / 2)
    loss.backward()
    assert opacity.grad is not None
    # too little light passes: less opacity is rewarded
    torch.testing.assert_close(opacity.grad[0], torch.full((1, 4, 4), 1 / 32))
    assert not opacity.grad[1].any()  # enough passes


def test_a_model_has_the_resolution_that_it_was_last_trained_at(tmp_path: Path, data: str) -> None:
    config = tiny.config(data)
    model = pretrained.load(
        train(Run(replace(config, stages=config.stages[:1]), tmp_path / "small"))
    )
    assert model.config.resolution == 4
    stopped = Run(config, tmp_path / "stopped")
    found: list[int] = []

    def look(*_: object) -> None:
        stopped.save_model()
        found.append(pretrained.load(tmp_path / "stopped" / MODEL_FILE).config.resolution)

    train(stopped, look)
    assert found == [4] * 4 + [8] * 8


# ---------------------------------------------------------------- recovery
def spoil(monkeypatch: pytest.MonkeyPatch, trainer: Run, steps: Iterable[int]) -> list[int]:
    """Makes the generator's gradients NaN at these steps, once for each mention; lists what ran."""
    left, ran = list(steps), []

    one_step = training_step.generator_step

    def step(*args: Any) -> Any:
        result = one_step(*args)
        ran.append(trainer.counters.step)
        if trainer.counters.step in left:
            left.remove(trainer.counters.step)
            next(trainer.networks.generator.parameters()).grad.fill_(torch.nan)
        return result

    monkeypatch.setattr(training_step, "generator_step", step)
    return ran


def test_steps_without_finite_gradients_are_skipped_and_counted(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(tiny.config(data), tmp_path)
    ran = spoil(monkeypatch, trainer, {2, 3, 9})
    train(trainer)
    assert ran == list(range(12))
    assert (
        trainer.counters.skipped,
        trainer.counters.skipped_in_a_row,
        trainer.counters.rate_scale,
    ) == (3, 0, 1.0)
    assert all(bool(torch.isfinite(value).all()) for value in generator_weights(trainer).values())


def test_three_in_a_row_roll_back_to_the_checkpoint_with_half_the_rates(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Run(tiny.config(data), tmp_path)
    ran = spoil(monkeypatch, trainer, {5, 6, 7})
    with caplog.at_level(logging.WARNING):
        train(trainer)
    assert ran == [*range(8), *range(4, 12)]  # the checkpoint was saved after four steps
    assert "back to the checkpoint at 16, learning rates times 0.5" in caplog.text
    assert (
        trainer.networks.generator_optimizer.param_groups[0]["lr"]
        == 0.5 * trainer.config.stages[1].generator_lr
    )
    assert trainer.counters.skipped == 3
    assert Run(tiny.config(data), tmp_path).counters.rate_scale == 0.5  # also after a restart
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 13))  # no step is there twice


def test_a_checkpoint_saved_during_a_fault_can_be_rolled_back_to(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(tiny.config(data), tmp_path)
    # the first stage ends after step 3, and is saved
    ran = spoil(monkeypatch, trainer, [2, 3, 4, 4])
    train(trainer)
    assert ran == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]
    assert trainer.counters.rate_scale == 0.5


def test_a_fault_that_persists_after_rolling_back_ends_the_run(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = training_step.generator_step
    trainer = Run(tiny.config(data), tmp_path)

    def always_spoilt(*args: Any) -> Any:
        result = one_step(*args)
        # from within the checkpoint after eight steps on, which must not be kept
        if trainer.counters.step >= 7:
            next(trainer.networks.generator.parameters()).grad.fill_(torch.nan)
        return result

    monkeypatch.setattr(training_step, "generator_step", always_spoilt)
    with pytest.raises(UserError, match=r"even with learning rates times 0\.00390625"):
        train(trainer)
    assert [int(path.stem) for path in checkpoints(tmp_path / "checkpoints")] == [16]


def test_divergence_before_the_first_checkpoint_is_an_error(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(tiny.config(data), tmp_path)
    spoil(monkeypatch, trainer, {0, 1, 2})
    with pytest.raises(UserError, match="lower the learning rates"):
        train(trainer)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frozen": ("nerv",)}, "nerv"),
        ({"gradients": "partial"}, "gradient_rays"),
        ({"gradient_rays": 5}, "gradient_rays"),
        ({"gradients": "partial", "gradient_rays": 65}, "64"),
        ({"chunk": 0}, "chunk"),
        ({"augment": 1.5}, "augment"),
    ],
)
def test_stages_that_make_no_sense_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Stage(8, kimg=1, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built_and_written(name: str) -> None:
    config = preset(name)
    assert from_dict(TrainConfig, to_dict(config), name) == config
    with torch.device("meta"):
        parts = {part for part, _ in build_generator(config.generator).named_children()}
    assert all(set(stage.frozen) <= parts for stage in config.stages)
    assert [stage.resolution for stage in config.stages] == sorted(
        stage.resolution for stage in config.stages
    )
    assert config.generator.resolution == config.stages[-1].resolution


def test_released_settings_from_256_on() -> None:
    """docs/paper-to-code.md, where text and code differ."""
    last = preset("ffhq-256").stages[-1]
    assert (last.generator_lr, last.discriminator_lr) == (1e-4, 5e-4)
    assert (last.auxiliary, last.augment, last.gradients) == (False, 1.0, "full")
    assert last.from_average and {"nerf", "shape_mapping"} < set(last.frozen)
    assert last.fade_kimg * 1000 == 10_000 * last.batch
    assert preset("ffhq-512").stages[-1].gradient_rays == 256**2
    assert preset("ffhq-512-paper").stages[-1].gradient_rays == 400**2


def test_the_released_stage_at_128() -> None:
    """Its own rates, and the density noise of a run of its own."""
    first, second, third, last = preset("ffhq-256").stages
    assert (third.generator_lr, third.discriminator_lr) == (1e-4, 1e-3)
    assert (second.generator_lr, second.discriminator_lr) == (2e-4, 2e-3)
    noisy = [stage.restart_noise for stage in (first, second, third, last)]
    assert noisy == [False, True, True, False]


def test_the_preset_of_the_text_is_the_text() -> None:
    config = preset("ffhq-512-paper")
    networks = config.generator.networks
    assert isinstance(networks, Cips3dNetworks)
    assert networks.embedding == "learned" and networks.residual_from_block == networks.inr_blocks
    assert (networks.rgb_from_block, networks.rgb_tanh) == (0, False)
    assert [stage.resolution for stage in config.stages] == [64, 128, 256, 512]
    assert all(stage.auxiliary and not stage.frozen for stage in config.stages)
    assert not (config.density_noise or config.mirror or config.grad_clip)
    rates = [(stage.generator_lr, stage.discriminator_lr) for stage in config.stages]
    assert rates == [(2e-4, 2e-3), (1e-4, 1e-3), (1e-4, 5e-4), (1e-4, 5e-4)]
    assert config.discriminator.stddev_group and config.aux_discriminator.stddev_group


def test_density_noise_starts_anew_where_a_stage_says_so(tmp_path: Path, data: str) -> None:
    stages = (Stage(4, kimg=0.016, batch=4), Stage(8, kimg=0.016, batch=4, restart_noise=True))
    run = Run(tiny.config(data, stages=stages), tmp_path / "run")
    run.counters.images, run.counters.stage, run.counters.stage_images = 24, 1, 8
    assert run.config.density_noise_kimg == 0.032
    assert step_draws(run, stages[1]).noise_std == 1 - 8 / 32
    assert step_draws(run, stages[0]).noise_std == 1 - 24 / 32


def test_half_precision_trains(tmp_path: Path, data: str) -> None:
    Run(tiny.config(data), tmp_path / "other")  # of another precision, in the same process
    trainer = Run(tiny.config(data, precision="bf16", log_steps=1), tmp_path / "run")
    before = generator_weights(trainer)
    train(trainer)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert Run(tiny.config(data), tmp_path / "next").accelerator.mixed_precision == "no"
    after = generator_weights(trainer)
    assert trainer.counters.skipped == 0
    assert all(
        value.dtype == torch.float32 and not torch.equal(value, before[name])
        for name, value in after.items()
    )
