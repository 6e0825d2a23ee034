"""Figures that reveal failing runs: flat and mirrored geometry, collapse, runaway R1."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d import pretrained
from cips3d.camera import Camera
from cips3d.data import Dataset
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.metrics.geometry import non_flatness
from cips3d.metrics.symmetry import mirror_jump
from cips3d.metrics.views import Subjects
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import RenderOutput
from cips3d.training.health import LIMITS, HealthMonitor, spread
from cips3d.training.logs import RunLog
from cips3d.training.loop import train
from cips3d.training.recipe import Stage
from cips3d.training.run import Run


def output(image: Tensor, depth: Tensor, opacity: Tensor) -> RenderOutput:
    return RenderOutput(image, image, depth, opacity, torch.zeros_like(depth))


def limit(figure: str) -> float:
    return next(entry.value for entry in LIMITS if entry.figure == figure)


def flatness(depth: Tensor, solid: Tensor) -> float:
    return non_flatness(output(depth.expand(-1, 3, -1, -1), depth, solid.float()), 1.0, 0.12)


def test_a_plane_is_flat_and_heads_are_not() -> None:
    rays = Camera.orbit(0.0).rays(32, 32)
    # along the rays, z = 0 is a little deeper at the edge
    plane = (1.0 / -rays.directions[..., 2]).view(1, 1, 32, 32)
    heads = SyntheticHeads(8, 32).render(range(8), Camera.orbit(torch.zeros(8)))
    whole = torch.ones_like(plane, dtype=torch.bool)
    assert flatness(plane, whole) < 0.85 * limit("non_flatness")
    assert flatness(plane, ~whole) == 1.0  # nothing solid
    assert flatness(heads.depth, heads.mask) > 3 * limit("non_flatness")
    even = torch.linspace(0.881, 1.119, 64 * 16).view(1, 1, 32, 32)
    assert flatness(even, whole) == pytest.approx(64, rel=0.02)


class Turning(Generator):
    """Shows a bright column that moves with the yaw.

    If mirrored, the images of negative yaws are the flipped ones of positive yaws.
    """

    def __init__(self, mirrored: bool) -> None:
        super().__init__(tiny.GENERATOR)
        self.mirrored = mirrored

    def render(self, codes: Any, camera: Camera, resolution: Any, **_: Any) -> RenderOutput:  # type: ignore[override]
        yaw = camera.yaw_pitch()[0]
        column = torch.where((yaw < 0) & self.mirrored, -(0.6 - yaw), 0.6 + yaw)
        x = torch.linspace(-1, 1, resolution)
        image = torch.exp(-((x - column[:, None]) ** 2) * 3)[:, None, None].expand(
            -1, 3, resolution, -1
        )
        return output(image, image[:, :1], image[:, :1])


@pytest.mark.parametrize(("mirrored", "least", "most"), [(False, 0.8, 1.25), (True, 3.0, math.inf)])
def test_a_mirrored_field_jumps_at_the_frontal_view(
    mirrored: bool, least: float, most: float
) -> None:
    turning = Turning(mirrored)
    assert least < mirror_jump(Subjects.generated(turning, turning.sample_latents(1, 0), 64)) < most


def test_equal_images_have_no_spread() -> None:
    one = torch.rand(1, 3, 4, 4)
    assert spread(one.expand(5, -1, -1, -1)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(-1, 3, 4, 4)) == 1.0


def test_figures_of_a_generator() -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR)
    monitor = HealthMonitor.of_dataset(SyntheticHeads(100, 8))
    assert monitor.real.shape == (16, 3, 8, 8)
    assert HealthMonitor.of_dataset(SyntheticHeads(2, 96)).real.shape == (2, 3, 64, 64)
    figures = monitor.figures(generator, generator.sampling)
    again = monitor.figures(generator, generator.sampling)
    # always the same subjects and cameras
    assert figures == pytest.approx(again, abs=0, nan_ok=True)
    assert math.isnan(figures.pop("two_hypothesis_score"))  # there is no surface yet
    assert all(math.isfinite(value) for value in figures.values())


def test_an_alarm_is_raised_once_until_it_ends() -> None:
    monitor = HealthMonitor(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    good = {"diversity": 1.0, "non_flatness": 12.0, "two_hypothesis_score": 0.0, "r1_penalty": 0.1}
    assert not monitor.alarms(good)
    (line,) = monitor.alarms(good | {"diversity": 0.1})
    assert "collapse" in line and "0.1" in line
    assert not monitor.alarms(good | {"diversity": 0.1})
    assert not monitor.alarms({"r1_penalty": 0.2})  # says nothing about diversity
    assert not monitor.alarms(good | {"diversity": 0.1})
    assert not monitor.alarms(good)
    bad = {"diversity": 0.1, "non_flatness": 1.0, "two_hypothesis_score": 0.9, "r1_penalty": 100.0}
    assert len(monitor.alarms(bad)) == 4


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {"non_flatness": 1.0}
    monkeypatch.setattr(HealthMonitor, "figures", lambda *_: flat)
    monkeypatch.setattr(RunLog, "samples", lambda *_: None)


def config(tmp_path: Path, **changes: Any) -> Any:
    data = tiny.images(tmp_path / "data")
    stages = (Stage(8, kimg=0.032, batch=4),)
    return tiny.config(data, stages=stages, checkpoint_kimg=1, **changes)


@pytest.mark.usefixtures("failing")
def test_a_failing_run_says_so_after_a_while_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(Run(config(tmp_path, sample_kimg=0.004, alarm_kimg=0.016), tmp_path / "run"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("16 images: flat geometry")


@pytest.mark.usefixtures("failing")
def test_a_failing_run_can_be_stopped(tmp_path: Path) -> None:
    trainer = Run(
        config(tmp_path, sample_kimg=0.004, alarm_kimg=0.016, stop_on_alarm=True), tmp_path / "run"
    )
    with pytest.raises(UserError, match="stopped by an alarm: flat geometry"):
        train(trainer)
    assert [path.stem for path in (tmp_path / "run/checkpoints").iterdir()] == [f"{16:012d}"]


def test_measures_are_logged(tmp_path: Path) -> None:
    seen: list[ImageGenerator] = []

    def measure(generator: ImageGenerator, dataset: Dataset) -> dict[str, float]:
        seen.append(generator)
        return {"side": dataset.resolution}

    changed = config(tmp_path, metrics_kimg=0.012)  # after three, six and all eight steps
    trainer = Run(changed, tmp_path / "run", measures=[measure])
    train(trainer)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(line["images"], line["side"]) for line in lines if "side" in line] == [
        (12, 8),
        (24, 8),
        (32, 8),
    ]
    assert all(generator is trainer.networks.ema for generator in seen)
    train(Run(changed, tmp_path / "run", measures=[measure]))
    assert len(seen) == 3  # a finished run is not measured again


def test_a_measure_sees_the_model_that_is_saved(tmp_path: Path) -> None:
    """It renders with truncation, which needs the mean styles."""

    def measure(generator: ImageGenerator, _: object) -> dict[str, float]:
        out = generator.render(generator.sample_latents(2, 0), Camera.orbit(0.3), 8, psi=0.5)
        return {"mean": float(out.image.mean())}

    path = train(Run(config(tmp_path, metrics_kimg=0.032), tmp_path / "run", measures=[measure]))
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert last["mean"] == pytest.approx(measure(pretrained.load(path), None)["mean"], abs=1e-6)
