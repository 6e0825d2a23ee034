"""ImageDataset: its items, the labels it keeps, and one clear line for every fault."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader

from cips3d.camera import Camera
from cips3d.data import sources
from cips3d.data.images import ImageDataset
from cips3d.errors import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def write_folder(root, files: dict[str, bytes]):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(root, files: dict[str, bytes]):
    path = root / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


both_layouts = pytest.mark.parametrize("write", [write_folder, write_zip])


def refusal(*args, **kwargs) -> str:
    """The one line with which a dataset is refused."""
    with pytest.raises(UserError) as caught:
        ImageDataset(*args, **kwargs)
    return one_line(caught)


def one_line(caught) -> str:
    line = str(caught.value)
    assert line.isprintable(), "not one printable line"
    assert ";" in line, "does not say what to do"
    return line


# ---------------------------------------------------------------- what an item is
@both_layouts
def test_items_are_uint8_squares_in_name_order(tmp_path, write):
    files = {
        f"{folder}/{name}.png": encoded(noise(8, 8, i))
        for i, (folder, name) in enumerate(["b1", "a2", "a1"])
    }
    files |= {
        "notes.txt": b"no image",
        ".hidden.png": b"no image",
        "__MACOSX/a/._1.png": b"no image",
    }
    data = ImageDataset(write(tmp_path, files), 8)
    assert len(data) == 3
    assert data.names == ["a/1.png", "a/2.png", "b/1.png"]
    assert data[0].dtype == torch.uint8
    assert data[0].shape == (3, 8, 8)
    assert torch.equal(data[0].permute(1, 2, 0), torch.from_numpy(np.array(noise(8, 8, 2))))


def test_crops_the_central_square_of_mixed_sizes(tmp_path):
    wide = Image.new("RGB", (12, 4), "blue")
    wide.paste(RED, (4, 0, 8, 4))
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    data = ImageDataset(
        write_folder(tmp_path, {"wide.png": encoded(wide), "tall.png": encoded(tall)}), 4
    )
    for item in data:
        assert item.permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [list(RED)]


def test_filters_downscale_as_named(tmp_path):
    image = noise(8, 8)
    root = write_folder(tmp_path, {"a.png": encoded(image)})
    box = ImageDataset(root, 4, filter="box")[0].permute(1, 2, 0).double()
    area = torch.from_numpy(np.array(image)).double().reshape(4, 2, 4, 2, 3).mean(dim=(1, 3))
    assert (box - area).abs().max() <= 1  # both passes of the filter round
    lanczos = ImageDataset(root, 4)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(lanczos, np.array(image.resize((4, 4), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("LA", (4, 4), (10, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("RGB", (4, 4), RED).convert("P"), RED),
        (Image.fromarray(np.full((4, 4), 0x80FF, dtype=np.uint16)), (128, 128, 128)),
        (Image.new("1", (4, 4), 1), WHITE),
    ],
    ids=["grey", "grey-alpha", "transparent", "opaque", "half", "palette", "grey-16", "bilevel"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, image, expected):
    item = ImageDataset(write_folder(tmp_path, {"a.png": encoded(image)}), 4)[0]
    assert item.permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [list(expected)]


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 3)
    image.putpalette([0, 0, 0] * 3 + [0, 200, 0])
    item = ImageDataset(write_folder(tmp_path, {"a.png": encoded(image, transparency=3)}), 4)[0]
    assert (item == 255).all()


def test_cmyk_jpeg_is_read(tmp_path):
    jpeg = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    item = ImageDataset(write_folder(tmp_path, {"a.JPG": jpeg}), 16)[0].float().mean(dim=(1, 2))
    assert item[0] > 200
    assert item[1:].max() < 60


def test_a_transparent_level_of_a_16_bit_image_is_white_and_the_rest_stays(tmp_path):
    ramp = Image.fromarray(np.tile(np.arange(16, dtype=np.uint16) * 4096, (16, 1)))
    plain, clear = (
        ImageDataset(write_folder(tmp_path / name, {"a.png": encoded(ramp, **options)}), 16)[0]
        for name, options in (("plain", {}), ("clear", {"transparency": 4096 * 3}))
    )
    assert torch.equal(plain[0, 0], torch.arange(16, dtype=torch.uint8) * 16)
    assert (clear[:, :, 3] == 255).all()
    plain[:, :, 3] = 255
    assert torch.equal(clear, plain)


def test_exif_orientation_is_honoured(tmp_path):
    upright = Image.new("RGB", (16, 16), "blue")
    upright.paste(RED, (0, 0, 16, 8))  # red above
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    item = ImageDataset(
        write_folder(tmp_path, {"a.jpg": encoded(stored, "JPEG", exif=exif, quality=95)}), 16
    )[0].float()
    assert item[0, :7].mean() > 200
    assert item[2, 9:].mean() > 200


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        *(("PNG", "png"), ("JPEG", "jpg"), ("JPEG", "jfif"), ("JPEG", "jpe"), ("WEBP", "webp")),
        *(("BMP", "bmp"), ("TIFF", "tiff"), ("GIF", "gif"), ("AVIF", "avif")),
    ],
)
def test_every_listed_format_is_read(tmp_path, format, suffix):
    image = encoded(Image.new("RGB", (16, 16), RED), format)
    data = ImageDataset(write_folder(tmp_path, {f"a.{suffix}": image}), 16)
    assert (data[0].float().mean(dim=(1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_embedded_profile_is_converted_to_srgb(tmp_path, mode):
    """Display P3's (200, 30, 30) lies outside sRGB: it is redder than (219, 0, 0)."""
    profile = (Path(__file__).parent / "data" / "display_p3.icc").read_bytes()
    image = encoded(Image.new(mode, (8, 8), (200, 30, 30)), icc_profile=profile)
    item = ImageDataset(write_folder(tmp_path, {"a.png": image}), 8)[0]
    assert item[:, 0, 0].tolist() == pytest.approx([219, 0, 0], abs=2)


