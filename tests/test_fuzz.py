"""Damaged datasets and configurations: a run trains, or ends in one clear line and status 2."""

from __future__ import annotations

import io
import json
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from cips3d import cli
from cips3d.configuration import to_dict
from cips3d.training.presets import PRESETS
from cips3d.training.recipe import Stage
from cips3d.training.run import Run

Damage = Callable[[Path, random.Random], None]


def encoded(
    kind: str, draw: random.Random, size: tuple[int, int] = (12, 9), mode: str = "RGB"
) -> bytes:
    pixels = np.frombuffer(draw.randbytes(size[0] * size[1] * 3), np.uint8).reshape(
        size[1], size[0], 3
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def images(folder: Path, draw: random.Random) -> None:
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encoded("png", draw))


# ---------------------------------------------------------------- damaged datasets
def first_bytes(change: Callable[[bytes, random.Random], bytes], kind: str = "png") -> Damage:
    """An image of that kind with changed bytes."""

    def damage(folder: Path, draw: random.Random) -> None:
        (folder / f"1.{kind}").write_bytes(
            change(encoded("jpeg" if kind == "jpg" else kind, draw), draw)
        )

    return damage


def flipped(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(content))
    return content[:first] + bytes(min(20, len(content) - first)) + content[first + 20 :]


def labels(text: Callable[[random.Random], Any]) -> Damage:
    """A dataset.json next to the images."""

    def damage(folder: Path, draw: random.Random) -> None:
        value = text(draw)
        (folder / "dataset.json").write_text(value if isinstance(value, str) else json.dumps(value))

    return damage


def zipped(change: Callable[[bytes, random.Random], bytes], names: str = "{}") -> Damage:
    """A zip instead of the folder."""

    def damage(folder: Path, draw: random.Random) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.writestr(names.format(path.name), path.read_bytes())
        shutil.rmtree(folder)
        folder.write_bytes(change(buffer.getvalue(), draw))

    return damage


def link_to_nowhere(folder: Path, _: random.Random) -> None:
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(folder / "gone.png")


def folder_as_image(folder: Path, _: random.Random) -> None:
    (folder / "9.png").mkdir()


def odd_name(folder: Path, draw: random.Random) -> None:
    (folder / "new\nline \x1b[31m.png").write_bytes(
        flipped(encoded("png", draw), draw)[: draw.randrange(1, 60)]
    )


DATA: dict[str, Damage] = {
    "cut png": first_bytes(lambda c, d: c[: d.randrange(len(c))]),
    "cut jpeg": first_bytes(lambda c, d: c[: d.randrange(len(c))], "jpg"),
    "cut webp": first_bytes(lambda c, d: c[: d.randrange(len(c))], "webp"),
    "cut tiff": first_bytes(lambda c, d: c[: d.randrange(len(c))], "tiff"),
    "flipped bit in a png": first_bytes(flipped),
    "flipped bit in a jpeg": first_bytes(flipped, "jpg"),
    "flipped bit in a bmp": first_bytes(flipped, "bmp"),
    "zeros in a png": first_bytes(zeroed),
    "noise": first_bytes(lambda c, d: d.randbytes(200)),
    "nothing in it": first_bytes(lambda c, d: b""),
    "flat": first_bytes(lambda c, d: encoded("png", d, (40, 1))),
    "one grey pixel": first_bytes(lambda c, d: encoded("png", d, (1, 1), "L")),
    "cmyk": first_bytes(lambda c, d: encoded("jpeg", d, mode="CMYK"), "jpg"),
    "floats": first_bytes(lambda c, d: encoded("tiff", d, mode="F"), "tiff"),
    "link to nowhere": link_to_nowhere,
    "folder called png": folder_as_image,
    "odd name": odd_name,
    "labels cut off": labels(
        lambda d: json.dumps({"labels": [["0.png", [0.0] * 25]]})[: d.randrange(30)]
    ),
    "labels of another form": labels(
        lambda d: d.choice([[], 3, {"labels": 3}, {"labels": [1]}, {"label": []}, None])
    ),
    "labels too short": labels(
        lambda d: {"labels": [[f"{i}.png", [0.5] * d.randrange(25)] for i in range(3)]}
    ),
    "labels missing": labels(lambda d: {"labels": [["0.png", [0.5] * 25]]}),
    "labels not finite": labels(
        lambda d: {"labels": [[f"{i}.png", [float("nan")] * 25] for i in range(3)]}
    ),
    "cut zip": zipped(lambda c, d: c[: d.randrange(len(c))]),
    "flipped bit in a zip": zipped(flipped),
    "zip that points outside": zipped(lambda c, d: c, "../{}"),
    "zip with a drive": zipped(lambda c, d: c, "C:\\{}"),
    "zip without images": zipped(lambda c, d: c, "{}.txt"),
}

#: Kinds whose damage does not depend on the draws.
ALIKE = {
    "nothing in it", "flat", "one grey pixel", "cmyk", "floats", "link to nowhere",
    "folder called png", "labels missing", "labels not finite", "zip that points outside",
    "zip with a drive", "zip without images", "unknown field",
}  # fmt: skip


