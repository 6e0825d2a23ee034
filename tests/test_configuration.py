"""Configurations: JSON in both directions, one clear line per error, single settings by path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tiny
from cips3d.camera import PoseDistribution
from cips3d.configuration import (
    Configuration,
    Count,
    Positive,
    Share,
    from_dict,
    read_json,
    to_dict,
    validated,
    with_settings,
)
from cips3d.errors import UserError
from cips3d.model_paths import local_file
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.registry import GENERATORS, generator_class


def line(make: Callable[[], Any]) -> str:
    """The error line of a call that must fail."""
    with tiny.unchecked(), pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- JSON
@pytest.mark.parametrize("architecture", GENERATORS)
def test_a_generator_configuration_survives_json(architecture: str) -> None:
    config = tiny.generator(
        architecture=architecture, extent=0.3, poses=PoseDistribution("uniform", fov=20.0), coarse=7
    )
    text = json.dumps(to_dict(config))
    again = from_dict(GeneratorConfig, json.loads(text), "it")
    assert again == config and type(again.networks) is generator_class(architecture).Networks
    assert json.dumps(to_dict(again)) == text


def test_missing_fields_take_their_defaults() -> None:
    assert from_dict(GeneratorConfig, {}, "it") == GeneratorConfig()
    small = from_dict(GeneratorConfig, {"networks": {"inr_width": 12}}, "it")
    assert small.networks.architecture == "cips-3d"
    assert small == tiny.generator(GeneratorConfig(), inr_width=12)


def test_a_discriminator_configuration_survives_json() -> None:
    config = DiscriminatorConfig({4: 8, 8: 6}, stddev_group=4, pose_head=True)
    assert from_dict(DiscriminatorConfig, json.loads(json.dumps(to_dict(config))), "it") == config
    assert list(DiscriminatorConfig().channels.items())[3:6] == [(32, 512), (64, 256), (128, 128)]


def changed(**networks: Any) -> dict[str, Any]:
    values = to_dict(tiny.GENERATOR)
    return values | {"networks": values["networks"] | networks}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            changed(architecture="vae"),
            "c.json: architecture: vae is unknown; choose one of cips-3d",
        ),
        (changed(inr_widht=3), "c.json: networks: inr_widht: unknown setting"),
        (changed(inr_width=0), "c.json: networks: inr_width is 0; it must be at least 1"),
        (changed(nerf_layers=101), "c.json: networks: nerf_layers is 101; it must be at most 100"),
        (changed(extent=0), "c.json: networks: extent is 0; it must be above 0"),
        (changed(extent=float("nan")), "c.json: networks: extent is nan; give a finite number"),
        (changed(embedding="x"), "c.json: networks: embedding is 'x'; choose 'film', 'learned'"),
        (changed(rgb_from_block=9), "c.json: networks: rgb_from_block is 9; it must lie between 0"),
        (changed(extent=1.0), "networks.extent is 1, half the depth of the volume"),
        (changed(inr_width=2**70), "c.json: a number of 71 bits is too large"),
        (changed(architecture="pi-gan"), "networks: pi-gan has no appearance_style_dim; to change"),
        ({"networks": []}, "c.json: networks: input should be a dictionary"),
        ({"sampling": {"coarse": 2}}, "c.json: samples: 2 coarse and 12 fine"),
        ({"sampling": {"coarse": "a"}}, "c.json: sampling.coarse: input should be a valid integer"),
        ({"poses": {"kind": "x"}}, "c.json: poses.kind is 'x'; choose 'gaussian'"),
        ({"resolution": 0}, "c.json: resolution is 0; it must be at least 1"),
        ({"inr_width": 8}, "c.json: inr_width: unknown setting"),
        ([1], "c.json: input should be a dictionary"),
        (None, "c.json: input should be a dictionary"),
    ],
)
def test_values_that_do_not_fit_are_one_line_with_their_name(values: Any, expected: str) -> None:
    found = line(lambda: from_dict(GeneratorConfig, values, "c.json"))
    assert expected in found and found.startswith("c.json: ")


@pytest.mark.parametrize("content", ["{", "[]", "3", "\udcff", '{"resolution": 0}', None])
def test_damaged_files(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    assert str(path) in line(lambda: read_json(GeneratorConfig, path))


# ---------------------------------------------------------------- values
def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    with tiny.unchecked():
        config = tiny.generator(
            nerf_width=np.int16(6), extent=torch.tensor(0.25), density_gain=np.float32(2),
            coarse=torch.tensor(5), fine=np.uint8(6), resolution=np.int64(16),
        )  # fmt: skip
        discriminator = DiscriminatorConfig({4: np.int64(3), 8: torch.tensor(4)})
    assert config == tiny.generator(
        nerf_width=6, extent=0.25, density_gain=2.0, coarse=5, fine=6, resolution=16
    )
    assert type(config.networks.extent) is float and type(config.sampling.coarse) is int
    assert discriminator == DiscriminatorConfig({4: 3, 8: 4})
    assert json.dumps(to_dict(config)) and json.dumps(to_dict(discriminator))
    assert validated(Count, np.int32(3), "count") == 3
    with pytest.raises(UserError, match="count is 0; it must be at least 1"):
        validated(Count, torch.tensor(0), "count")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: GeneratorConfig(resolution=0),
            "generator configuration: resolution is 0; it must",
        ),
        (lambda: GeneratorConfig(resolution=2**70), "resolution: a number of 71 bits is too large"),
        (lambda: tiny.generator(density_gain=1e200), "density_gain: 1e+200 is too large"),
        (
            lambda: tiny.generator(extent=np.float32("inf")),
            "networks: extent is inf; give a finite",
        ),
        (lambda: GeneratorConfig(networks=Sampling()), "networks: input should be a dictionary"),
        (lambda: PoseDistribution(fov=180.0), "camera prior: fov is 180.0; it must be below 180"),
        (lambda: PoseDistribution("x"), "camera prior: kind is 'x'; choose 'gaussian', 'uniform'"),
        (lambda: Sampling(2, 4), "samples: 2 coarse and 4 fine; take at least 3 coarse"),
        (lambda: DiscriminatorConfig({4: 0}), "channels.4 is 0; it must be at least 1"),
        (
            lambda: DiscriminatorConfig({4: 4, 16: 4}),
            "channels are given for [4, 16]; give a width",
        ),
        (lambda: DiscriminatorConfig(stddev_group=-1), "stddev_group is -1; it must be at least 0"),
    ],
)
def test_values_out_of_range_are_one_line(make: Callable[[], Any], expected: str) -> None:
    assert expected in line(make)


# ---------------------------------------------------------------- single settings
@dataclass(frozen=True)
class Part(Configuration):
    """An optional part."""

    label: ClassVar[str] = "part"

    weight: Positive = 1.0
    every: Count = 1


@dataclass(frozen=True)
class Step(Configuration):
    """An entry of a list."""

    batch: Count = 4
    share: Share = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole(Configuration):
    """A configuration with all kinds of entries."""

    seed: int = 0
    name: str = "heads"
    part: Part | None = None
    steps: tuple[Step, ...] = (Step(), Step(8))
    widths: dict[int, Count] = field(default_factory=lambda: {4: 8})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["seed=1"], Whole(seed=1)),
        (["name=3 birds"], Whole(name="3 birds")),
        (["steps.1.batch=2"], Whole(steps=(Step(), Step(2)))),
        (["steps.*.share=1", "steps.0.share=0"], Whole(steps=(Step(share=0), Step(8, share=1)))),
        (['steps.0.names=["a", "b"]'], Whole(steps=(Step(names=("a", "b")), Step(8)))),
        (["part.weight=2"], Whole(part=Part(2.0))),
        (["part={}", "part.every=3"], Whole(part=Part(every=3))),
        (["part.every=3", "part=null"], Whole()),
        (["widths.8=6"], Whole(widths={4: 8, 8: 6})),
        (['steps=[{"batch": 1}]'], Whole(steps=(Step(1),))),
    ],
)
def test_settings_change_single_values(settings: list[str], expected: Whole) -> None:
    assert with_settings(Whole(), settings, "--set") == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("sede=1", "--set: there is no sede; did you mean seed?"),
        ("batch=1", "--set: there is no batch; did you mean steps.*.batch?"),
        ("steps.0.bacth=1", "--set: there is no bacth; did you mean steps.*.batch?"),
        ("steps.2.batch=1", "--set: there is no 2"),
        ("stpes.0.batch=1", "--set: there is no stpes; did you mean steps.*.batch?"),
        ("steps.0=1", "--set: steps.0 is an entry of a list; name one of its fields"),
        ("seed.x=1", "--set: seed.x: seed has no fields of its own"),
        ("seed", "--set: seed has no value; give NAME=VALUE"),
        ("zzz=1", "--set: there is no zzz; a run's config.json lists the names"),
        ("steps.*.batch=0", "--set: steps.0.batch is 0; it must be at least 1"),
        ("part.wieght=2", "--set: part.wieght: unknown setting"),
        ("part.weight=0", "--set: part.weight is 0; it must be above 0"),
        ("steps.0.names=a", 'give a list in JSON, such as ["a", "b"]'),
        ("seed=1.5", "--set: seed: input should be a valid integer"),
    ],
)
def test_unknown_settings_and_values_are_one_line(setting: str, expected: str) -> None:
    assert expected in line(lambda: with_settings(Whole(), [setting], "--set"))


def test_settings_of_a_generator() -> None:
    config = with_settings(tiny.GENERATOR, ["networks.inr_width=12", "poses.fov=20"], "--set")
    poses = replace(tiny.GENERATOR.poses, fov=20.0)
    assert config == tiny.generator(inr_width=12, poses=poses)
    other = with_settings(tiny.GENERATOR, ['networks={"architecture": "pi-gan"}'], "--set")
    assert other == replace(tiny.GENERATOR, networks=generator_class("pi-gan").Networks())
    found = line(lambda: with_settings(tiny.GENERATOR, ["networks.architecture=pi-gan"], "--set"))
    assert 'replace networks as a whole, such as by {"architecture": "pi-gan"}' in found


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    """Some editors of Windows write one at the start of every text file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(tiny.GENERATOR)), encoding="utf-8-sig")
    assert read_json(GeneratorConfig, path) == tiny.GENERATOR
    path.write_text('{"stages": []}', encoding="utf-8-sig")
    with pytest.raises(UserError, match="is the folder of a run"):
        local_file(tmp_path)
