"""The command line: what every verb does, and the one line that it answers with when it cannot."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import cips3d
import tiny
from cips3d import cli, pretrained, trajectories
from cips3d.camera import Camera, PoseDistribution
from cips3d.cli import output, train
from cips3d.cli.loading import load_model
from cips3d.cli.options import PRESET_NAMES, RandomSubjects
from cips3d.configuration import to_dict
from cips3d.data import ImageDataset
from cips3d.errors import UserError
from cips3d.export.media import to_uint8
from cips3d.export.video import video_frames
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import load_head_network
from cips3d.metrics import consistency, evaluation, symmetry
from cips3d.metrics.disentanglement import (
    Recombined,
    colours,
    forms,
    image_change,
    share_of_appearance,
)
from cips3d.metrics.geometry import (
    detail,
    hollow_share,
    last_sample_share,
    non_flatness,
    relief,
    shape_correlation,
    speckle,
    view_agreement,
)
from cips3d.metrics.measures import MEASURES
from cips3d.metrics.views import Subjects
from cips3d.model_paths import local_file
from cips3d.models.generator import Generator
from cips3d.models.registry import build_generator
from cips3d.models.types import Latents
from cips3d.training.presets import PRESETS
from cips3d.training.recipe import Stage
from cips3d.training.run import write_config

Refusal = Callable[[str], str]
#: Factor on CPU times, for a machine that others keep busy.
SLACK = 2.0


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small presets; commands run in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", lambda: tiny.config())
    monkeypatch.setitem(PRESETS, "heads-32", lambda: tiny.config())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(Generator(tiny.GENERATOR), path)
    return str(path)


@pytest.fixture(scope="module")
def solid_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose subjects have a surface before any training."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "solid.safetensors"
    pretrained.save(Generator(tiny.generator(density_gain=40.0, density_blob=60.0)), path)
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "pictures")


def execute(words: str) -> None:
    """Runs a command, such as "render heads a.png"."""
    cli.main(words.split())


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The line that a command answers with: the only one, but for progress before it."""

    def line(words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            execute(words)
        assert caught.value.code == 2
        return the_error_line(capsys.readouterr().err)

    return line


def the_error_line(text: str) -> str:
    assert "Traceback" not in text and "Exception" not in text, text
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip() and "%" not in line]
    assert len(lines) == 1 and lines[0].startswith("cips3d: error: "), text
    assert lines[0].isprintable()
    return lines[0].removeprefix("cips3d: error: ")


