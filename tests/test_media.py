"""Images and videos, read back from the files that were written."""

import os

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cips3d.errors import UserError
from cips3d.export.media import depth_map, save_frames, save_image, to_uint8
from cips3d.export.sheets import image_grid
from tiny import full_disk_after

LEFT, RIGHT = (220, 30, 120), (10, 200, 60)


def two_colours(height: int = 32, width: int = 48) -> np.ndarray:
    frame = np.empty((height, width, 3), dtype=np.uint8)
    frame[:, : width // 2], frame[:, width // 2 :] = LEFT, RIGHT
    return frame


def moving(count: int, height: int = 32, width: int = 48):
    """Frames that differ from each other, so that none is merged with the one before."""
    for index in range(count):
        frame = two_colours(height, width)
        frame[index % height, 0] = 255
        yield frame


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# ---------------------------------------------------------------- tensors to images
def test_to_uint8_rounds_and_clips():
    values = torch.tensor([-1.0, 1.0, 0.0, -7.0, 7.0, float("nan")])
    levels = to_uint8(values[None, None, None].expand(2, 3, 1, -1))
    assert levels.shape == (2, 1, 6, 3)
    assert levels[0, 0, :, 0].tolist() == [0, 255, 128, 0, 255, 0]


def test_to_uint8_inverts_the_scaling():
    levels = torch.arange(256, dtype=torch.uint8)
    images = (levels.float() / 127.5 - 1)[None, None, None].expand(1, 3, 1, -1)
    assert np.array_equal(to_uint8(images)[0, 0, :, 2], levels.numpy())
    assert to_uint8(images.half().requires_grad_()).dtype == np.uint8


@given(count=st.integers(1, 7), columns=st.integers(1, 5), as_arrays=st.booleans())
def test_grid_places_every_image(count, columns, as_arrays):
    images = torch.linspace(-0.9, 0.9, count)[:, None, None, None].expand(-1, 3, 2, 4)
    grid = image_grid(list(to_uint8(images)) if as_arrays else images, columns)
    rows = -(-count // columns)
    assert grid.shape == (rows * 4 - 2, columns * 6 - 2, 3)
    for index, image in enumerate(to_uint8(images)):
        top, left = index // columns * 4, index % columns * 6
        assert np.array_equal(grid[top : top + 2, left : left + 4], image)
        grid[top : top + 2, left : left + 4] = 255
    assert (grid == 255).all()


def test_grid_of_nothing_is_refused():
    with pytest.raises(UserError, match="grid: 0 images"):
        image_grid(torch.zeros(0, 3, 2, 2), 2)
    with pytest.raises(UserError, match="in 0 columns"):
        image_grid(torch.zeros(1, 3, 2, 2), 0)


# ---------------------------------------------------------------- depth
def luminance(image: torch.Tensor) -> torch.Tensor:
    return (image * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(dim=1)


def test_depth_gets_darker_with_distance():
    depth = torch.linspace(0.8, 1.2, 64)[None, None, None]
    image = depth_map(depth, near=0.8, far=1.2)
    assert image.shape == (1, 3, 1, 64)
    assert image.abs().max() <= 1
    assert (luminance(image).diff() < 0).all()
    assert (image[0, 0] > image[0, 2])[:, :32].all(), "the near half is not warm"


def test_the_background_is_black_and_the_far_side_is_not():
    depth = torch.tensor([0.8, 1.2, 5.0])[None, None, None]
    image = depth_map(depth, torch.tensor([1.0, 1.0, 0.0])[None, None, None])
    assert (image[..., 2] == -1).all()
    assert luminance(image)[0, 0, 1] > -0.95


def test_depth_bounds():
    depth = torch.tensor([0.0, 1.0, 2.0, 3.0])[None, None, None]
    image = depth_map(depth, near=1.0, far=2.0)
    assert torch.equal(image[..., 0], image[..., 1])
    assert torch.equal(image[..., 2], image[..., 3])
    assert torch.allclose(
        depth_map(depth * 3 + 1), depth_map(depth), atol=1e-5
    )  # robust bounds follow the scale


def test_stray_depths_do_not_flatten_the_rest():
    depth = torch.linspace(1, 2, 1000).reshape(1, 1, 10, 100)
    stray = depth.clone()
    stray[0, 0, 0, :3] = 1000
    assert (depth_map(stray)[..., 1:, :] - depth_map(depth)[..., 1:, :]).abs().max() < 0.1


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_depth_without_a_range(value):
    assert depth_map(torch.full((2, 1, 3, 3), value), torch.zeros(2, 1, 3, 3)).eq(-1).all()
    assert depth_map(torch.full((2, 1, 3, 3), value)).isfinite().all()


# ---------------------------------------------------------------- images in files
def test_save_image_round_trip(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_image(tmp_path / "made" / "a.png", array)
    with Image.open(tmp_path / "made" / "a.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.array(image), array)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_save_image_writes_jpeg(tmp_path, name):
    save_image(tmp_path / name, two_colours())
    with Image.open(tmp_path / name) as image:
        assert image.format == "JPEG"
        assert np.abs(np.array(image).astype(int) - two_colours()).max() <= 6


def test_a_jpeg_that_is_too_large(tmp_path):
    with pytest.raises(UserError, match=r"at most 65500 pixels and this image is 65501x1; write a"):
        save_image(tmp_path / "a.jpg", np.zeros((1, 65501, 3), dtype=np.uint8))
    save_image(tmp_path / "b.jpg", np.zeros((1, 65500, 3), dtype=np.uint8))
    assert os.listdir(tmp_path) == ["b.jpg"]


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.mp4"])
def test_save_image_refuses_other_kinds(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.png, \.jpg or \.jpeg"):
        save_image(tmp_path / name, two_colours())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_save_image_leaves_nothing_behind_when_the_disk_is_full(tmp_path, name):
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with (
        full_disk_after(500),
        pytest.raises(UserError, match=r"cannot write .*a\.(png|jpg): File too large"),
    ):
        save_image(tmp_path / name, array)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- videos
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".MP4"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1)])
def test_video_round_trip(tmp_path, suffix, size):
    path = tmp_path / f"turn{suffix}"
    save_frames(path, moving(20, *size), fps=25)
    frames = decoded(path)
    assert len(frames) == 20
    height, width = size
    even = 0 if suffix == ".gif" else 1
    assert frames[0].shape == (height + even * (height % 2), width + even * (width % 2), 3)
    if height > 1:
        for frame in frames:
            assert np.abs(frame[4:28, 4:20] - np.array(LEFT, dtype=float)).max() < 12
            assert np.abs(frame[4:28, 28:44] - np.array(RIGHT, dtype=float)).max() < 12
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("suffix", "fps"), [(".mp4", 30), (".mp4", 23.976), (".gif", 30), (".gif", 12.5)]
)
def test_a_video_lasts_as_long_as_asked(tmp_path, suffix, fps):
    path = tmp_path / f"turn{suffix}"
    save_frames(path, moving(24), fps=fps)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.abs(np.array(times) - np.arange(24) / fps).max() < 0.011


def test_a_video_declares_its_colours(tmp_path):
    save_frames(tmp_path / "a.mp4", moving(2))
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_range) == (
            1,
            1,
            1,
        )  # BT.709, limited


def test_frames_are_taken_one_by_one(tmp_path):
    """The writer holds no more than a few frames: one is freed long before the last is made."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        for frame in moving(60):
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame
            del frame

    save_frames(tmp_path / "a.gif", frames())
    assert most <= 3


@pytest.mark.parametrize("name", ["a.avi", "a", "a.png", ".mp4"])
def test_unknown_kinds_of_video(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.mp4 or \.gif"):
        save_frames(tmp_path / name, moving(2))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "fps"),
    [("a.mp4", 0), ("a.mp4", -1.0), ("a.mp4", 0.0004), ("a.mp4", float("nan")), ("a.gif", 60)],
)
def test_bad_frame_rates(tmp_path, name, fps):
    with pytest.raises(UserError, match=r"a\.(mp4|gif): fps is "):
        save_frames(tmp_path / name, moving(2), fps=fps)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
class TestAFailedVideoLeavesNothingBehind:
    def check(self, tmp_path, suffix, frames, match, error=UserError):
        path = tmp_path / f"a{suffix}"
        path.write_text("old")
        with pytest.raises(error, match=match) as caught:
            save_frames(path, frames)
        assert str(caught.value).isprintable()
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_text() == "old"

    def test_no_frames(self, tmp_path, suffix):
        self.check(tmp_path, suffix, [], "there are none; give at least one")

    def test_frames_of_two_sizes(self, tmp_path, suffix):
        self.check(
            tmp_path,
            suffix,
            [two_colours(8, 8), two_colours(8, 10)],
            "frame 1 is 10x8, the first is 8x8",
        )

    def test_a_fault_while_the_frames_are_made(self, tmp_path, suffix):
        def frames():
            yield from moving(3)
            raise ZeroDivisionError("bug")

        self.check(tmp_path, suffix, frames(), "bug", ZeroDivisionError)

    def test_full_disk(self, tmp_path, suffix):
        noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
        with full_disk_after(3000):
            self.check(tmp_path, suffix, noise, "cannot write .*: File too large; give a path")

    def test_a_folder_that_cannot_be_written(self, tmp_path, suffix, monkeypatch):
        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.touch", denied)
        self.check(tmp_path, suffix, moving(2), "Permission denied")
