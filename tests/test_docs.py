"""The documentation: commands, Python and images work, and the site builds without a warning."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import cips3d
import tiny
from cips3d import cli, pretrained
from cips3d.cli import train
from cips3d.export.media import save_frames
from cips3d.training import planning as plans
from cips3d.training.loop import train as train_run
from cips3d.training.presets import PRESETS
from cips3d.training.recipe import TrainConfig
from cips3d.training.run import Run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import commands as shown  # noqa: E402

from chromium import CHROMIUM  # noqa: E402

PAGES = pytest.mark.parametrize("page", shown.PAGES, ids=lambda page: page.name)


def brief() -> TrainConfig:
    """A run of two steps whose subjects have a surface."""
    config = tiny.config()
    solid = tiny.generator(config.generator, density_gain=40.0, density_blob=60.0)
    return replace(
        config, generator=solid, stages=tuple(replace(stage, kimg=0.004) for stage in config.stages)
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what readers have: images, a video, keyframes, checkpoints, finished runs."""
    folder = tmp_path_factory.mktemp("reader")
    tiny.images(folder / "photos", size=16)
    shutil.copy(folder / "photos" / "0.png", folder / "face.png")
    (folder / "datasets").mkdir()
    for name in ("photos", "photos-256", "drawings", "datasets/dcgan-64", "datasets/att-64"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((folder / "photos").iterdir()):
                archive.write(path, path.name)
    save_frames(
        folder / "clip.mp4",
        iter(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)),
        4,
    )
    keyframes = re.search(r"```json\n(.*?)```", (DOCS / "rendering.md").read_text(), re.DOTALL)
    assert keyframes
    (folder / "flight.json").write_text(keyframes[1])
    recorded = load_file(ROOT / "tests" / "data" / "generator.safetensors")
    official = {
        key.removeprefix("param/"): value.float()
        for key, value in recorded.items()
        if key.startswith("param/")
    }
    torch.save(official, folder / "G_ema.pth")
    recorded = load_file(ROOT / "tests" / "data" / "training_step_discriminator.safetensors")
    prefix = "discriminator_before/"
    torch.save(
        {key.removeprefix(prefix): x for key, x in recorded.items() if key.startswith(prefix)},
        folder / "D.pth",
    )
    train_run(Run(brief(), folder / "runs" / "mine"))
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "heads")
    return folder


