"""Model cards, and the record of a training in a model's file."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

import cips3d
import tiny
from cips3d import cli, pretrained
from cips3d.configuration import from_dict
from cips3d.models.card import MARK, Figures, card
from cips3d.models.generator import Generator
from cips3d.models.registry import build_generator
from cips3d.provenance import TrainingRecord
from cips3d.training.checkpoint import Counters
from cips3d.training.command import command
from cips3d.training.loop import train
from cips3d.training.presets import preset, transfer
from cips3d.training.recipe import TrainConfig, with_minutes
from cips3d.training.run import Run
from test_cli import the_error_line

RECORD = TrainingRecord(
    data="photos.zip", data_images=4000, command="cips3d train RUN-DIR --preset ffhq-64",
    images=1_200_000, minutes=90, machines=("2 × NVIDIA H200",), seed=3, software="cips3d 0.1.0",
)  # fmt: skip
EVALUATION = {
    "model": "m",
    "values": {"fd2k_heads": 12.5, "pose_error": None},
    "true_heads": {},
    "record": {
        "count": 8, "dataset": {"name": "/home/me/photos.zip"},
        "fidelity": {"real_images": {"fd2k_heads": 2000}},
    },
    "table": ["            model", "fd2k_heads   12.5  distance (lower is better)"],
}  # fmt: skip


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    found = Generator(tiny.GENERATOR)
    found.record = RECORD
    return found


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(EVALUATION))
    return path


# ---------------------------------------------------------------- the command
def changed() -> TrainConfig:
    config = preset("heads-64")
    return replace(
        config,
        objective=replace(config.objective, r1=None, adversarial="relativistic"),
        stages=config.stages[:2],
        start="heads",
    )


@pytest.mark.parametrize(
    "config, words",
    [
        (lambda: preset("ffhq-128"), "train RUN-DIR --preset ffhq-128"),
        (
            lambda: replace(preset("heads-64"), sample_kimg=30.0),
            "train RUN-DIR --preset heads-64 --set sample_kimg=30.0",
        ),
        (
            lambda: with_minutes(replace(preset("heads-32"), seed=3, data="heads-cartoon"), 20),
            "train RUN-DIR --preset heads-32 --data heads-cartoon --seed 3 --minutes 20",
        ),
        (changed, None),
        (
            lambda: replace(
                transfer(
                    cips3d.load("heads").config, "heads", "heads-cartoon",
                    pretrained.load_discriminators("heads"), 10.0,
                ),
                frozen_discriminator_blocks=2,
            ),
            "finetune heads RUN-DIR --data heads-cartoon --kimg 10 "
            "--set frozen_discriminator_blocks=2",
        ),
    ],
)  # fmt: skip
def test_the_command_gives_the_configuration(
    config: Any, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrainConfig] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cips3d.cli.train.train_here", lambda given, *_: made.append(given))
    wanted = config()
    line = command(wanted)
    assert words is None or line == f"cips3d {words}"
    cli.main(shlex.split(line)[1:])
    assert made == [wanted]


# ---------------------------------------------------------------- the record
def test_a_run_records_what_it_did(tmp_path: Path) -> None:
    data = tiny.images(tmp_path / "photos")
    run = Run(tiny.config(data, seed=5), tmp_path / "run")
    run.counters.stage_seconds = 300.0

    def stop(share: float, _: dict[str, float]) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, stop)
    resumed = Run(tiny.config(data, seed=5), tmp_path / "run")
    resumed.counters.machines = ("an older machine", *resumed.counters.machines)
    model = cips3d.load(train(resumed))
    record = model.record
    assert record is not None and record.minutes == 5  # of both sessions and both stages
    assert (record.data, record.data_images, record.images) == ("photos", 6, 48)
    assert (record.seed, record.start) == (5, None)
    assert len(record.machines) == 2 and "1 core" in record.machines[1]
    assert record.software is not None and cips3d.__version__ in record.software
    assert str(tmp_path) not in json.dumps(model.header())  # nobody else's business


def test_time_that_a_checkpoint_does_not_know_is_left_out(tmp_path: Path) -> None:
    run = Run(tiny.config(), tmp_path)
    run.counters = from_dict(Counters, {"images": 8}, "a checkpoint of an older version")
    run.end_stage()
    record = run.record()
    assert record.images == 8 and record.minutes is None and "time" not in record.rows()
    assert record.data == "heads, rendered by cips3d"


def test_the_record_goes_with_the_model_and_not_with_other_weights(
    generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    cips3d.save(generator, path)
    loaded = cips3d.load(path)
    assert loaded.record == RECORD and isinstance(loaded, Generator)
    assert cips3d.interpolate(loaded, loaded, 0.5).record is None
    loaded.record = None
    cips3d.save(loaded, tmp_path / "plain.safetensors")
    assert cips3d.load(tmp_path / "plain.safetensors").record is None
    with safe_open(tmp_path / "plain.safetensors", "pt") as file:  # the form of older models
        assert set(json.loads(file.metadata()["cips3d"])) == {"generator"}
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_what_a_newer_version_records_is_passed_over() -> None:
    assert from_dict(TrainingRecord, {"images": 3, "energy": 1}, "m") == TrainingRecord(images=3)


# ---------------------------------------------------------------- the card
def test_a_card_says_what_is_known(generator: Generator, figures: Path) -> None:
    text = card(
        generator, "me/faces", discriminators=True, figures=Figures.read(figures), license="mit"
    )
    parsed = ModelCard(text)
    assert (parsed.data.license, parsed.data.library_name) == ("mit", "cips3d")
    (result,) = parsed.data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("fd2k_heads", 12.5)
    assert result.dataset_name == "photos.zip" and "/home" not in text
    for row in ("data | photos.zip (4,000 images)", "time | 90 minutes", "seed | 3"):
        assert f"| {row} |" in text
    for words in ('cips3d.load("me/faces")', RECORD.command, EVALUATION["table"][1], "17°"):
        assert words is not None and words in text
    assert "discriminators" in text and "None" not in text


def test_a_card_leaves_out_what_is_unknown() -> None:
    flat = build_generator(tiny.generator(architecture="cips-2d"))
    text = card(flat)
    parsed = ModelCard(text)
    assert parsed.data.license is None and parsed.data.eval_results is None
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Image generator", "## How to use it", "## Limits", "## Licence"]
    assert "None" not in text.replace("None is stated", "") and "3D" not in text.split("# Image")[0]
    assert "no geometry" in text and "discriminators" not in text


def test_the_hubs_form_has_a_card(generator: Generator, figures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    cips3d.save(generator, folder)
    readme = folder / "README.md"
    assert readme.read_text().count("## ") == 4
    cips3d.save(generator, folder, figures=figures, license="mit")  # replaces its own
    assert "12.5" in readme.read_text() and "# faces" in readme.read_text()
    readme.write_text("My faces.")
    cips3d.save(generator, folder)
    assert readme.read_text() == "My faces."
    generator.save_pretrained(tmp_path / "hub")
    assert "photos.zip" in (tmp_path / "hub" / "README.md").read_text()
    assert cips3d.load(tmp_path / "hub").record == RECORD


def test_push_to_hub_uploads_the_card(
    generator: Generator, figures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, str] = {}

    def upload(repo_id: str, folder_path: str) -> None:
        sent[repo_id] = (Path(folder_path) / "README.md").read_text()

    api = SimpleNamespace(create_repo=lambda *_, **__: None, upload_folder=upload)
    monkeypatch.setattr(pretrained, "HfApi", lambda **_: api)
    cips3d.push_to_hub(generator, "me/faces", figures=figures, license="mit")
    assert 'cips3d.load("me/faces")' in sent["me/faces"] and "12.5" in sent["me/faces"]


def test_info_prints_the_record_and_writes_the_card(
    generator: Generator, figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "m.safetensors", tmp_path / "card.md"
    cips3d.save(generator, model)
    cli.main(["info", str(model), "--card", str(out), "--figures", str(figures)])
    shown = capsys.readouterr().out
    assert "1,200,000" in shown and "90 minutes" in shown and f"wrote {out}" in shown
    assert MARK in out.read_text() and "12.5" in out.read_text()


@pytest.mark.parametrize(
    "words, says",
    [
        ("heads-64 --card card.md", "--card: heads-64 is a preset, and cards are of models"),
        ("heads --figures figures.json", "--figures: belongs on a card; add --card FILE"),
        ("heads --license mit", "--license: belongs on a card"),
        ("heads --card card.txt", "card.txt"),
        ("heads --card card.md --figures other.json", "other.json: values: is missing; give a"),
        ("heads --card card.md --figures none.json", "none.json: no such file"),
    ],
)
def test_cards_that_cannot_be_written(
    words: str, says: str, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit):
        cli.main(["info", *words.split()])
    assert says in the_error_line(capsys.readouterr().err)
    assert not (tmp_path / "card.md").exists()