def holds(sheet: np.ndarray, rows: int, columns: int, cell: int | tuple[int, int]) -> bool:
    """Whether a sheet has room for the cells, and for no more than labels besides."""
    height, width = cell if isinstance(cell, tuple) else (cell, cell)
    more = sheet.shape[0] - rows * height, sheet.shape[1] - columns * width
    return 0 <= more[0] <= 40 + 45 * rows and 0 <= more[1] <= 130 + 4 * columns


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------- help
def help_of(verb: str, width: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setenv("COLUMNS", str(width))
        execute(f"{verb} --help")
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option with its help, two examples that parse, lines that fit and break at spaces."""
    pages = {width: help_of(verb, width, capsys) for width in (80, 120, 1000)}
    words = {width: re.sub(r"[\s-]{2,}|\s", " ", page) for width, page in pages.items()}
    assert words[80].split() == words[120].split() == words[1000].split()
    options_shown, _, examples = pages[80].partition("examples:\n")
    assert max(map(len, options_shown.splitlines())) <= 80
    assert max(map(len, examples.splitlines())) <= 100
    assert "None" not in options_shown
    assert cli.VERBS[verb][1] in words[1000]
    module, name = cli.VERBS[verb][0].split(":")
    function = getattr(importlib.import_module(f"cips3d.cli.{module}"), name)
    hints = get_type_hints(function, include_extras=True)
    for option, parameter in inspect.signature(function).parameters.items():
        kind = hints[option]
        group = [field.name for field in fields(kind)] if is_dataclass(kind) else [option]
        for shown in group:
            dashed = shown.replace("_", "-")
            is_positional = parameter.kind is parameter.POSITIONAL_ONLY
            name = dashed.upper() if is_positional else f"--{dashed}"
            assert re.search(rf"^ +\[?{name}\b.*\n? +\S.{{5}}", pages[1000], re.M), option
    lines = [line.split()[1:] for line in examples.splitlines() if line.strip()]
    assert 2 <= len(lines) <= 3
    assert all(" ".join(line).startswith(f"{verb}") for line in lines)


@pytest.mark.parametrize("group", ["", "data"])
def test_a_line_for_every_verb(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    execute(f"{group} --help")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for verb, (_, summary) in cli.VERBS.items():
        if verb.startswith(group) and (group or " " not in verb):
            assert any(re.fullmatch(rf"  {verb} +{re.escape(summary)}", line) for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    execute("--version")
    assert capsys.readouterr().out.split() == ["cips3d", cips3d.__version__]


#: Imported only for work; each takes from a fifth of a second to more than one.
HEAVY = ("torch", "numba", "numpy", "scipy", "skimage", "trimesh", "av", "huggingface_hub",
         "accelerate", "tensorboard", "viser", "matplotlib")  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "--help", "--version", "data --help", *(f"{verb} --help" for verb in cli.VERBS),
        "fly", "sample", "sample heads a.png --bogus 1", "sample heads a.png --count 0",
        "sample heads a.gif", "sample nowhere a.png", "render heads a.mp4 --subject nowhere",
        "train run --preset heads-33", "train run --data nowhere", "invert nowhere heads out",
        "info nowhere", "plan nowhere", "blend heads heads a.safetensors", "",
    ],
)  # fmt: skip
def test_help_and_usage_errors_import_nothing_heavy(words: str, tmp_path: Path) -> None:
    code = (
        "import sys, resource\nfrom cips3d.cli import main\n"
        f"try: main({words.split()!r})\nexcept SystemExit as stopped: status = stopped.code or 0\n"
        "else: status = 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "print(status, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *_, heavy, last = done.stdout.splitlines()
    assert heavy == "[]"
    status, seconds = last.split()
    assert int(status) == (0 if words.endswith(("--help", "--version")) else 2)
    assert float(seconds) < 0.6 * SLACK
    assert os.listdir(tmp_path) == []


def test_the_package_is_imported_lazily() -> None:
    code = (
        "import sys, cips3d\nnames = dir(cips3d)\n"
        f"assert [name for name in {HEAVY} if name in sys.modules] == []\n"
        "assert sorted(cips3d.__all__) == names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- what every verb prints
def test_progress_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every 30 seconds; the remaining time only once it means something."""
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    with output.progress("working", start=0.5) as report:
        for seconds, share in ((1, 0.505), (31, 0.51), (40, 0.52), (62, 0.6), (200, 1.0)):
            now[0] = float(seconds)
            report(share, "step")
    assert capsys.readouterr().err.splitlines() == [
        "working: 51% (step, 0:31)",  # 1% is too little to tell from
        "working: 60% (step, 1:02, 4:08 left)",
        "working: 100% (step, 3:20)",
    ]
    with output.progress("counting") as report:
        now[0] += 30
        report(None, "7 images")
    assert capsys.readouterr().err == "counting: (7 images, 0:30)\n"


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(output, "DELAY", 0.0)
    assert list(output.tracked("abc", "working", 3)) == ["a", "b", "c"]
    with output.progress("hidden", shown=False) as report:
        report(0.5)
    assert "working" in screen.getvalue() and "|" in screen.getvalue()
    assert "hidden" not in screen.getvalue() and "left" not in screen.getvalue()


def test_curated_seeds(model: str) -> None:
    subjects = RandomSubjects()
    curated = subjects.seeds("heads", 24)
    assert len(set(curated)) == 24 and 0 not in curated[:16]  # the goblin
    more = subjects.seeds("heads", 130)
    assert more[:24] == curated and len(set(more)) == 130
    assert subjects.seeds(model, 3) == [0, 1, 2]
    assert RandomSubjects(seed=7).seeds("heads", 3) == [7, 8, 9]


def test_presets_are_listed() -> None:
    pristine = set(PRESETS) - {"tiny"}
    assert pristine == set(PRESET_NAMES)


# ---------------------------------------------------------------- what the verbs do
def test_sample(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in zip("abcde", ("", "", "--seed 1", "--yaw 30", "--psi 0"), strict=True):
        execute(f"sample {model} {name}.png --count 4 {options}")
    assert "wrote e.png" in capsys.readouterr().out
    a, b, c, d, e = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abcde")
    assert holds(a, 2, 2, 256)
    assert np.array_equal(a, b)
    assert not any(np.array_equal(a, other) for other in (c, d, e))


def test_sample_separate_files(model: str, tmp_path: Path) -> None:
    execute(f"sample {model} new --count 3 --separate --resolution 12")
    assert names(tmp_path / "new") == ["0000.png", "0001.png", "0002.png"]
    assert Image.open(tmp_path / "new" / "0002.png").size == (12, 12)


def test_render(model: str, tmp_path: Path) -> None:
    execute(f"render {model} a.png --count 2 --views 3 --yaw 20 --pitch 5")
    assert holds(np.asarray(Image.open(tmp_path / "a.png")), 6, 3, 256)
    for suffix in (".mp4", ".gif"):
        out = tmp_path / f"a{suffix}"
        execute(f"render {model} {out} --count 2 --seconds 0.5 --fps 10 --resolution 16")
        with av.open(str(out)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == 5
        assert (frames[0].width, frames[0].height) == (32, 16)
    assert names(tmp_path) == ["a.gif", "a.mp4", "a.png"]


def test_sample_of_any_size_and_both_truncations(model: str, tmp_path: Path) -> None:
    options = "--count 2 --yaw 10 --resolution 6 9 --supersample 2"
    for name, psi in zip("abcd", ("0.7", "0.7 0.7", "0.7 0", "0 0.7"), strict=True):
        execute(f"sample {model} {name}.png {options} --psi {psi}")
    a, b, c, d = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abcd")
    assert holds(a, 2, 1, (6, 9))
    assert np.array_equal(a, b)
    assert not any(np.array_equal(x, y) for x, y in ((a, c), (a, d), (c, d)))


def test_adaptive_images(model: str, tmp_path: Path) -> None:
    for name, options in (("a", ""), ("b", "--adaptive")):
        execute(f"sample {model} {name}.png --count 2 --resolution 40 {options}")
        execute(f"sample {model} {name} --count 1 --separate --resolution 40 {options}")
        execute(f"render {model} {name}1.png --count 1 --views 2 --resolution 40 {options}")
    for end in (".png", "/0000.png", "1.png"):
        full, close = (np.asarray(Image.open(tmp_path / f"{name}{end}")) for name in "ab")
        difference = np.abs(full.astype(int) - close)
        assert 0 < difference.max() <= 10, end


def video(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_render_one_large_picture(model: str, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    one = "--count 1 --views 1 --show image --resolution 40 60"
    execute(f"render {model} {out} {one} --yaw 20 --pitch 5 --psi 0.5 1")
    generator = pretrained.load(model)
    camera = Camera.orbit(np.radians(20).item(), np.radians(5).item())
    alone = generator.render(generator.sample_latents(1, 0), camera, (40, 60), psi=(0.5, 1.0)).image
    assert np.abs(np.asarray(Image.open(out)).astype(int) - to_uint8(alone)[0]).max() <= 1
    execute(f"render {model} b.png {one}")
    execute(f"render {model} c.png {one} --path orbit --yaw 0")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()  # from the front


def test_angles_count_from_the_middle_of_the_models_prior(tmp_path: Path) -> None:
    """A prior with other means than 0, as one that was learned."""
    poses = PoseDistribution(yaw_mean=0.4, pitch_mean=0.2)
    generator, model = pretrained.load("heads"), tmp_path / "model.safetensors"
    generator.config = replace(generator.config, poses=poses)
    pretrained.save(generator, model)

    def written(verb: str, options: str) -> np.ndarray:
        execute(f"{verb} {model} a.png --count 1 --resolution 24 --psi 1 {options}")
        return np.asarray(Image.open("a.png")).astype(int)

    alone = "--views 1 --show image"
    for verb, options, yaw, pitch in (
        ("render", alone, 0, 0),
        ("render", f"{alone} --path orbit --yaw 0", 0, 0),
        ("render", f"{alone} --path dolly-zoom", 0, 0),
        ("render", f"{alone} --yaw 20 --pitch -5", 20, -5),
        ("sample", "--yaw 0", 0, 0),
        ("sample", "--yaw 20 --pitch -5", 20, -5),
    ):
        camera = poses.at(0.4 + math.radians(yaw), 0.2 + math.radians(pitch))
        image = generator.render(generator.sample_latents(1, 0), camera, 24, psi=1.0).image
        expected = to_uint8(image)[0].astype(int)
        assert np.abs(written(verb, options) - expected).max() <= 1, (verb, options)


@pytest.mark.parametrize("path", ["arc", "orbit", "figure-eight", "dolly-zoom", "KEYS.json"])
def test_render_along_a_path(path: str, solid_model: str, tmp_path: Path) -> None:
    keys = tmp_path / "KEYS.json"
    keys.write_text(json.dumps([{"yaw": -30, "seconds": 0.5}, {"yaw": 30, "pitch": 10}]))
    common = f"--path {path} --count 1 --resolution 16 --show image depth"
    length = "" if "KEYS" in path else "--seconds 0.6"
    execute(f"render {solid_model} a.gif {common} --fps 10 {length}")
    frames = video(tmp_path / "a.gif")
    assert len(frames) == 6 and frames[0].shape == (16, 32, 3)
    assert any((frame != frames[0]).any() for frame in frames)
    assert any((frame != frames[0]).any() for frame in frames)
    turn = math.pi / 4
    cameras = {
        "arc": trajectories.arc(6, turn),
        "orbit": trajectories.orbit(6, turn),
        "figure-eight": trajectories.figure_eight(6, turn, turn / 3),
        "dolly-zoom": trajectories.dolly_zoom(6, 40.0),
        "KEYS.json": trajectories.keyframes(keys, fps=10),
    }  # fmt: skip
    generator = pretrained.load(solid_model)
    styles = generator.map(generator.sample_latents(1, 0), 0.7)
    far: dict[str, float] = {}
    for name, cameras_there in cameras.items():
        expected = list(video_frames(generator, styles, cameras_there, 16, show=("image", "depth")))
        apart = np.abs(np.array(frames, dtype=int) - np.array(expected, dtype=int)).mean(
            axis=(1, 2, 3)
        )
        assert name != path or apart.max() < 6  # a GIF has 256 colours
        far[name] = float(apart.mean())
    assert min(distance for name, distance in far.items() if name != path) > 2 * far[path], far
    execute(f"render {solid_model} a.png {common} --views 3")
    assert holds(np.asarray(Image.open(tmp_path / "a.png")), 2, 3, 16)


def test_render_without_perspective(solid_model: str) -> None:
    execute(f"render {solid_model} a.png --count 1 --views 1 --yaw 20 --show image --orthographic "
            "--resolution 24 --fov 14")  # fmt: skip
    generator = pretrained.load(solid_model)
    camera = trajectories.arc(1, math.radians(20), fov=14).as_orthographic()
    image = generator.render(generator.sample_latents(1, 0), camera, 24).image
    shown = np.asarray(Image.open("a.png")).astype(int)
    assert np.abs(shown - to_uint8(image)[0].astype(int)).max() <= 1


def test_render_from_seed_to_seed(model: str, tmp_path: Path) -> None:
    """Each seed's frame is that subject, alone; the video is back at the first after the last."""
    same = "--yaw 0 --resolution 16 --fps 4"
    execute(f"render {model} a.gif --seeds 3 1 4 {same}")
    frames = video(tmp_path / "a.gif")
    assert len(frames) == 3 * 2 * 4
    for i, seed in enumerate((3, 1, 4)):
        out = tmp_path / f"{seed}.gif"
        execute(f"render {model} {out} --seed {seed} --count 1 --seconds 0.5 {same}")
        assert np.array_equal(video(out)[0], frames[8 * i])
    assert not np.array_equal(frames[0], frames[8])
    execute(f"render {model} a.png --seeds 3 1 4 --show image --views 2")
    assert holds(np.asarray(Image.open(tmp_path / "a.png")), 3, 2, 256)


def test_render_refuses_keyframes_that_are_none(
    model: str, tmp_path: Path, refusal: Refusal
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('[{"yaw": 0}, {"yow": 1}]')
    for out in ("a.mp4", "a.png"):
        line = refusal(f"render {model} {out} --path {keys}")
        assert str(keys) in line and "keyframe 2: yow" in line
    assert names(tmp_path) == ["keys.json"]


def test_mesh(solid_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {}
    for name, options in (
        ("a.ply", ""), ("b.ply", ""), ("c.ply", "--seed 1"), ("d.ply", "--psi 0"),
        ("e.ply", "--level 50"), ("f.ply", "--no-colors"), ("g.ply", "--resolution 20"),
        ("h.OBJ", ""), ("i.glb", "--all-parts"),
    ):  # fmt: skip
        execute(f"mesh {solid_model} {name} --resolution 16 {options}")
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(
            r"[\d,]+ vertices, [\d,]+ faces; 0\.\d+ × 0\.\d+ × 0\.\d+ world units; level [\d.]+",
            lines[0],
        )
        assert lines[1:3] == ["watertight: yes", f"wrote {name}"]
        lengths[name[0]] = (tmp_path / name).stat().st_size
    a, b, c, d, e, f, g = ((tmp_path / f"{name}.ply").read_bytes() for name in "abcdefg")
    assert a == b and a not in (c, d, e, f, g)
    assert lengths["f"] < lengths["a"] < lengths["g"]


#: Those of embedded heads, whose network finds no noses.
OF_HEADS = set(MEASURES) - {"convexity", "nose_height"}


def test_a_table_is_of_its_measures(tmp_path: Path) -> None:
    """Each name has its own figure and the options reach it, for a prior that is not frontal."""
    generator = pretrained.load("heads")
    generator.config = replace(
        generator.config, poses=replace(generator.config.poses, yaw_mean=0.3)
    )
    turned, out = tmp_path / "turned.safetensors", tmp_path / "found.json"
    pretrained.save(generator, turned)
    few = "--count 3 --metrics fd4_heads"
    execute(f"eval {turned} {few} --seed 5 --psi 0.5 --resolution 16 --json-file {out}")
    found = json.loads(out.read_text())["values"]
    subjects = Subjects.generated(generator, generator.sample_latents(3, 5), 16, 0.5)
    view, network = subjects.from_prior(5), load_head_network()
    true_heads = Subjects.true(SyntheticHeads().truth(), range(3), 16)
    truth = true_heads.from_prior(5)
    latents = generator.sample_latents(3, 5)
    recombined = Recombined(
        *(
            Subjects.generated(generator, Latents(*codes), 16, 0.5)
            for codes in (
                (latents.shape, latents.appearance[[2, 0, 1]]),
                (latents.shape[[2, 0, 1]], latents.appearance),
            )
        )
    )
    within, between = consistency.identity_consistency(subjects, network)
    error, correlation = consistency.depth_error(view, network)
    turn = consistency.turn(subjects, network)
    expected = {
        "pose_error": consistency.pose_error(view, network, (0.3, 0.0)),
        "pose_slope": turn.slope, "pose_correlation": turn.correlation,
        "found_share": turn.found_share,
        "identity_consistency": within, "identity_between": between,
        "warp_error": consistency.warp_error(subjects), "view_agreement": view_agreement(subjects),
        "shape_correlation": shape_correlation(subjects, true_heads),
        "depth_error": error, "depth_correlation": correlation,
        "depth_distance": consistency.depth_distance(view, truth),
        "non_flatness": non_flatness(view.out, 1.0, generator.config.networks.extent),
        "detail": detail(view.out.image), "speckle": speckle(view.out.image),
        "last_sample_share": last_sample_share(view.out),
        "mirror_jump": symmetry.mirror_jump(subjects),
        "two_hypothesis_score": symmetry.two_hypothesis_score(subjects),
        "bangs_flip": symmetry.bangs_flip(subjects, network),
        "relief": float(relief(subjects).mean()), "hollow_share": hollow_share(relief(subjects)),
        "appearance_change": image_change(view, recombined.other_appearance),
        "shape_change": image_change(view, recombined.other_shape),
        "appearance_share": share_of_appearance(colours, network, view, recombined, truth),
        "shape_leak": share_of_appearance(forms, network, view, recombined, truth),
    }  # fmt: skip
    expected = {name: value if math.isfinite(value) else None for name, value in expected.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert set(expected) == OF_HEADS and len(set(map(str, expected.values()))) > 10
    assert consistency.pose_error(view, network) != pytest.approx(found["pose_error"], rel=1e-3)


def test_a_runs_model_is_measured_against_its_own_pictures(model: str, tmp_path: Path) -> None:
    data, run = tiny.images(tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    shutil.copy(model, run / "model.safetensors")
    (run / "config.json").write_text(json.dumps(to_dict(tiny.config(data))))
    out = tmp_path / "found.json"
    for place, name in ((str(run / "model.safetensors"), data), (model, "synthetic heads")):
        execute(f"eval {place} --count 2 --metrics fd4_heads --json-file {out}")
        assert json.loads(out.read_text())["record"]["dataset"]["name"] == name


def test_weights_in_16_bits_are_rendered_in_32(model: str, tmp_path: Path) -> None:
    """In 16 bits the samples of a ray would fall together: near 1 bfloat16 has steps of 0.008."""
    generator = pretrained.load(model)
    pretrained.save(copy.deepcopy(generator).bfloat16(), tmp_path / "half.safetensors")
    loaded = pretrained.load(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    rounded = copy.deepcopy(generator).bfloat16().float()
    pictures = [
        g.render(g.sample_latents(1, 0), Camera.orbit(0.2), 8).image for g in (loaded, rounded)
    ]
    torch.testing.assert_close(*pictures)


def test_models_without_a_surface(model: str, tmp_path: Path, refusal: Refusal) -> None:
    assert "there is no surface" in refusal(f"mesh {model} a.ply --resolution 16")
    torch.manual_seed(0)
    flat = tmp_path / "flat.safetensors"
    pretrained.save(build_generator(tiny.generator(architecture="cips-2d")), flat)
    assert "cips-2d has no density" in refusal(f"mesh {flat} a.ply")
    assert names(tmp_path) == ["flat.safetensors"]


def test_eval(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "found.json"
    few = "--metrics fd20_heads kd20_heads --count 3"
    execute(f"eval {model} {few} --json-file {out}")
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert lines[0].split() == ["model", "true", "heads"] and lines[-2] == f"wrote {out}"
    assert [line.split()[0] for line in lines[1:-2]] == list(found["values"])
    assert set(found["values"]) == {"fd20_heads", "kd20_heads", *OF_HEADS}
    assert set(found["true_heads"]) == OF_HEADS
    assert found["record"]["dataset"]["resolution"] == 8
    assert found["record"]["predictor"] == "heads"
    data = tiny.images(tmp_path / "data")
    other = f"--data {data} --metrics fd4_heads --count 2 --json-file {out}"
    execute(f"eval {model} {other}")
    assert json.loads(out.read_text())["record"]["predictor"] is None  # nothing saw poses in these
    text = capsys.readouterr().out
    assert "warp_error" in text and "pose_error" not in text and "true heads" not in text
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as it is without the extra
    execute(f"eval {model} --data {data} --count 2")
    told = capsys.readouterr()
    assert "warp_error" in told.out and "fid2k" not in told.out
    assert (
        told.err.startswith("left out: FID and KID need torch-fidelity")
        and told.err.count("\n") == 1
    )
    sight = "test_cli:SIGHT"
    monkeypatch.setitem(sys.modules, "test_cli", SimpleNamespace(SIGHT=SIGHT))
    execute(f"eval {model} {few} --predictor {sight} --json-file {out}")
    values = json.loads(out.read_text())["values"]
    expected = (
        Generator(tiny.GENERATOR)
        .config.poses.sample(3, torch.Generator().manual_seed(0))
        .yaw_pitch()
    )
    cosine = (expected[1].cos() * expected[0].cos()).acos()  # of the angle to the frontal camera
    assert values["pose_error"] == pytest.approx(float(cosine.rad2deg().mean()), rel=1e-3)
    assert values["identity_consistency"] == pytest.approx(1) and values[
        "identity_between"
    ] == pytest.approx(1)
    assert json.loads(out.read_text())["record"]["predictor"] == sight
    assert values["found_share"] == 1 and values["pose_slope"] == 0 and "convexity" not in values
    sight = "test_cli:FACES"
    monkeypatch.setitem(sys.modules, "test_cli", SimpleNamespace(FACES=FACES))
    execute(f"eval {model} {few} --predictor {sight} --json-file {out}")
    assert {"convexity", "nose_height"} <= json.loads(out.read_text())["values"].keys()
    execute(f"eval {model} --metrics fd4_heads --count 2 --predictor heads --json-file {out}")
    assert json.loads(out.read_text())["record"]["predictor"] == "heads"


#: Sees everything from the front, and one subject only.
def test_inceptions_weights_are_used_where_they_are_given(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []

    def measured(*args: Any) -> evaluation.Evaluation:
        asked.append(args[2])
        return evaluation.Evaluation({}, {}, {})

    monkeypatch.setattr(evaluation, "evaluate", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").touch()
    data = tiny.images(tmp_path / "data")
    weights = "--inception-weights x.pth"
    for options in ("", weights, f"--data {data} {weights}"):
        execute(f"eval {model} {options}")
    of_heads = ("fd2k_heads", "kd2k_heads", "recall2k_heads", "coverage2k_heads")
    assert asked == [
        of_heads,
        (*of_heads, "fid2k", "kid2k"),
        ("fid2k", "kid2k"),
    ]


def _no_nose(_: torch.Tensor) -> torch.Tensor:
    raise ValueError("no nose")


SIGHT = SimpleNamespace(
    pose=lambda images: (torch.zeros(len(images)), torch.zeros(len(images))),
    identity=lambda images: torch.ones(len(images), 2),
)
#: Also finds the parts of faces.
FACES = SimpleNamespace(**vars(SIGHT), landmarks=lambda images: torch.zeros(len(images), 7, 2))
#: Gives a column instead of one angle for each picture.
COLUMN = SimpleNamespace(
    pose=lambda images: (torch.zeros(len(images), 1),) * 2, identity=SIGHT.identity
)
#: Gives both angles in one tensor, which for two pictures could be taken for yaws and pitches.
STACKED = SimpleNamespace(pose=lambda images: torch.zeros(len(images), 2), identity=SIGHT.identity)
FAILING = SimpleNamespace(pose=lambda images: images.no_such_thing, identity=SIGHT.identity)
#: As errors of CUDA and of state_dicts are: the first line says what it is.
WORDY = SimpleNamespace(
    pose=lambda images: torch.nn.Linear(1, 1).load_state_dict({}), identity=SIGHT.identity
)
NOSELESS = SimpleNamespace(**vars(SIGHT), landmarks=_no_nose)
ARRAYS = SimpleNamespace(pose=lambda images: (np.zeros(len(images)),) * 2, identity=SIGHT.identity)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--metrics fvd", "metric fvd: unknown"),
        (
            f"--inception-weights {__file__}",
            "--inception-weights: none of --metrics uses Inception",
        ),
        ("--metrics fid8", r"pip install 'cips3d\[fidelity\]'"),
        ("--predictor nowhere:faces", "--predictor nowhere:faces: No module named"),
        ("--predictor json:loads", "--predictor json:loads: has no methods"),
        (
            "--predictor test_cli:COLUMN",
            r"predictor: pose returned \(2, 1\) and \(2, 1\) for 2 images; return yaw and pitch",
        ),
        (
            "--predictor test_cli:STACKED",
            r"predictor: pose returned \(2, 2\) for 2 images; return yaw and pitch",
        ),
        (
            "--predictor test_cli:WORDY",
            "--predictor test_cli:WORDY: pose raised RuntimeError: Error.* in loading",
        ),
        (
            "--predictor test_cli:ARRAYS",
            "predictor: pose returned ndarray and ndarray for 2 images; return .* a tensor each",
        ),
        (
            "--predictor test_cli:FAILING",
            "--predictor test_cli:FAILING: pose raised AttributeError: .*no_such_thing",
        ),
        (
            "--predictor test_cli:NOSELESS",
            "--predictor test_cli:NOSELESS: landmarks raised ValueError: no nose",
        ),
        ("--count 1", "--count is 1; it must be at least 2"),
        ("--data nowhere.zip", "nowhere.zip: no such folder"),
        ("--psi nan", "--psi"),
        ("--json-file /", "cannot write /: it exists and is no ordinary file"),
    ],
)
def test_eval_refuses(
    model: str, options: list[str], says: str, refusal: Refusal, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(
        sys.modules,
        "test_cli",
        SimpleNamespace(
            COLUMN=COLUMN,
            STACKED=STACKED,
            FAILING=FAILING,
            ARRAYS=ARRAYS,
            WORDY=WORDY,
            NOSELESS=NOSELESS,
        ),
    )
    assert re.search(says, refusal(f"eval {model} --metrics fd4_heads --count 2 {options}"))


def test_a_model_in_the_hubs_form(model: str, tmp_path: Path) -> None:
    pretrained.load(model).save_pretrained(tmp_path / "hub")
    for name, source in (("a", model), ("b", tmp_path / "hub")):
        execute(f"sample {source} {name}.png --count 1")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert pretrained.load_main_discriminator(tmp_path / "hub") is None


def test_data_heads_and_training_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads.zip"
    execute(f"data heads {out} --count 5 --resolution 16 --style cartoon")
    dataset = ImageDataset(out, 8)
    assert len(dataset) == 5 and dataset.labels is not None
    run = tmp_path / "run"
    execute(f"train {run} --preset tiny --data {out} --batch 2 --kimg 0.01 --seed 3")
    config = json.loads((run / "config.json").read_text())
    assert (config["data"], config["seed"]) == (str(out), 3)
    assert [stage["batch"] for stage in config["stages"]] == [2, 2]
    assert [stage["kimg"] for stage in config["stages"]] == [0.016, 0.01]
    assert f"wrote {run / 'model.safetensors'}" in capsys.readouterr().out
    model = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    execute(f"train {run}")  # without options it goes on with the run's own configuration
    assert (run / "model.safetensors").read_bytes() == model


def test_train_for_some_time(tmp_path: Path) -> None:
    execute("train run --minutes 0.001 --preset tiny")
    stages = json.loads((tmp_path / "run" / "config.json").read_text())["stages"]
    assert [stage["minutes"] for stage in stages] == [0.0005, 0.0005]


def test_pictures_of_mixed_sizes_and_shapes_train(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, size in enumerate([(8, 8), (9, 20), (30, 8), (64, 64)]):
        Image.new("RGB", size, (40 * i, 0, 0)).save(tmp_path / "data" / f"{i}.png")
    execute("train run --preset tiny --data data")
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_FRAMES", 3)
    out = tmp_path / "demo"
    execute(f"demo {out} --minutes 0.01 --heads 2 --resolution 16 --seed 4")
    assert json.loads((out / "config.json").read_text())["seed"] == 4
    assert {
        "heads.png",
        "comparison.png",
        "depth.png",
        "orbit.mp4",
        "model.safetensors",
        "log.jsonl",
    } <= set(names(out))
    assert holds(np.asarray(Image.open(out / "heads.png")), 6, 7, 16)
    printed = capsys.readouterr().out
    assert "view_agreement" in printed
    assert "0.01 minutes" in printed


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    execute("info tiny")
    preset = capsys.readouterr().out
    assert "tiny at 8²" in preset and "auxiliary" in preset
    execute(f"info {model} --geometry --resolution 16")
    of_model = capsys.readouterr().out
    parameters = sum(p.numel() for p in Generator(tiny.GENERATOR).parameters())
    assert f"{parameters:,}" in of_model and "at 16²" in of_model
    assert "shape_correlation" in of_model


def test_the_real_presets_can_be_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name, side, auxiliary in (("heads-32", 32, True), ("ffhq-512", 512, False)):
        execute(f"info {name}")
        out = capsys.readouterr().out
        assert f"{name} at {side}²" in out and ("auxiliary" in out) is auxiliary


# ---------------------------------------------------------------- words that make no command
@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("rendr heads a.png", "there is no verb rendr; did you mean render?"),
        ("data chekc x", "there is no verb data chekc; did you mean data check?"),
        ("sample heads a.png --cuont 3", "there is no option --cuont; did you mean --count;"),
        ("train OUT --preset heads-33", "there is no preset heads-33; did you mean heads-32?"),
        ("train OUT --preset tiny --set sede=1", "did you mean seed?"),
    ],
)
def test_typos_are_answered_with_the_nearest_name(words: str, near: str, refusal: Refusal) -> None:
    assert near in refusal(words)


def test_images_may_be_jpegs(model: str, tmp_path: Path) -> None:
    execute(f"sample {model} a.jpg --count 1 --resolution 16")
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "fly",
        "sample",
        "sample model out.png --bogus 1",
        "sample model out.png --count many",
        "sample model out.png --yaw left",
        "sample model out.png --psi 1 1 1",
        "render model out.png --show mesh",
        "data heads out.zip --style oil",
    ],
)
def test_the_parser_refuses(words: str, refusal: Refusal) -> None:
    assert "--help" in refusal(words)


# ---------------------------------------------------------------- values out of range
@pytest.mark.parametrize(
    "words, option",
    [
        ("sample MODEL OUT.png --count 0", "--count"),
        ("sample MODEL OUT.png --count -3", "--count"),
        ("sample MODEL OUT.png --resolution 0", "--resolution"),
        ("sample MODEL OUT.png --yaw nan", "--yaw"),
        ("sample MODEL OUT.png --pitch inf", "--pitch"),
        ("sample MODEL OUT.png --yaw 0 --pitch 90", "pitch"),
        ("sample MODEL OUT.png --psi nan", "--psi"),
        ("sample MODEL OUT.png --psi 1e300", "--psi"),
        ("blend MODEL MODEL OUT.png --amount 1e300", "--amount"),
        ("blend MODEL MODEL OUT.png --weights nan", "--weights"),
        ("render MODEL OUT.png --seconds 2", "--seconds"),
        ("sample MODEL OUT.png --seed -1", "--seed"),
        (f"sample MODEL OUT.png --seed {2**64}", "--seed"),
        ("sample MODEL OUT.png --device abacus", "--device abacus"),
        ("sample MODEL OUT.png --device meta", "--device meta"),
        (
            f"sample MODEL OUT.png --count {'1' + 20 * '0'}",
            "--count: a number of 67 bits is too large",
        ),
        (
            "sample MODEL OUT.png --resolution 2000000000",
            "--resolution is 2000000000; it must be at most 65536",
        ),
        ("sample MODEL OUT.gif", "OUT.gif"),
        ("sample MODEL OUT.png --psi 1 inf", "--psi"),
        ("sample MODEL OUT.png --resolution 8 -8", "--resolution"),
        ("sample MODEL OUT.png --supersample 0", "--supersample"),
        (
            "mesh nobody/nothing OUT.stl",
            "OUT.stl: the name must end in .ply, .obj or .glb",
        ),  # before the model is looked for
        ("mesh MODEL OUT", "the name must end in"),
        ("mesh MODEL OUT.ply --resolution 7", "--resolution"),
        ("mesh MODEL OUT.ply --resolution 100000", "--resolution"),
        ("mesh MODEL OUT.ply --level 0", "--level"),
        ("mesh MODEL OUT.ply --level nan", "--level"),
        ("mesh MODEL OUT.ply --level 1e9 --resolution 8", "level"),
        ("mesh MODEL OUT.ply --psi inf", "--psi"),
        ("mesh MODEL OUT.ply --seed -1", "--seed"),
        ("mesh MODEL OUT.ply --device abacus", "--device abacus"),
        ("render MODEL OUT.txt", "OUT.txt"),
        ("render MODEL OUT.mp4 --path keys.json --yaw 3", "--yaw and --pitch"),
        (
            "render MODEL OUT.mp4 --path keys.json --pitch 3",
            "--yaw and --pitch",
        ),
        ("finetune MODEL OUT --data heads --batch 0", "--batch"),
        ("finetune MODEL OUT --data heads --processes -1", "--processes"),
        ("sample MODEL OUT.png --pitch 20", "--pitch"),
        ("invert MODEL MODEL OUT --pitch 3", "--pitch"),
        ("invert MODEL MODEL OUT --space w --mirror 0", "--mirror"),
        ("render MODEL OUT.mp4 --supersample -1", "--supersample"),
        ("render MODEL OUT.mp4 --psi nan 1", "--psi"),
        ("render MODEL OUT.mp4 --seeds 1 -1", "--seeds"),
        (
            "render MODEL OUT.mp4 --seeds 1 2 3 --seconds 0.01",
            "2 frames for 3 subjects",
        ),
        ("render MODEL OUT.mp4 --fov 0", "--fov is 0.0; it must be above 0"),
        ("render MODEL OUT.mp4 --fov nan", "--fov"),
        (
            "render MODEL OUT.mp4 --path dolly-zoom --fov 120",
            "camera: it comes within",
        ),
        ("render MODEL OUT.mp4 --path dolly-zoom --orthographic", "--orthographic"),
        ("render MODEL OUT.mp4 --pitch 95", "pitch reaches 95"),
        ("render MODEL OUT.mp4 --path spiral", "--path is spiral"),
        ("render MODEL OUT.mp4 --path OUT.json", "OUT.json"),
        ("render MODEL OUT.mp4 --seconds 1e300", "--seconds"),
        ("render MODEL OUT.mp4 --resolution 0", "--resolution"),
        ("render MODEL OUT.mp4 --yaw nan", "--yaw"),
        ("render MODEL OUT.mp4 --seconds 0", "--seconds"),
        ("render MODEL OUT.mp4 --seconds nan", "--seconds"),
        ("render MODEL OUT.gif --fps 0", "--fps"),
        ("render MODEL OUT.gif --fps 1000", "fps"),
        (
            f"render MODEL OUT.gif --fps {400 * '9'}",
            "--fps: a number of 1329 bits is too large",
        ),
        ("render MODEL OUT.png --views 0", "--views"),
        ("render MODEL OUT.png --count -1", "--count"),
        ("view MODEL --port 70000", "port"),
        ("view MODEL --subject OUT.safetensors", "OUT.safetensors"),
        ("mix MODEL OUT.gif", "OUT.gif"),
        ("view MODEL --port -1", "port"),
        ("data heads OUT.zip --count 0", "--count"),
        ("data heads OUT.zip --resolution 0", "--resolution"),
        ("data heads OUT --seed -1", "--seed"),
        ("info MODEL --resolution 0", "--resolution"),
        ("info tiny --resolution 7", "7"),
        ("info tiny --geometry", "--geometry"),
        ("import-official MODEL OUT.safetensors --resolution 0", "--resolution"),
        ("import-official MODEL OUT.pth", "OUT.pth: the name must end in .safetensors"),
        ("plan tiny --memory 1e300", "--memory"),
        ("plan tiny --tflops 0", "--tflops"),
        ("train OUT --set sample_kimg=1e306", "--set: 1e+306 is too large"),
        (
            "train OUT --processes 3",
            "--processes: batch 4 of the stage at 4 does not divide among 3",
        ),
        ("demo OUT --minutes 0", "--minutes"),
        ("demo OUT --minutes nan", "--minutes"),
        ("demo OUT --heads 0", "--heads"),
        ("demo OUT --resolution 0", "--resolution"),
        ("demo OUT --seed -1", "--seed"),
        ("train OUT --minutes 0", "--minutes"),
        ("train OUT --minutes nan", "--minutes"),
        ("train OUT --minutes inf", "--minutes"),
        ("train OUT --kimg nan", "kimg"),
        ("train OUT --kimg -1", "kimg"),
        ("train OUT --batch 0", "batch"),
        (f"train OUT --seed {2**64}", "--seed"),
        ("train OUT --preset heads-33", "--preset"),
    ],
)
def test_values_out_of_range(
    words: str, option: str, model: str, tmp_path: Path, refusal: Refusal
) -> None:
    assert option in refusal(words.replace("MODEL", model))
    assert names(tmp_path) == []


# ---------------------------------------------------------------- models that cannot be read
def damaged_models(folder: Path, model: str) -> list[str]:
    """Names of damaged models."""
    whole = Path(model).read_bytes()
    contents = {
        "cut.safetensors": whole[: len(whole) // 2],
        "cut-in-the-header.safetensors": whole[:100],
        "empty.safetensors": b"",
        "text.safetensors": b"no model",
        "garbage.safetensors": whole.replace(b'"cips3d":"{', b'"cips3d":"['),
        "unknown-field.safetensors": whole.replace(b"inr_width", b"inr_wodth"),
        "other-sizes.safetensors": whole.replace(b'\\"inr_width\\": 16', b'\\"inr_width\\": 32'),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "empty-folder").mkdir()
    pretrained.load(model).save_pretrained(folder / "cut-folder")
    os.truncate(folder / "cut-folder" / "model.safetensors", 1000)
    return [*contents, "empty-folder", "cut-folder"]


def test_damaged_models(model: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "models").mkdir()
    for name in damaged_models(tmp_path / "models", model):
        line = refusal(f"sample models/{name} out.png")
        assert name.split(".")[0] in line or "config.json" in line, (name, line)
        assert "of a run" not in line
    assert names(tmp_path) == ["models"]


def test_the_folder_of_a_run_is_no_model(model: str, tmp_path: Path, refusal: Refusal) -> None:
    write_config(tmp_path / "run", tiny.config())
    pretrained.save(pretrained.load(model), tmp_path / "run" / "model.safetensors")
    assert "give the model in it, run/model.safetensors" in refusal("sample run out.png")


def test_a_blend_replaces_no_model(model: str, tmp_path: Path, refusal: Refusal) -> None:
    write_config(tmp_path / "run", tiny.config())
    for out in (Path(model), tmp_path / "run" / "model.safetensors"):
        for words in (
            f"blend {model} {model} {out} --amount 0.5",
            f"mix {model} {out}",
            f"import-official {model} {out}",
        ):
            assert f"{out}: is " in refusal(words)
    assert names(tmp_path / "run") == ["config.json"]
    subject = tmp_path / "subject.safetensors"
    execute(f"mix {model} {subject}")
    assert f"{subject}: is an input" in refusal(f"mix {model} {subject} --style {subject}")
    execute(f"blend {model} {model} run/half.safetensors --amount 0.5")  # harms nobody


@pytest.mark.parametrize("verb", ["sample", "render", "info", "import-official"])
@pytest.mark.parametrize(
    "name", ["nothing", "no/such/model", "no-such-folder/model.safetensors", "x" * 300]
)
def test_missing_models(verb: str, name: str, tmp_path: Path, refusal: Refusal) -> None:
    out = {"info": "", "import-official": "out.safetensors"}.get(verb, "out.png")
    assert name in refusal(f"{verb} {name} {out}")
    assert names(tmp_path) == []


def test_a_model_that_the_hub_does_not_have(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "nobody/nothing" in refusal("sample nobody/nothing out.png")

    def unknown(*_: Any, **__: Any) -> str:  # as where there is a network
        raise HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(pretrained, "hf_hub_download", unknown)
    line = refusal("sample nobody/nothing out.png")
    assert (
        "nobody/nothing: is neither a file, a folder nor a model on the Hugging Face hub (404)"
        in line
    )


@pytest.mark.parametrize(
    "name", ["runs/hedas", "user/model.pt", "nowhere/model.ckpt", "a/b/c", "a\\b", "../hedas"]
)
def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such file or folder"):
        pretrained.load(name)


@pytest.mark.parametrize("name", ["user/model", "user/model-1.5", "user/model.v2"])
def test_hub_ids(name: str) -> None:
    assert local_file(name) is None


def test_a_model_on_the_hub(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained.load(model).save_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    fetched, own = (
        pretrained.load("somebody/heads").state_dict(),
        pretrained.load(model).state_dict(),
    )
    assert fetched.keys() == own.keys() and all(
        torch.equal(fetched[name], own[name]) for name in own
    )


def test_a_device_that_torch_was_built_for_and_that_is_not_there(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._C._accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert load_model(model, "auto").shape_mean.device.type == "cpu"


def test_a_terminal_without_the_letters(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "out.txt", "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        execute(f"info {model}")
    assert "at 8?" in (tmp_path / "out.txt").read_text()


# ---------------------------------------------------------------- datasets that cannot be used
def bad_dataset(kind: str, folder: Path) -> Path:
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    noise.save(folder / "0.png")
    if kind == "missing":
        return folder / "nothing"
    if kind == "no pictures":
        (folder / "0.png").rename(folder / "0.txt")
    elif kind == "cut zip":
        path = folder / "cut.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(folder / "0.png", "0.png")
        os.truncate(path, path.stat().st_size - 30)
        return path
    elif kind == "no zip":
        (folder / "no.zip").write_text("a zip it is not")
        return folder / "no.zip"
    elif kind == "text as png":
        (folder / "1.png").write_text("a picture it is not")
    elif kind == "one pixel":
        Image.new("RGB", (1, 1)).save(folder / "1.png")
    return folder


@pytest.mark.parametrize(
    "kind, words",
    [
        ("missing", "no such folder"),
        ("no pictures", "contains no images"),
        ("cut zip", "cut.zip"),
        ("no zip", "no.zip"),
        ("text as png", "1.png"),
        ("one pixel", "1.png: is 1x1"),
    ],
)
def test_bad_datasets(kind: str, words: str, tmp_path: Path, refusal: Refusal) -> None:
    path = bad_dataset(kind, tmp_path / "data")
    line = refusal(f"train run --preset tiny --data {path}")
    assert words in line
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_turns_out_damaged_in_training(
    workers: int,
    tmp_path: Path,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", lambda: tiny.config(workers=workers))
    tiny.images(tmp_path / "data", count=3)
    content = (tmp_path / "data" / "1.png").read_bytes()
    (tmp_path / "data" / "1.png").write_bytes(content[:-80])  # its header is whole
    line = refusal("train run --preset tiny --data data")
    assert "1.png" in line and "damaged" in line


# ---------------------------------------------------------------- run directories
@pytest.fixture
def run(tmp_path: Path, pictures: str) -> Path:
    """The directory of a finished run."""
    execute(f"train run --preset tiny --data {pictures}")
    return tmp_path / "run"


def newest_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_a_run_directory_with_another_configuration(run: Path, refusal: Refusal) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "another configuration" in refusal(f"train {run} --preset tiny --seed 5")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_damaged_checkpoints(run: Path, refusal: Refusal) -> None:
    model = (run / "model.safetensors").read_bytes()
    newest = newest_checkpoint(run)
    whole = newest.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:50], b"", b"no checkpoint"):
        newest.write_bytes(content)
        line = refusal(f"train {run}")
        assert newest.name in line and "delete it" in line
    newest.unlink()
    (run / "model.safetensors").unlink()
    execute(f"train {run}")  # as the line says
    assert (run / "model.safetensors").read_bytes() == model


def test_a_checkpoint_of_another_configuration(
    run: Path,
    tmp_path: Path,
    pictures: str,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wider = tiny.config(generator=tiny.generator(inr_width=24))
    monkeypatch.setitem(PRESETS, "wider", lambda: wider)
    execute(f"train wider --preset wider --data {pictures}")
    newest = newest_checkpoint(run)
    newest.write_bytes(newest_checkpoint(tmp_path / "wider").read_bytes())
    line = refusal(f"train {run}")
    assert newest.name in line and "another configuration" in line
    newest.write_bytes((run / "model.safetensors").read_bytes())
    assert newest.name in refusal(f"train {run}")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"stages": []}',
        '{"stages": 3}',
        '{"bogus": 1}',
        '{"stages": [{"resolution": 0, "kimg": 1}]}',
    ],
)
def test_garbage_in_config_json(content: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "config.json").write_text(content)
    for options in ("", "--preset tiny"):
        assert "config.json" in refusal(f"train {tmp_path} {options}")
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize("content", [b"\xff\xfe}\n", b'{"step": 1}\n{"no step": 2}\n', b"[1}\n"])
def test_garbage_in_the_log(content: bytes, run: Path, refusal: Refusal) -> None:
    (run / "log.jsonl").write_bytes(content)
    assert "log.jsonl" in refusal(f"train {run}")


def test_a_folder_that_holds_other_things(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")  # which alone would be no hindrance
    for verb in (f"train {tmp_path} --preset tiny", f"demo {tmp_path}"):
        assert "not empty" in refusal(verb)
    assert names(tmp_path) == [".DS_Store", "thesis.txt"]
    assert "is a file" in refusal("train thesis.txt --preset tiny")
    (tmp_path / "thesis.txt").unlink()
    assert "nowhere" in refusal(f"train {tmp_path} --preset tiny --set start=nowhere.safetensors")
    assert names(tmp_path) == [".DS_Store"]  # so that another start can be tried in the same folder


def test_a_batch_that_does_not_divide_among_the_processes(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    assert "does not divide among 3" in refusal("train run --preset tiny")
    assert names(tmp_path) == []


def test_a_launcher_decides_about_processes(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--processes: a launcher" in refusal("train run --preset tiny --processes 2")
    assert "but none finds a GPU" in refusal("train run --preset tiny")
    assert names(tmp_path) == []


# ---------------------------------------------------------------- places that cannot be written
def unwritable(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").write_text("x")
    special = Path("/proc/cips3d") if Path("/proc").is_dir() else tmp_path / "file" / "too"
    return [tmp_path / "file" / "below", special, tmp_path / ("x" * 300)]


def test_places_that_cannot_be_written(
    model: str,
    solid_model: str,
    pictures: str,
    tmp_path: Path,
    refusal: Refusal,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("cips3d.invert", None)  # it is said before the work
    for place in unwritable(tmp_path):
        for command in (
            f"train {place} --preset tiny",
            f"demo {place}",
            f"sample {model} {place}/a.png --count 1",
            f"sample {model} {place} --count 1 --separate",
            f"render {model} {place}/a.png --count 1 --views 1",
            f"render {model} {place}/a.mp4 --count 1 --seconds 0.1",
            f"mesh {solid_model} {place}/a.glb --resolution 8 --no-colors",
            f"blend {model} {model} {place}/a.png",
            f"mix {model} {place}/a.png",
            f"invert {pictures}/0.png {model} {place}/a",
            f"data heads {place}/a.zip --count 1 --resolution 8",
            f"data heads {place}/a --count 1 --resolution 8",
        ):
            assert str(place) in refusal(command), command
    assert names(tmp_path) == ["file"]


def test_heads_never_overwrite(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "a.zip").write_text("precious")
    assert "it exists" in refusal("data heads a.zip --count 1")
    assert (tmp_path / "a.zip").read_text() == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        yield place
    finally:
        subprocess.run(
            ["umount", "--lazy", str(place)], check=True
        )  # PyAV closes a failed file late


def leave_room(disk: Path, size: int) -> None:
    """Fills the disk but for `size` bytes."""
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "filler", (disk / "filler").stat().st_size - size)


def test_full_disk(small_disk: Path, model: str, solid_model: str, refusal: Refusal) -> None:
    leave_room(small_disk, 0)
    for command in (
        f"sample {model} {small_disk}/a.png --count 16 --resolution 64",
        f"render {model} {small_disk}/a.png --count 2 --resolution 64",
        f"render {model} {small_disk}/a.gif --count 2 --seconds 0.2 --resolution 64",
        f"render {model} {small_disk}/a.mp4 --count 2 --seconds 0.2 --resolution 64",
        f"mesh {solid_model} {small_disk}/a.ply --resolution 32 --no-colors",
        f"data heads {small_disk}/a.zip --count 100 --resolution 64",
        f"data heads {small_disk}/a --count 100 --resolution 64",
    ):
        line = refusal(command)
        assert str(small_disk / "a") in line and "No space left" in line, command
        assert names(small_disk) == ["filler"], command


def test_a_checkpoint_that_fills_the_disk(
    small_disk: Path, pictures: str, refusal: Refusal
) -> None:
    line = refusal(f"train {small_disk}/run --preset tiny --data {pictures}")
    assert "000000000016.safetensors" in line and "No space left" in line
    assert names(small_disk / "run" / "checkpoints") == []


def test_a_model_that_fills_the_disk(small_disk: Path, model: str) -> None:
    leave_room(small_disk, 8192)
    with pytest.raises(cli.UserError, match="No space left"):
        pretrained.save(pretrained.load(model), small_disk / "model.safetensors")
    assert names(small_disk) == ["filler"]


def test_a_log_that_fills_the_disk(
    small_disk: Path,
    pictures: str,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = tiny.config(checkpoint_kimg=1000, stages=(Stage(8, kimg=1, batch=4),))
    monkeypatch.setitem(PRESETS, "tiny", lambda: long)
    leave_room(small_disk, 5 * 4096)
    line = refusal(f"train {small_disk}/run --preset tiny --data {pictures}")
    assert str(small_disk / "run") in line and "No space left" in line
    run = small_disk / "run"
    (small_disk / "filler").unlink()
    lines = (run / "log.jsonl").read_text().splitlines()
    assert len(lines) > 3
    assert [json.loads(line)["step"] for line in lines[:-1]] == list(range(1, len(lines)))


def test_a_full_disk(
    tmp_path: Path,
    pictures: str,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing can be mounted, a limit on the size of files stands for the full disk."""
    execute(f"train before --preset tiny --data {pictures}")  # what numba compiles is kept
    for size, kimg, words in ((20_000, 0.016, "safetensors"), (4000, 1000.0, "cannot write in")):
        monkeypatch.setitem(
            PRESETS,
            "tiny",
            lambda kimg=kimg: tiny.config(checkpoint_kimg=kimg, stages=(Stage(8, 0.2, 4),)),
        )
        run = tmp_path / f"run-{size}"
        with tiny.full_disk_after(size):
            line = refusal(f"train {run} --preset tiny --data {pictures}")
        assert "File too large" in line and words in line
        assert (run / "log.jsonl").stat().st_size > 0
        assert not (run / "checkpoints").exists() or names(run / "checkpoints") == []


# ---------------------------------------------------------------- interrupts
def test_ctrl_c_ends_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_with_progress", interrupt)
    with pytest.raises(SystemExit) as caught:
        execute("train run --preset tiny")
    assert caught.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, cli.BRIEF_SPIN), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_leave_the_processor_to_others(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cli.main(["--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