@pytest.fixture
def reader(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in, where every preset and the bundled model are tiny."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, brief)
    monkeypatch.setitem(
        pretrained.BUNDLED, "heads", str(given / "runs" / "mine" / "model.safetensors")
    )
    monkeypatch.setattr(train, "_FRAMES", 2)
    # Steps on shapes are slow while every shape is checked; tests/test_plan.py tests them.
    monkeypatch.setattr(plans, "step_cost", lambda *_: plans.StepCost(1.0, 1, 1.0, 1.0))
    monkeypatch.setattr(plans, "visible_share", lambda _: 0.5)
    return tmp_path


PAGE = """Text with cips3d train.

    cips3d train runs/a \\
        --kimg 3  # a word
    srun bash -c 'torchrun -m cips3d info x'

```bash
.venv/bin/cips3d info 'x y'
other
```
"""


def test_the_pages_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    found = shown.commands(page)
    assert [command.line for command in found] == [3, 5, 8]
    assert [command.words for command in found] == [
        ["train", "runs/a", "--kimg", "3"],
        ["info", "x"],
        ["info", "x y"],
    ]
    assert found[0].small() == ["train", "runs/a", "--kimg", "0.016", "--processes", "1"]
    assert [command.reason is None for command in found] == [True, False, True]
    assert sum(len(shown.commands(page)) for page in shown.PAGES) > 50


@PAGES
def test_commands_work(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's commands in order, as a reader types them; those that cannot run here are parsed."""
    for command in shown.commands(page):
        if command.reason is not None and command.verb != "train":
            assert_options_exist(" ".join(command.words))
            continue
        with monkeypatch.context() as patch:
            if command.reason is not None:
                patch.setattr(train, "train_here", lambda *_: None)
            make_way(command)
            try:
                cli.main(command.small())
            except SystemExit as end:
                pytest.fail(
                    f"{command.page}:{command.line}: {command.text}: exit status {end.code}"
                )


def make_way(command: shown.Command) -> None:
    """Removes what the command is about to make."""
    words, made = command.words, None
    if command.verb == "train" and len(words) > 2 and command.reason is None:
        made = Path(words[1])
    if command.verb in ("data build", "data heads"):
        made = Path(words[-1] if len(words) < 4 else words[2 + (command.verb == "data build")])
    if made is not None and made.is_dir():
        shutil.rmtree(made)
    elif made is not None:
        made.unlink(missing_ok=True)


@PAGES
def test_commands_within_the_text_have_those_verbs_and_options(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mention in shown.mentions(page):
        assert_options_exist(mention)


@PAGES
def test_scripts_and_targets_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for script in re.findall(r"\b(?:benchmarks|experiments|tests|docs)/\w+\.py\b", text):
        assert (shown.ROOT / script).is_file(), script
    targets = re.findall(r"^(\S+):", (shown.ROOT / "Makefile").read_text(), re.MULTILINE)
    for target, name in re.findall(r"(?:`|^)make ([a-z-]+)(?: NAME=(\w+))?", text, re.MULTILINE):
        assert target in targets, target
        assert not name or (shown.ROOT / "experiments" / f"{name}.py").is_file(), name


def assert_options_exist(text: str) -> None:
    """Checks that a command's verb exists and has its options, placeholders or not."""
    verb = re.match(r"data( [a-z]+)?|[a-z-]+", text)
    if verb is None:  # an ellipsis, or the options of the program itself
        return
    help_text = help_of(verb[0])
    assert help_text, f"cips3d {verb[0]}: no such verb"
    for option in re.findall(r"--[a-z][a-z-]*", text):
        assert re.search(rf"{option}(?![\w-])", help_text), f"cips3d {text}: no option {option}"


def test_options_that_a_verb_lacks_are_noticed() -> None:
    assert_options_exist("render MODEL OUT --yaw 3")
    for text in ("render MODEL OUT --yow 3", "paint MODEL", "data paint"):
        with pytest.raises(AssertionError):
            assert_options_exist(text)


@functools.cache
def help_of(verb: str) -> str:
    """What `cips3d VERB --help` prints; nothing if there is no such verb."""
    text = io.StringIO()
    with (
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit),
    ):
        cli.main([*verb.split(), "--help"])
    return text.getvalue() if f"cips3d {verb}" in text.getvalue() else ""


@PAGES
def test_python_works(page: Path, reader: Path) -> None:
    names: dict[str, object] = {}
    blocks = shown.python(page)
    if "runs/cartoon" in "".join(blocks):
        shutil.copytree("runs/mine", "runs/cartoon")
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


# ---------------------------------------------------------------- images
@pytest.fixture
def maker() -> Iterator[ModuleType]:
    """docs/images.py"""
    import images

    yield images


def test_every_image_is_made_by_the_script(maker: ModuleType) -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    readme = (DOCS.parent / "README.md").read_text()
    pages += readme.replace("](docs/", "](").replace("](experiments/", "](../experiments/")
    shown_ones = {
        name for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", pages) if not name.startswith("../")
    }
    made = {f"images/{name}" for name in [*maker.DRAWN, *maker.COMMANDS, *maker.SCREENSHOTS]}
    assert shown_ones - made == maker.OTHERS
    assert (
        made == {f"images/{path.name}" for path in (DOCS / "images").iterdir()} == made & shown_ones
    )
    # readers see the commands
    assert all(text in pages for texts in maker.COMMANDS.values() for text in texts)
    for name in shown_ones:
        assert (DOCS / name).stat().st_size < (600_000 if name in made else 1_500_000)


def test_images_can_be_made(maker: ModuleType, reader: Path) -> None:
    for name in [*maker.DRAWN, *maker.COMMANDS]:
        out = maker.make(name, reader, small=True)
        if out.suffix == ".svg":
            assert "<svg" in out.read_text()[:2000]
        else:
            Image.open(out).verify()


def test_the_image_of_the_viewer_can_be_made(maker: ModuleType, reader: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    window = np.asarray(Image.open(maker.make("viewer.png", reader)).convert("L"), dtype=float)
    assert window.shape == (720, 1280)
    assert window[:, :950].mean() < 200  # the new model's grey, before which the window is white
    assert window[:, 960:].mean() > 200  # the panel


def test_the_animation_shows_turning_subjects_above_their_meshes(reader: Path) -> None:
    import turning

    frames = [np.asarray(frame, dtype=float) for frame in turning.turning(16, frames=4, grid=16)]
    assert {frame.shape for frame in frames} == {(32, 48, 3)}
    images, meshes = np.split(np.stack(frames), 2, axis=1)
    assert np.abs(images[1] - images[3]).max() > 0  # yaw to either side
    assert np.abs(meshes[1] - meshes[3]).max() > 0


def test_the_rasterizer_shows_the_nearest_surface() -> None:
    import turning

    # two squares that face the camera: a dark one, and a bright one closer and smaller
    squares = ((2.0, 0.25, 1, 7), (1.0, 0.75, 2, 5))
    corners = [
        (y, x, depth, light)
        for depth, light, low, high in squares
        for y, x in ((low, low), (low, high), (high, high), (high, low))
    ]
    faces = np.array([(0, 1, 2), (0, 2, 3), (4, 5, 6), (4, 6, 7)])
    seen = turning.rasterize(np.array(corners), faces, 8)
    assert np.isnan(seen[0]).all() and np.isnan(seen[:, 7]).all()
    np.testing.assert_allclose(seen[2:5, 2:5], 0.75)
    np.testing.assert_allclose(seen[5:7, 1:7], 0.25)


# ---------------------------------------------------------------- the site
@pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("mkdocstrings") is None,
    reason="pip install 'cips3d[docs]'",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    models = (site / "api" / "models.html").read_text()
    assert 'id="cips3d.models.generator.Generator.render_rays"' in models
    api = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    for name in set(cips3d.__all__) - {"__version__"}:
        home = getattr(cips3d, name)
        full = home.__name__ if isinstance(home, ModuleType) else f"{home.__module__}.{name}"
        assert f'id="{full}"' in api, full
    assert (site / "experiments" / "results" / "figure_7.png").is_file()
    source = (site / "src" / "cips3d" / "models" / "nerf.html").read_text()
    assert "RadianceField" in source
    index = (site / "index.html").read_text()
    # works offline
    assert not re.search(r'(src|href)="https?://[^"]*\.(js|css|woff2?)"', index)
    assert index.count("data-md-color-scheme=") >= 3  # light, dark, the system's