def seeds(kind: str) -> st.SearchStrategy[int]:
    return st.just(0) if kind in ALIKE else st.integers(0, 2**32)


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all entries of a nested configuration, from the outside in."""
    items = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values)
        if isinstance(values, list)
        else ()
    )
    return [path, *(leaf for key, value in items for leaf in leaves(value, (*path, key)))]


def one_value(make: Callable[[random.Random], Any]) -> Damage:
    """Another value at a random place of config.json."""

    def damage(run: Path, draw: random.Random) -> None:
        config = json.loads((run / "config.json").read_text())
        *parents, last = draw.choice(leaves(config)[1:])
        place = config
        for key in parents:
            place = place[key]
        place[last] = make(draw)
        (run / "config.json").write_text(json.dumps(config))

    return damage


def without_a_field(run: Path, draw: random.Random) -> None:
    config = json.loads((run / "config.json").read_text())
    *parents, last = draw.choice([path for path in leaves(config)[1:] if isinstance(path[-1], str)])
    place = config
    for key in parents:
        place = place[key]
    del place[last]
    (run / "config.json").write_text(json.dumps(config))


def text(change: Callable[[str, random.Random], str]) -> Damage:
    def damage(run: Path, draw: random.Random) -> None:
        (run / "config.json").write_text(change((run / "config.json").read_text(), draw))

    return damage


CONFIG: dict[str, Damage] = {
    "negative": one_value(lambda d: -d.randrange(1, 9)),
    "zero": one_value(lambda d: 0),
    "huge": one_value(lambda d: 2**40),
    "beyond integers": one_value(lambda d: 10**30),
    "fraction": one_value(lambda d: d.random()),
    "not finite": one_value(lambda d: d.choice([float("nan"), float("inf"), -float("inf")])),
    "text": one_value(lambda d: d.choice(["", "full", "x" * 200, "a\nb"])),
    "nothing": one_value(lambda d: None),
    "list": one_value(lambda d: []),
    "dictionary": one_value(lambda d: {"odd": 1}),
    "truth": one_value(lambda d: d.random() < 0.5),
    "field missing": without_a_field,
    "cut off": text(lambda c, d: c[: d.randrange(len(c))]),
    "unknown field": text(lambda c, d: c.replace('"seed"', '"sede"')),
    "no json": text(lambda c, d: d.choice(["", "[]", "3", "null", "{", '{"stages": []}', "\x00"])),
}


# ---------------------------------------------------------------- the property
def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """None if the command went well, else its one line."""
    capsys.readouterr()
    try:
        cli.main(words)
        return None
    except SystemExit as stopped:
        assert stopped.code == 2
        printed = capsys.readouterr().err.replace("\r", "\n").splitlines()
        lines = [
            line for line in printed if line.strip() and "%" not in line[:20]
        ]  # no progress bar
        assert [line.startswith("cips3d: error: ") for line in lines] == [True], lines
        return lines[-1]


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one step, whatever the configuration asks for."""
    monkeypatch.setitem(
        PRESETS, "tiny", lambda: tiny.config(stages=(Stage(8, kimg=0.004, batch=4),))
    )
    monkeypatch.setattr(Run, "stage_progress", lambda self: float(self.counters.stage_images > 0))


#: Damage that no run can train with.
HOPELESS = {
    "noise", "nothing in it", "link to nowhere", "labels too short", "labels missing",
    "labels not finite", "zip without images", "zip that points outside", "cut off",
    "unknown field", "no json",
}  # fmt: skip


few = settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("kind", DATA)
@given(drawn=st.data())
@few
def test_damaged_datasets(
    kind: str, capsys: pytest.CaptureFixture[str], drawn: st.DataObject
) -> None:
    draw = random.Random(drawn.draw(seeds(kind)))
    with tempfile.TemporaryDirectory() as place:
        data, run = Path(place) / "data", Path(place) / "run"
        images(data, draw)
        DATA[kind](data, draw)
        line = outcome(["train", str(run), "--preset", "tiny", "--data", str(data)], capsys)
        assert line is not None or kind not in HOPELESS
        if line is not None:
            assert str(data) in line or "in training" in line
            assert not run.exists() or not (run / "model.safetensors").exists()


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("kind", CONFIG)
@given(drawn=st.data())
@settings(few, max_examples=4)
def test_damaged_configurations(
    kind: str, capsys: pytest.CaptureFixture[str], drawn: st.DataObject
) -> None:
    draw = random.Random(drawn.draw(seeds(kind)))
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        config = to_dict(
            tiny.config(
                "heads", stages=(Stage(4, kimg=0.004, batch=4), Stage(8, kimg=0.004, batch=4))
            )
        )
        (run / "config.json").write_text(json.dumps(config))
        CONFIG[kind](run, draw)
        line = outcome(["train", str(run)], capsys)
        assert (
            line is not None if kind in HOPELESS else line is None or (run / "config.json").exists()
        )
