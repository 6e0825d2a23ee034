"""Precision fp16: losses with a scale, which falls on overflow and is resumed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d.training import loop
from cips3d.training import step as training_step
from cips3d.training.launch import joined
from cips3d.training.objective import Objective
from cips3d.training.run import Run
from cips3d.training.step import Batch
from steps import context


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


def test_a_run_with_overflows(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, whose float16 torch has and accelerate refuses."""

    def opened() -> Run:
        run = Run(tiny.config(data, precision="fp16"), tmp_path, joined())
        autocast = partial(torch.autocast, "cpu", torch.float16)
        monkeypatch.setattr(run.accelerator, "autocast", autocast)
        return run

    trainer = opened()
    trainer.counters.loss_scale = 2.0**10  # at which nothing overflows by itself
    parameters = list(trainer.networks.generator.parameters())
    before = [p.detach().clone() for p in parameters]
    sound = training_step.generator_step

    def overflowing(*args: Any) -> Any:
        figures, gradient = sound(*args), parameters[0].grad
        if trainer.counters.step in {1, 2, 3}:  # three in a row, which are no fault
            assert gradient is not None
            gradient.fill_(torch.inf)
        return figures

    monkeypatch.setattr(training_step, "generator_step", overflowing)
    trained = {}

    def note(share: float, _: dict[str, float]) -> None:
        averages = int(trainer.networks.averaged.n_averaged)
        trained[trainer.counters.step] = (trainer.counters.loss_scale, averages)

    loop.train(trainer, note)
    expected = [(2.0**10, 1), (2.0**9, 1), (2.0**8, 1), (2.0**7, 1), (2.0**7, 2)]
    assert [trained[step] for step in range(1, 6)] == expected
    counters = trainer.counters
    assert (counters.skipped, counters.rate_scale) == (0, 1.0)
    assert (counters.scaled_steps, opened().counters.loss_scale) == (counters.step - 4, 2.0**7)
    states = trainer.networks.generator_optimizer.state_dict()["state"].values()
    assert {int(state["step"]) for state in states} == {counters.step - 3}
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))

    monkeypatch.setattr(loop, "SCALED_STEPS", counters.scaled_steps + 1)
    assert not loop.adapt_loss_scale(trainer, finite=True)
    assert (counters.loss_scale, counters.scaled_steps) == (2.0**8, 0)
    counters.loss_scale = 1.0  # what is not finite without a scale is a fault
    assert not loop.adapt_loss_scale(trainer, finite=False)


def test_a_loss_scale_multiplies_every_gradient(tmp_path: Path, data: str) -> None:
    """R1, whose own gradient it passes through, included."""
    trainer = Run(tiny.config(data), tmp_path)
    networks, stage = trainer.networks, trainer.config.stages[-1]
    networks.prepare(stage)
    shape = (stage.batch, 3, stage.resolution, stage.resolution)
    batch = Batch(range(stage.batch), torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    found: dict[float, list[Tensor]] = {1.0: [], 2.0**10: []}
    for scale, gradients in found.items():

        def keep(optimizer: torch.optim.Optimizer, into: list[Tensor] = gradients) -> bool:
            parameters = optimizer.param_groups[0]["params"]
            into.extend(p.grad.clone() for p in parameters if p.grad is not None)
            return True

        of_step = replace(context(stage), update=keep, loss_scale=scale)
        draws = loop.step_draws(trainer, stage)
        training_step.training_step(networks, batch, draws, Objective(), of_step)
    assert len(found[1.0]) > 20
    for plain, scaled in zip(*found.values(), strict=True):
        torch.testing.assert_close(plain * 2.0**10, scaled)
