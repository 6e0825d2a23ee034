"""`cips3d data build` and `cips3d data check`: what they write and report, and what they refuse."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from cips3d.camera import Camera
from cips3d.cli import main
from cips3d.cli.train import run_with_progress
from cips3d.data import ImageDataset
from cips3d.data.build import Recipe, build_zip
from cips3d.data.check import check
from cips3d.errors import UserError
from cips3d.export.media import save_frames
from cips3d.heads import SyntheticHeads
from cips3d.heads.archive import write_heads


def noise_image(
    path: Path, width: int = 24, height: int = 16, seed: int = 0, mode: str = "RGB"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        noise_image(tmp_path / "in" / f"{i}.png", seed=i)
    return tmp_path / "in"


def error_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "cips3d: error" in line]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------- build
def test_a_zip_holds_what_the_dataset_would_read(folder: Path, tmp_path: Path) -> None:
    for filter in ("lanczos", "box"):
        out = tmp_path / f"{filter}.zip"
        assert build_zip(folder, out, Recipe(8, filter=filter)) == (5, [], "")
        direct, built = ImageDataset(folder, 8, filter), ImageDataset(out, 8)
        assert all(torch.equal(direct[i], built[i]) for i in range(5))
        record = json.loads(zipfile.ZipFile(out).read("dataset.json"))
        assert record["labels"] is None
        settings = {name: record["cips3d"][name] for name in ("filter", "crop", "resolution")}
        assert settings == {"filter": filter, "crop": "center", "resolution": 8}
    lanczos, box = (ImageDataset(tmp_path / f"{name}.zip", 8)[0] for name in ("lanczos", "box"))
    assert not torch.equal(lanczos, box)


def test_images_are_resized_as_they_were_built(folder: Path, tmp_path: Path) -> None:
    build_zip(folder, tmp_path / "box.zip", Recipe(16, filter="box", allow_upscaling=True))
    built = ImageDataset(tmp_path / "box.zip", 8)
    assert built.filter == "box" and torch.equal(
        built[0], ImageDataset(tmp_path / "box.zip", 8, "box")[0]
    )
    assert not torch.equal(built[0], ImageDataset(tmp_path / "box.zip", 8, "lanczos")[0])
    assert ImageDataset(folder, 8, allow_upscaling=True).filter == "lanczos"


def test_equal_sources_give_equal_files(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, path.name)
    for name in ("a", "b"):
        build_zip(folder, tmp_path / f"{name}.zip", Recipe(8))
    build_zip(tmp_path / "in.zip", tmp_path / "c.zip", Recipe(8))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    members = [
        [zipfile.ZipFile(tmp_path / f"{n}.zip").read(f"00000/img{i:08d}.png") for i in range(5)]
        for n in "ac"
    ]
    assert members[0] == members[1]


def test_labels_are_kept_under_the_new_names(tmp_path: Path) -> None:
    write_heads(tmp_path / "heads.zip", SyntheticHeads(4, 16))
    build_zip(tmp_path / "heads.zip", tmp_path / "out.zip", Recipe(8), every=2)
    before, after = ImageDataset(tmp_path / "heads.zip", 16), ImageDataset(tmp_path / "out.zip", 8)
    assert before.labels is not None and after.labels is not None
    torch.testing.assert_close(after.labels, before.labels[::2])


def test_class_numbers_are_kept_too(folder: Path, tmp_path: Path) -> None:
    (folder / "dataset.json").write_text(
        json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(5)]})
    )
    build_zip(folder, tmp_path / "out.zip", Recipe(8))
    labels = json.loads(zipfile.ZipFile(tmp_path / "out.zip").read("dataset.json"))["labels"]
    assert labels == [[f"00000/img{i:08d}.png", i % 2] for i in range(5)]


def test_frames_of_a_video(tmp_path: Path) -> None:
    frames = [np.full((32, 48, 3), 20 * i, dtype=np.uint8) for i in range(10)]
    save_frames(tmp_path / "clip.mp4", frames, fps=10)
    assert build_zip(tmp_path / "clip.mp4", tmp_path / "all.zip", Recipe(16)) == (10, [], "")
    few = build_zip(tmp_path / "clip.mp4", tmp_path / "some.zip", Recipe(16), every=4, most=2)
    assert few == (2, [], "")
    some = ImageDataset(tmp_path / "some.zip", 16)
    assert [float(some[i].float().mean()) for i in range(2)] == pytest.approx([0, 80], abs=6)


def test_a_damaged_videos_frames_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    save_frames(path, list(frames), fps=10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # the index comes first, so it can be opened
    with pytest.raises(UserError, match=r"clip\.mp4: is damaged after frame"):
        build_zip(path, tmp_path / "all.zip", Recipe(16))
    written, skipped, _ = build_zip(path, tmp_path / "some.zip", Recipe(16), skip_bad=True)
    assert 0 < written < 20 and "is damaged after frame" in skipped[0]
    assert len(ImageDataset(tmp_path / "some.zip", 16)) == written


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2)])
def test_a_videos_pixels_become_square(tmp_path: Path, aspect: Fraction) -> None:
    """A disc that is stored squeezed is round again."""
    x, y = np.meshgrid(np.arange(48) - 23.5, np.arange(48) - 23.5)
    disc = (np.hypot(x * float(aspect), y) < 16 * max(1, float(aspect)) / 2) * np.uint8(255)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 48
        stream.pix_fmt, stream.sample_aspect_ratio = "yuv420p", aspect
        frame = av.VideoFrame.from_ndarray(np.repeat(disc[..., None], 3, axis=2), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    build_zip(tmp_path / "clip.mp4", tmp_path / "out.zip", Recipe(48))
    bright = ImageDataset(tmp_path / "out.zip", 48)[0][0] > 127
    wide, high = bright.any(dim=0).sum(), bright.any(dim=1).sum()
    assert wide > 12 and abs(int(wide) - int(high)) <= 2


def test_a_phones_video_is_upright(tmp_path: Path) -> None:
    frames = [np.zeros((32, 48, 3), dtype=np.uint8) for _ in range(2)]
    for frame in frames:
        frame[:16] = 255  # the upper half is white
    save_frames(tmp_path / "clip.mp4", frames, fps=10)
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # in the track's header; set to 90 degrees clockwise
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = turned
    (tmp_path / "clip.mp4").write_bytes(content)
    build_zip(tmp_path / "clip.mp4", tmp_path / "out.zip", Recipe(16))
    upright = ImageDataset(tmp_path / "out.zip", 16)[0].float().mean(dim=(0, 1))
    # now the right half is white
    assert float(upright[:6].mean()) < 60 and float(upright[-6:].mean()) > 190


def test_bad_images_stop_or_are_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "2.png").write_text("no image")
    noise_image(folder / "3.png", 4, 4)
    command = ["data", "build", folder, tmp_path / "out.zip", "--resolution", "8"]
    assert "2.png" in error_of(capsys, *command)
    assert not (tmp_path / "out.zip").exists()
    main([*map(str, command), "--skip-bad"])
    words = capsys.readouterr().out
    assert "3 images" in words and "skipped: 2" in words and "2.png" in words
    assert len(ImageDataset(tmp_path / "out.zip", 8)) == 3


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("not square", "--crop none"), ("exists", "exists"), ("no zip", ".zip"), ("sound", "sound"),
        ("no video", "clip.mp4"), ("cut video", "clip.mp4"), ("label missing", "no label"),
        ("nothing", "no images"), ("resolution", "--resolution"), ("all bad", "none of its images"),
        ("encrypted", "damaged or cannot be read"), ("outside", "points outside"),
        ("bomb", "safe to decode"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(
    folder: Path, tmp_path: Path, kind: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, resolution, more = folder, tmp_path / "out.zip", "8", []
    if kind == "not square":
        more = ["--crop", "none"]
    elif kind == "exists":
        out.write_text("mine")
    elif kind == "no zip":
        out = tmp_path / "out.tar"
    elif kind == "sound":
        source = sound(tmp_path / "clip.mp4")
    elif kind == "no video":
        source = tmp_path / "clip.mp4"
        source.write_text("no video")
    elif kind == "cut video":
        source = tmp_path / "clip.mp4"
        save_frames(source, [np.zeros((32, 32, 3), np.uint8)] * 5)
        source.write_bytes(source.read_bytes()[:300])
    elif kind == "label missing":
        (folder / "dataset.json").write_text('{"labels": [["0.png", 1]]}')
    elif kind == "nothing":
        source = tmp_path / "empty"
        source.mkdir()
    elif kind == "resolution":
        resolution = "0"
    elif kind == "all bad":
        source = tmp_path / "bad"
        source.mkdir()
        (source / "0.png").write_text("no image")
        more = ["--skip-bad"]
    else:
        source = crafted(tmp_path / "in.zip", kind, (folder / "0.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    assert words in error_of(
        capsys, "data", "build", source, out, "--resolution", resolution, *more
    )
    assert sorted(tmp_path.rglob("*")) == before


def sound(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def crafted(path: Path, kind: str, content: bytes) -> Path:
    """A zip with a member that must not be used."""
    if kind == "bomb":  # a PNG of 10⁵ × 10⁵ pixels in a hundred bytes
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"")),
            (b"IEND", b""),
        ]
        parts = [
            struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
            for k, d in chunks
        ]
        content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../0.png" if kind == "outside" else "0.png", content)
    if kind == "encrypted":  # the flag alone makes readers ask for a password
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.find(signature) + offset] |= 1
        path.write_bytes(bytes(data))
    return path


def test_a_zip_per_resolution_holds_what_the_largest_one_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [[f"{i}.png", Camera.orbit(0.1 * i).to_label()[0].tolist()] for i in range(5)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    out = tmp_path / "out"
    command = ["data", "build", folder, out, "--resolution", "16", "4", "8", "--filter", "box"]
    main([str(word) for word in command])
    assert "5 images of 4², 8², 16²" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["16.zip", "4.zip", "8.zip"]
    for side, used in {4: 4, 6: 8, 8: 8, 16: 16}.items():
        data, largest = ImageDataset(out, side), ImageDataset(out / "16.zip", side)
        direct = ImageDataset(out / f"{used}.zip", side)
        assert len(data) == 5 and data.filter == "box"
        assert data.labels is not None and torch.equal(data.labels, largest.labels)  # type: ignore
        assert all(torch.equal(data[i], direct[i]) for i in range(5))
        assert side == 6 or all(torch.equal(data[i], largest[i]) for i in range(5))
        with zipfile.ZipFile(out / f"{used}.zip") as archive:
            assert Image.open(archive.open(data.names[0])).width == used
    main(["data", "check", str(out), "--resolution", "8"])  # of 8.zip
    assert "8 to 8 pixels" in capsys.readouterr().out
    assert "smaller than the resolution 32" in error_of(
        capsys, "data", "build", out, tmp_path / "larger.zip", "--resolution", 32
    )
    for bad in ([tmp_path / "new.zip", "--resolution", 8, 4], [tmp_path / "new", "--resolution"]):
        assert any(
            word in error_of(capsys, "data", "build", folder, *bad)
            for word in ("leave out .zip", "--resolution")
        )
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_zips_is_a_folder_of_images(folder: Path) -> None:
    with zipfile.ZipFile(folder / "2023.zip", "w") as archive:
        archive.writestr("a.png", b"")
    data = ImageDataset(folder, 8)
    assert len(data) == 5 and data.passed_over == "passed over 1 file: 1 .zip"


def test_what_is_passed_over_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (folder / "notes.txt").write_text("")
    line = "passed over 1 file: 1 .txt"
    main(["data", "check", str(folder)])
    assert line in capsys.readouterr().out
    main(["data", "build", str(folder), str(tmp_path / "out.zip"), "--resolution", "8"])
    assert line in capsys.readouterr().out
    monkeypatch.setattr("cips3d.training.loop.train", lambda run, show: run.model_path)
    run_with_progress(tiny.config(str(folder)), tmp_path / "run")
    assert f"{folder}: {line}" in capsys.readouterr().err


def test_the_pixel_limit_is_an_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 24 x 16
    build = ["data", "build", str(folder), str(tmp_path / "out.zip"), "--resolution", "8"]
    assert "raise --max-pixels of cips3d data build" in error_of(capsys, *build)
    assert "more than the 383 pixels" in error_of(capsys, *build, "--max-pixels", "383")
    main([*build, "--max-pixels", "384"])
    main(["data", "check", str(folder), "--max-pixels", "384"])
    assert "5 images would stop" in error_of(capsys, "data", "check", folder)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("labels", "kind", "faults"),
    [
        ([], "none", 0),
        (None, "none", 0),
        ([["0.png", 1], ["1.png", 2]], "class numbers", 0),
        ([["0.png", 1]], "class numbers", 1),
        ([["0.png", 1], ["1.png", [0.5] * 25]], "cameras", 1),
        ([["0.png", [1.0] * 25], ["1.png", [0.5] * 24]], "cameras", 1),
    ],
)
def test_check_build_and_train_agree_on_labels(
    tmp_path: Path, labels: Any, kind: str, faults: int
) -> None:
    data = tmp_path / "data"
    for i in range(2):
        noise_image(data / f"{i}.png", seed=i)
    (data / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8-sig")
    report = check(data)
    assert (report.labels, report.faults) == (kind, faults)
    for use in (
        lambda: build_zip(data, tmp_path / "out.zip", Recipe(8)),
        lambda: ImageDataset(data, 8),
    ):
        if faults:
            with pytest.raises(UserError, match="label"):
                use()
        else:
            use()
    if not faults:
        found = json.loads(zipfile.ZipFile(tmp_path / "out.zip").read("dataset.json"))["labels"]
        assert (found is None) == (kind == "none")


def test_a_locale_without_utf8_changes_nothing(tmp_path: Path) -> None:
    image = noise_image(tmp_path / "0.png").read_bytes()
    label = Camera.orbit(0.1).to_label()[0].tolist()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("Bögen/é.png", image)
        content = json.dumps({"labels": [["é.png", label]]}, ensure_ascii=False)
        archive.writestr("Bögen/dataset.json", content.encode("utf-8-sig"))
    code = (
        "import sys; from cips3d.cli import main; assert not sys.flags.utf8_mode\n"
        "main(['data', 'check', 'in.zip'])\n"
        "main(['data', 'build', 'in.zip', 'out.zip', '--resolution', '8'])"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ | environment | path
    )
    data = ImageDataset(tmp_path / "out.zip", 8)
    assert data.labels is not None and data.labels[0].tolist() == pytest.approx(label)


# ---------------------------------------------------------------- check
def test_a_good_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_heads(tmp_path / "heads.zip", SyntheticHeads(70, 16))
    command = ["data", "check", tmp_path / "heads.zip", "--resolution", 16]
    main([*map(str, command), "--sheet", str(tmp_path / "sheet.png")])
    words = capsys.readouterr().out
    assert "70 images, 70 readable; labels: cameras" in words and "70 RGB" in words
    assert Image.open(tmp_path / "sheet.png").size == (8 * 98 - 2, 8 * 98 - 2)


def test_what_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for i in range(3):
        noise_image(data / f"{i}.png", seed=i)
    noise_image(data / "same.bmp", seed=1)
    noise_image(data / "grey.png", 8, 8, mode="L")
    noise_image(data / "palette.png", 16, 16, mode="P")
    (data / "broken.jpg").write_bytes((data / "0.png").read_bytes()[:100])
    report = check(data, 16)
    assert (len(report.unreadable), len(report.too_small)) == (1, 1)
    assert (report.grey, report.not_square) == (1, 4)
    assert report.duplicates == [["1.png", "same.bmp"]]
    assert report.modes == {"RGB": 4, "L": 1, "P": 1}
    assert "broken.jpg" in report.unreadable[0] and "grey.png" in report.too_small[0]
    assert [image.shape for image in report.thumbnails] == [(96, 96, 3)] * 6
    assert "2 images would stop" in error_of(capsys, "data", "check", data, "--resolution", "16")
    assert check(data).faults == 1


def test_labels_that_training_would_refuse_are_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        noise_image(tmp_path / f"{i}.png", seed=i)
    labels = [["0.png", [0.0] * 25], ["1.png", [1, 2, 3]]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert check(tmp_path, 32).faults == 3  # a small one without a label counts once
    report = check(tmp_path)
    assert report.faults == 2
    assert "1.png" in report.unlabelled[0] and "2.png" in report.unlabelled[1]
    assert report.odd_labels == ["0.png"]
    assert "2 images would stop" in error_of(capsys, "data", "check", tmp_path)


def test_cameras_of_the_labels_are_reported(tmp_path: Path) -> None:
    """Training with labels needs their distance and field of view."""
    cameras = [Camera.orbit(0.1 * i, radius=2.7, fov=18.0).to_label()[0].tolist() for i in range(3)]
    aside = [x + 0.1 * (i == 18) for i, x in enumerate(cameras[2])]
    for i in range(3):
        noise_image(tmp_path / f"{i}.png", seed=i)
    labels = [[f"{i}.png", label] for i, label in enumerate((*cameras[:2], aside))]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    report = check(tmp_path)
    assert report.camera == pytest.approx((2.7, 18.0))
    assert report.odd_labels == ["2.png"] and report.faults == 0
    assert "cameras (median): distance 2.7, field of view 18 degrees" in report.lines()


def test_colour_statistics(tmp_path: Path) -> None:
    for i, value in enumerate((0, 200)):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("RGB", (300, 400), (value, 10, 255)).save(tmp_path / "data" / f"{i}.png")
    report = check(tmp_path / "data")
    assert report.mean == pytest.approx((100, 10, 255))
    assert report.std == pytest.approx((100, 0, 0), abs=1e-4)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for i in range(12):
        noise_image(tmp_path / "data" / f"{i:02d}.png", 4, 4, seed=i)
    lines = check(tmp_path / "data", 8).lines()
    assert lines[-1] == "  and 2 more" and sum("4x4" in line for line in lines) == 10


def test_a_sheet_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sheet.txt" in error_of(capsys, "data", "check", folder, "--sheet", "sheet.txt")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        check(tmp_path / "gone")