def test_a_damaged_profile_is_no_fault_of_the_image(tmp_path):
    image = encoded(Image.new("RGB", (8, 8), (200, 30, 30)), icc_profile=b"nonsense" * 20)
    item = ImageDataset(write_folder(tmp_path, {"a.png": image}), 8)[0]
    assert item[:, 0, 0].tolist() == [200, 30, 30]


def test_a_png_with_much_text_is_read(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("log", "x" * (20 * 2**20), zip=True)
    image = encoded(Image.new("RGB", (8, 8), RED), pnginfo=text)
    assert ImageDataset(write_folder(tmp_path, {"a.png": image}), 8)[0][0, 0, 0] == 255


def test_linked_folders_are_read_once(tmp_path):
    image = encoded(noise(8, 8))
    inside = write_folder(tmp_path / "inside", {"sub/a.png": image})
    outside = write_folder(tmp_path / "outside", {"b.png": image})
    (inside / "far").symlink_to(outside)
    (inside / "again").symlink_to(inside / "sub")
    (inside / "sub" / "loop").symlink_to(inside)
    assert ImageDataset(inside, 8).names == ["far/b.png", "sub/a.png"]


# ---------------------------------------------------------------- kinds of TIFF
def tiff(array, **options) -> bytes:
    """A file of another program than Pillow."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def tiff_of_12_bits(grey) -> bytes:
    height, width = grey.shape
    bits = "".join(f"{value:012b}" for value in grey.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: height}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries.append(struct.pack("<HHII", 279, 4, 1, len(data)))
    return b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(entries) + bytes(4) + data


WORDS = np.random.default_rng(0).integers(0, 2**16, (8, 8, 4), dtype=np.uint16)
GREY, COLOURS, BYTES = WORDS[..., 0], WORDS[..., :3], (WORDS >> 8).astype(np.uint8)
OPACITY = BYTES[..., 3:] / 255


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(GREY), GREY >> 8),
        (tiff(GREY, byteorder=">"), GREY >> 8),
        (tiff(GREY, photometric="miniswhite"), 255 - (GREY >> 8)),
        (tiff_of_12_bits(GREY >> 4), GREY >> 8),
        (tiff(GREY > 2**15, photometric="minisblack"), (GREY > 2**15) * 255),
        (tiff(GREY > 2**15, photometric="miniswhite"), (GREY <= 2**15) * 255),
        (tiff(COLOURS, photometric="rgb"), COLOURS >> 8),
        (
            tiff(
                COLOURS.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate",
                compression="zlib",
            ),
            COLOURS >> 8,
        ),
        (
            tiff(WORDS, photometric="rgb", extrasamples=["unassalpha"]),
            BYTES[..., :3] * OPACITY + 255 * (1 - OPACITY),
        ),
        (
            tiff(
                np.dstack([BYTES[..., :1] * OPACITY, BYTES[..., 3:]]).astype(np.uint8),
                photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"],
            ),
            BYTES[..., :1] * OPACITY + 255 * (1 - OPACITY),
        ),
        (
            tiff(WORDS, photometric="separated"),  # CMYK
            (255 - BYTES[..., :3].astype(int)) * (1 - OPACITY),
        ),
        (
            tiff(np.full((8, 8, 3), (144, 22, 27), np.uint8), photometric="cielab"),
            np.full((8, 8, 3), (180, 120, 90)),
        ),
        (
            tiff(
                BYTES[..., 0], photometric="palette",
                colormap=np.stack([np.arange(256)[::-1] * 257] * 3).astype(np.uint16),
            ),
            255 - BYTES[..., 0].astype(int),
        ),
    ],
    ids=[
        "16 bits", "big-endian", "16 bits, white is 0", "12 bits", "1 bit", "1 bit, white is 0",
        "16-bit RGB", "planes", "16-bit RGBA", "grey with premultiplied alpha", "16-bit CMYK",
        "Lab", "palette",
    ],
)  # fmt: skip
def test_kinds_of_tiff_that_are_read(tmp_path, content, expected):
    item = ImageDataset(write_folder(tmp_path, {"a.tif": content}), 8)[0]
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(item.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        *(
            (tiff(np.zeros((8, 8), kind)), complaint)
            for kind, complaint in {
                "float16": "unknown kind of pixels", "float32": "floating-point",
                "float64": "unknown kind of pixels", "int8": "integers of unknown range",
                "int16": "integers of unknown range", "int32": "integers of unknown range",
                "uint32": "integers of unknown range",
            }.items()
        ),
        (tiff(np.zeros((8, 8, 3), np.float32), photometric="rgb"), "unknown kind of pixels"),
        (
            tiff(
                COLOURS.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"
            ),
            "planes of 16 bits",
        ),
        (tiff(np.zeros((3, 8, 8), np.uint8), photometric="minisblack"), "has 3 pages"),
    ],
)  # fmt: skip
def test_kinds_of_tiff_that_are_refused(tmp_path, content, complaint):
    line = refusal(write_folder(tmp_path, {"a.tif": content}), 8)
    assert "a.tif: " in line and complaint in line


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(BYTES[..., :3], photometric="rgb")
        file.write(BYTES[::2, ::2, :3], photometric="rgb", subfiletype=1)
    item = ImageDataset(write_folder(tmp_path, {"a.tif": buffer.getvalue()}), 8)[0]
    assert np.array_equal(item.permute(1, 2, 0).numpy(), BYTES[..., :3])


# ---------------------------------------------------------------- HEIC
PLUG_IN = """
import io
from PIL import Image

def register_heif_opener():
    read = lambda file, name: Image.open(io.BytesIO(file.read()[12:]))
    Image.register_open("HEIF", read, lambda start: start[8:12] == b"heic")
"""


def heic(image: Image.Image) -> bytes:
    """What the plug-in above takes for HEIC."""
    return b"\0\0\0\x0cftypheic" + encoded(image)


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path):
    write_folder(tmp_path, {"pillow_heif.py": PLUG_IN.encode(), "data/a.HEIC": heic(noise(8, 8))})
    code = "from cips3d.data import ImageDataset; print(ImageDataset('data', 8)[0].sum().item())"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) == np.asarray(noise(8, 8)).sum()


def test_heic_without_its_plug_in(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    phone = write_folder(tmp_path / "phone", {"a.heic": heic(noise(8, 8)), "b.HEIC": b""})
    assert "passed over 2 files: 2 .heic (install pillow-heif)" in refusal(phone, 8)
    named = write_folder(tmp_path / "named", {"a.jpg": heic(noise(8, 8))})
    assert "a.jpg: is HEIC; install pillow-heif" in refusal(named, 8)


# ---------------------------------------------------------------- what is passed over
@both_layouts
def test_files_that_are_passed_over_are_counted_and_named(tmp_path, monkeypatch, write):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    image = encoded(noise(8, 8))
    used = {"sub/a.png": image, "dataset.json": b'{"labels": []}', "attributes.json": b"{}"}
    used |= {".DS_Store": b"", "__MACOSX/sub/._a.png": b""}
    (tmp_path / "all").mkdir()
    assert ImageDataset(write(tmp_path / "all", used), 8).passed_over == ""
    others = {f"{i}.txt": b"" for i in range(3)} | {"1.HEIC": b"", "2.heic": b"", "sub/x.psd": b""}
    (tmp_path / "some").mkdir()
    data = ImageDataset(write(tmp_path / "some", used | others | {"LICENSE": b""}), 8)
    assert (
        data.passed_over
        == ("passed over 7 files: 3 .txt, 2 .heic (install pillow-heif), 1 .psd, 1 without suffix")
        and len(data) == 1
    )


# ---------------------------------------------------------------- processes
@both_layouts
def test_is_picklable_and_works_in_worker_processes(tmp_path, write):
    data = ImageDataset(
        write(tmp_path, {f"{i:02}.png": encoded(noise(8, 8, i)) for i in range(12)}), 8
    )
    expected = torch.stack([data[i] for i in range(12)])  # the zip is open in this process now
    assert torch.equal(pickle.loads(pickle.dumps(data))[3], expected[3])
    for context in ("fork", "spawn") if write is write_zip else ("fork",):
        loader = DataLoader(
            data,
            batch_size=3,
            num_workers=2 if context == "fork" else 1,
            multiprocessing_context=context,
        )
        assert torch.equal(torch.cat(list(loader)), expected)


def test_nothing_is_written_beside_the_images(tmp_path):
    ImageDataset(write_folder(tmp_path, {"a.png": encoded(noise(8, 8))}), 8)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---------------------------------------------------------------- labels
@both_layouts
def test_labels_round_trip(tmp_path, write):
    labels = Camera.orbit(torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.0])).to_label()
    pairs = [["b.png", labels[1].tolist()], ["a.png", labels[0].tolist()]]
    files = {
        "a.png": encoded(noise(8, 8)),
        "b.png": encoded(noise(8, 8, 1)),
        "dataset.json": json.dumps({"labels": pairs}).encode(),
    }
    data = ImageDataset(write(tmp_path, files), 8)
    assert data.labels is not None
    assert torch.equal(data.labels, labels)
    assert torch.allclose(
        Camera.from_label(data.labels).yaw_pitch()[0], torch.tensor([0.3, -0.2]), atol=1e-5
    )


@pytest.mark.parametrize("content", [{"labels": None}, {"labels": [["a.png", 3]]}, {"labels": []}])
def test_no_camera_labels(tmp_path, content):
    files = {"a.png": encoded(noise(8, 8)), "dataset.json": json.dumps(content).encode()}
    assert ImageDataset(write_folder(tmp_path, files), 8).labels is None


@pytest.mark.parametrize("member", ["photos/{}", "photos\\{}", "all/photos/{}"])
@pytest.mark.parametrize("named", ["00000/a.png", "00000\\a.png"])
def test_labels_of_an_archive_of_a_folder(tmp_path, member, named):
    """Zips of a folder, with names that Windows wrote too."""
    labels = Camera.orbit(0.3).to_label()
    content = json.dumps({"labels": [[named, labels[0].tolist()]]})
    files = {"00000/a.png": encoded(noise(8, 8)), "dataset.json": content.encode("utf-8-sig")}
    if "\\" in member:
        files = {name.replace("/", "\\"): data for name, data in files.items()}
    data = ImageDataset(write_zip(tmp_path, {member.format(n): d for n, d in files.items()}), 8)
    assert data.labels is not None and torch.equal(data.labels, labels)
    assert torch.equal(data[0].permute(1, 2, 0), torch.from_numpy(np.array(noise(8, 8))))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be"),
        ('{"labels": 5}', "must be"),
        ('{"labels": [["a.png"]]}', "must be"),
        ('{"other": []}', "must be"),
        ('{"labels": [["a.png", [1, 2]]]}', "25 finite numbers"),
        (json.dumps({"labels": [["a.png", [float("nan")] * 25]]}), "25 finite numbers"),
        (json.dumps({"labels": [["a.png", ["x"] * 25]]}), "25 finite numbers"),
        (json.dumps({"labels": [["b.png", [0.0] * 25]]}), "no label for a.png"),
        (json.dumps({"labels": [["b.png", 1]]}), "no label for a.png"),
    ],
)
@both_layouts
def test_bad_labels_are_refused(tmp_path, write, content, complaint):
    line = refusal(
        write(tmp_path, {"a.png": encoded(noise(8, 8)), "dataset.json": content.encode()}), 8
    )
    assert "dataset.json" in line
    assert complaint in line


# ---------------------------------------------------------------- the path
def test_missing_path(tmp_path):
    assert "nowhere: no such folder or zip" in refusal(tmp_path / "nowhere", 8)


def test_a_file_that_is_not_a_zip(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("hello")
    assert "list.txt: is neither a folder nor a zip" in refusal(path, 8)


@both_layouts
def test_no_images(tmp_path, write):
    line = refusal(write(tmp_path, {"readme.txt": b"hello"}), 8)
    assert "contains no images" in line
    assert ".png, .jpg" in line


def test_empty_folder_and_empty_zip(tmp_path):
    assert "contains no images" in refusal(tmp_path, 8)
    assert "contains no images" in refusal(write_zip(tmp_path, {}), 8)


def test_cut_off_zip(tmp_path):
    path = write_zip(tmp_path, {f"{i}.png": encoded(noise(8, 8)) for i in range(4)})
    path.write_bytes(path.read_bytes()[:-40])
    assert "images.zip: is damaged or cut off" in refusal(path, 8)


def test_zip_with_a_damaged_member(tmp_path):
    path = write_zip(tmp_path, {"a.png": encoded(noise(8, 8))})
    content = bytearray(path.read_bytes())
    content[0:4] = b"XXXX"  # the local header, which the directory at the end still points to
    path.write_bytes(content)
    assert "a.png in" in refusal(path, 8)


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"]
)
def test_zip_members_outside_the_zip_are_refused(tmp_path, name):
    line = refusal(
        write_zip(tmp_path, {"a.png": encoded(noise(8, 8)), name: encoded(noise(8, 8))}), 8
    )
    assert "points outside the zip" in line
    assert name in line


def test_unreadable_folder_and_zip(tmp_path, monkeypatch):
    write_zip(tmp_path, {"a.png": encoded(noise(8, 8))})

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("os.scandir", denied)
    assert "cannot be listed (Permission denied)" in refusal(tmp_path, 8)
    monkeypatch.setattr("zipfile.ZipFile", denied)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "images.zip", 8)


# ---------------------------------------------------------------- the images
@pytest.mark.parametrize("data", [b"I am text", b"", b"\x89PNG\r\n\x1a\n"])
@both_layouts
def test_a_file_that_is_not_an_image(tmp_path, write, data):
    line = refusal(write(tmp_path, {"good.png": encoded(noise(8, 8)), "bad.png": data}), 8)
    assert "bad.png" in line


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@both_layouts
def test_truncated_image(tmp_path, write, format):
    whole = encoded(noise(64, 64), format)
    with pytest.raises(UserError) as caught:
        ImageDataset(write(tmp_path, {f"cut.{format.lower()}": whole[: len(whole) // 2]}), 8)[0]
    assert f"cut.{format.lower()}" in one_line(caught)


def test_image_that_vanishes(tmp_path):
    data = ImageDataset(write_folder(tmp_path, {"a.png": encoded(noise(8, 8))}), 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError) as caught:
        data[0]
    assert re.search(r"a\.png: there is no such file", one_line(caught))


# limits that 64 pixels exceed: Pillow warns beyond its limit, and refuses beyond twice of it
@pytest.mark.parametrize("pixels", [40, 20])
def test_decompression_bomb(tmp_path, monkeypatch, pixels):
    root = write_folder(tmp_path, {"bomb.png": encoded(noise(8, 8))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    line = refusal(root, 8)
    assert "bomb.png" in line
    assert "safe to decode" in line


def test_postscript_under_an_images_name_is_not_run(tmp_path):
    image = encoded(noise(8, 8), "EPS")
    assert "is not a readable image" in refusal(write_folder(tmp_path, {"a.png": image}), 8)


@pytest.mark.parametrize("name", ["a.png", "dataset.json"])
def test_a_zip_bomb_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    monkeypatch.setattr(sources, "MOST_OTHER_BYTES", 2000)
    path = write_zip(tmp_path, {"0.png": encoded(noise(8, 8))} | {name: b" " * 2001})
    assert f"{name} in {path}: unpacks to 2001 bytes" in refusal(path, 8)


@pytest.mark.parametrize(("offset", "value"), [(6, 84), (9, 8)])  # future version; UTF-8 name
def test_a_damaged_directory_of_a_zip(tmp_path, offset, value):
    path = write_zip(tmp_path, {"a\xff.png": encoded(noise(8, 8))})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + offset] = value
    name = content.index("a\xff.png".encode(), directory)
    content[name + 1] = 0xFF  # not UTF-8
    path.write_bytes(content)
    assert "images.zip: is damaged" in refusal(path, 8)


def test_encrypted_member(tmp_path):
    path = write_zip(tmp_path, {"a.png": encoded(noise(8, 8))})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    content[content.index(b"PK\x03\x04") + 6] |= 1  # and in the local header
    path.write_bytes(content)
    line = refusal(path, 8)
    assert "a.png in" in line
    assert "encrypted" in line


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (100, 7)])
@both_layouts
def test_an_image_smaller_than_the_resolution_needs_permission(tmp_path, write, size):
    path = write(tmp_path, {"tiny.png": encoded(Image.new("RGB", size, RED))})
    line = refusal(path, 8)
    assert "tiny.png" in line
    assert f"is {size[0]}x{size[1]}, smaller than the resolution 8" in line
    assert ImageDataset(path, 8, allow_upscaling=True)[0].shape == (3, 8, 8)


def test_options_are_checked(tmp_path):
    root = write_folder(tmp_path, {"a.png": encoded(noise(8, 8))})
    assert "resolution is 0" in refusal(root, 0)
    assert "resolution is -4" in refusal(root, -4)


def test_file_names_with_control_characters_stay_on_one_line(tmp_path):
    assert "a?b.png" in refusal(write_folder(tmp_path, {"a\nb.png": b"text"}), 8)
