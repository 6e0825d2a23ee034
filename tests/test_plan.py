"""`cips3d plan`: costs that follow the code, and settings from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from cips3d.cli import main
from cips3d.configuration import with_settings
from cips3d.errors import UserError
from cips3d.models.cost import Account
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.training import planning as plans
from cips3d.training.networks import Networks
from cips3d.training.objective import R1, R2, Objective
from cips3d.training.planning import in_mode, parameters, step_cost, visible_share
from cips3d.training.presets import PRESETS, preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import write_config

MEMORY = 2**34


def small(resolution: int, **changes: object) -> tuple[TrainConfig, Stage]:
    """Small networks whose generator weighs more than the discriminators."""
    widths = {4: 8, 8: 8, 16: 8, 32: 4, 64: 2}
    config = tiny.config(
        discriminator=DiscriminatorConfig(widths),
        aux_discriminator=DiscriminatorConfig(widths),
        objective=Objective(r1=R1(10.0)),
    )
    return config, Stage(resolution, **({"kimg": 1, "batch": 4} | changes))  # type: ignore[arg-type]


def test_an_account_of_a_product() -> None:
    with Account() as account:
        a = torch.empty(10, 20, device="meta")
        b = a @ torch.empty(20, 30, device="meta")  # the second factor dies here
        c = b.relu_().view(30, 10)  # no new storage
        del a
    assert account.flops == 2 * 10 * 20 * 30
    assert account.peak == 4 * (200 + 600 + 300)
    assert account.live == 4 * 300 and c.numel() == 300


def test_an_account_of_launches_and_passes() -> None:
    with Account() as account:
        a = torch.empty(10, 20, device="meta")  # reserves memory only
        b = a.t() @ a.view(10, 20)  # views launch nothing
        b.add_(1.0)
        c = b + torch.empty(1, 1, device="meta").expand(20, 20)  # reads the number once
        d = c.sum()
    assert account.launches == 4 and d.ndim == 0
    assert account.passed_bytes == 4 * ((400 + 400) + (400 + 1 + 400) + (400 + 1))


def test_a_step_takes_as_long_as_its_slowest_resource() -> None:
    """A fast GPU waits for launches below 128², and no card computes 11,000 images/s at 64²."""
    config = preset("ffhq-64")
    cost = step_cost(config, config.stages[1], 4, 2**36, 0.6, processes=8)
    assert 2_000 < cost.launches < 4_000
    fast = cost.seconds(4, plans.Machine(200e12, 2e12))
    assert max(fast, key=fast.__getitem__) == "launches" and max(fast.values()) > 0.02
    slow = cost.seconds(4, plans.Machine(5e12))
    assert max(slow, key=slow.__getitem__) == "arithmetic"
    narrow = cost.seconds(4, plans.Machine(200e12, 50e9))
    assert max(narrow, key=narrow.__getitem__) == "memory"


def test_costs_grow_as_they_should() -> None:
    config, stage = small(32)
    one, two = (step_cost(config, stage, images, MEMORY, 0.6) for images in (1, 2))
    assert one.flops == pytest.approx(two.flops, rel=0.1)  # per image
    assert one.peak_bytes < two.peak_bytes
    large = step_cost(config, small(64)[1], 1, MEMORY, 0.6)
    assert 2 < large.flops / one.flops < 4.1  # the discriminators' lower blocks stay
    assert step_cost(config, stage, 1, MEMORY, 1.0).peak_bytes > one.peak_bytes


def test_this_machines_speed_is_measured_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans, "MEASURED_SECONDS", 0.01)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None
    )
    threads = torch.get_num_threads()
    speed = plans.measured_speed(tiny.config(), processes=2)
    assert 1e5 < speed < 1e15 and torch.get_num_threads() == threads


def test_gradient_modes_trade_memory_for_operations() -> None:
    config, stage = small(32, chunk=256)
    full, partial, checkpointed = (
        step_cost(config, in_mode(stage, mode), 1, MEMORY, 0.6)
        for mode in ("full", "partial", "checkpointed")
    )
    assert partial.peak_bytes < full.peak_bytes and checkpointed.peak_bytes < full.peak_bytes
    assert partial.flops < full.flops < checkpointed.flops
    larger = step_cost(config, in_mode(replace(stage, chunk=1024), "checkpointed"), 1, MEMORY, 0.6)
    assert larger.launches < checkpointed.launches
    assert larger.peak_bytes > checkpointed.peak_bytes
    assert larger.flops == pytest.approx(checkpointed.flops, rel=0.01)


def test_pieces_of_a_batch_take_less_memory() -> None:
    config, stage = small(32, batch=4)
    whole = step_cost(config, stage, 4, MEMORY, 0.6)
    pieces = step_cost(config, replace(stage, accumulate=4), 4, MEMORY, 0.6)
    assert pieces.peak_bytes < whole.peak_bytes
    assert pieces.flops == pytest.approx(whole.flops, rel=0.1)
    assert pieces.launches > 3 * whole.launches


def test_half_precision_takes_less_memory_and_the_same_operations() -> None:
    config, stage = small(32)
    single, half = (
        step_cost(replace(config, precision=p), stage, 2, MEMORY, 0.6) for p in ("no", "bf16")
    )
    assert half.peak_bytes < single.peak_bytes
    assert half.flops == single.flops


def test_parameters_and_the_visible_share() -> None:
    counted = parameters(preset("heads-32"))
    made = Networks(preset("heads-32"), torch.device("cpu"))
    assert counted["generator"] == sum(p.numel() for p in made.generator.parameters())
    assert counted["discriminator"] == sum(
        p.numel() for p in made.discriminators["main"].parameters()
    )
    torch.manual_seed(0)
    fog = tiny.config()
    body = tiny.generator(density_gain=100.0, density_blob=100.0)
    surfaces = replace(fog, generator=body)
    assert visible_share(surfaces) == 0.5 < visible_share(fog) < 1


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": Objective("relativistic", r2=R2(1.0))},
        {"share_fakes": True},
        {"cameras": "learned"},
        {"augment_target": 0.6},
        {"frozen_discriminator_blocks": 1},
    ],
)
def test_every_kind_of_step_can_be_planned(changes: dict[str, object]) -> None:
    config = tiny.config(**changes)
    assert step_cost(config, config.stages[-1], 4, MEMORY, processes=2).flops > 0


def test_the_printed_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.config(stages=(Stage(8, kimg=0.048, batch=4),), start="not-here.safetensors")
    write_config(tmp_path, config)  # sizes need no weights
    main(["plan", str(tmp_path), "--gpus", "2", "--tflops", "0.1", "--memory", "0.0001"])
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if line.startswith("8²"))
    assert "*!" in row  # a tenth of a MiB is too little
    assert "dataset heads: 50,000 images" in printed and "0.10 TFLOP/s (given)" in printed


def test_a_plan_lists_each_stage_and_reports_faulty_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "step_cost", lambda *_: plans.StepCost(1.0, 1, 1.0, 1.0))
    monkeypatch.setattr(plans, "visible_share", lambda _: 0.5)
    data = tiny.images(tmp_path / "data", size=4)
    write_config(tmp_path / "run", tiny.config(data))
    main(["plan", str(tmp_path / "run"), "--tflops", "0.1"])
    printed = capsys.readouterr().out
    assert [line[0] for line in printed.splitlines() if line[1:2] == "²"] == ["4", "8"]
    assert "0.png: is 4x4, smaller than the resolution 8" in printed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nothing"], "nothing"), (["heads-32", "--gpus", "0"], "--gpus"),
        (["heads-32", "--gpus", "3"], "does not divide"),
        (["heads-32", "--tflops", "-1"], "--tflops"), (["heads-32", "--memory", "nan"], "--memory"),
        (["heads-32", "--set", "stages.0.batch=0"], "batch"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_made(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- settings
def test_settings_reach_every_field() -> None:
    config = with_settings(
        preset("heads-32"),
        [
            "objective.adversarial=relativistic",
            "objective.r2.weight=1",
            "stages.1.batch=8",
            "stages.*.augment=0.5",
            "generator.networks.inr_width=32",
            "sampling=null",
        ],
        "--set",
    )
    assert (config.objective.adversarial, config.objective.r2) == ("relativistic", R2(1.0))
    assert (config.generator.networks.inr_width, config.sampling) == (32, None)
    assert [stage.batch for stage in config.stages] == [16, 8, 32]
    assert [stage.augment for stage in config.stages] == [0.5] * 3


@pytest.mark.parametrize(
    "setting",
    [
        "objective.adversarial",
        "objective.adversarial=odd",
        "nothing=1",
        "stages.9.batch=1",
        "stages.x.batch=1",
        "stages.0=1",
        "seed.x=1",
        "objective.r1.weight=-1",
        "=1",
    ],
)
def test_settings_that_fit_nowhere(setting: str) -> None:
    with pytest.raises(UserError, match=r"^--set: "):
        with_settings(preset("heads-32"), [setting], "--set")


def test_train_takes_settings(tmp_path: Path) -> None:
    data = tiny.images(tmp_path / "data", size=16)
    common = [
        "--preset",
        "heads-32",
        "--data",
        data,
        "--batch",
        "4",
        "--kimg",
        "0.004",
        "--processes",
        "1",
    ]
    small = [
        "stages.*.kimg=0.004",
        "stages.*.resolution=16",
        "generator.networks.inr_width=16",
        "objective.adversarial=relativistic",
        "objective.r2.weight=1",
    ]
    main(["train", str(tmp_path / "run"), *common, "--set", *small])
    assert '"adversarial": "relativistic"' in (tmp_path / "run/config.json").read_text()


@pytest.mark.parametrize("row", ["direction", "fixed", "learned", "full"])
def test_presets_of_table_2_are_its_rows(row: str) -> None:
    config = preset(f"table-2-{row}")
    networks = config.generator.networks
    assert networks.view_direction == (row == "direction")
    assert networks.embedding == ("learned" if row in ("learned", "full") else "fixed")
    assert {stage.auxiliary for stage in config.stages} == {row == "full"}


def test_presets_that_measure_the_papers_fid() -> None:
    """2,048 generated against 2,048 real images: Table 2, and Fig. 8 along the curriculum."""
    paper = {name for name in PRESETS if "fid2048" in preset(name).metrics}
    rows = {f"table-2-{row}" for row in ("direction", "fixed", "learned", "full")}
    assert paper == rows | {"ffhq-512-paper"}
