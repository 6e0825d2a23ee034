"""Videos of subjects: frames and their layout, morphs, and errors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import cips3d
from cips3d import trajectories
from cips3d.errors import UserError
from cips3d.export.media import to_uint8
from cips3d.export.strips import depth_range
from cips3d.export.video import interpolated, video_frames
from cips3d.models.generator import Generator
from cips3d.models.types import Styles
from test_strips import made

ORBIT = trajectories.orbit(5, 0.4)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_save_video(generator: Generator, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"turn{suffix}"
    cips3d.save_video(
        path,
        generator,
        generator.sample_latents(1, 0),
        ORBIT,
        (16, 24),
        fps=10,
        show=("image", "depth"),
        psi=0.7,
    )
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert [frame.shape for frame in frames] == [(16, 48, 3)] * 5
    assert any((frames[1] != frame).any() for frame in frames[2:])
    assert os.listdir(tmp_path) == [path.name]


def test_the_training_resolution_is_the_default(generator: Generator) -> None:
    (frame,) = video_frames(generator, generator.sample_latents(1, 0), ORBIT[0])
    assert frame.shape == (generator.config.resolution,) * 2 + (3,)


# ---------------------------------------------------------------- frames
def test_each_frame_is_the_image_from_its_camera(generator: Generator) -> None:
    z = generator.sample_latents(1, 0)
    for i, frame in enumerate(video_frames(generator, z, ORBIT, 12, psi=(0.3, 0.9))):
        assert close(frame, to_uint8(generator.render(z, ORBIT[i], 12, psi=(0.3, 0.9)).image)[0])


def test_each_code_is_truncated_by_itself(generator: Generator) -> None:
    z, other = generator.sample_latents(2, 0)[0], generator.sample_latents(2, 0)[1]
    swapped = type(z)(z.shape, other.appearance)

    def image(codes: Any, psi: Any) -> np.ndarray:
        return next(video_frames(generator, codes, ORBIT, 12, psi=psi, show=("image", "nerf")))

    assert np.array_equal(image(z, (0.5, 0.0)), image(swapped, (0.5, 0.0))), (
        "all of the appearance is the mean's"
    )
    assert not np.array_equal(image(z, (0.5, 1.0)), image(swapped, (0.5, 1.0)))
    assert np.array_equal(image(z, 0.5), image(z, (0.5, 0.5)))


def test_one_subjects_kinds_are_side_by_side(generator: Generator) -> None:
    z = generator.sample_latents(1, 0)
    alone = [
        next(video_frames(generator, z, ORBIT, 12, show=kind))
        for kind in ("image", "depth", "nerf")
    ]
    together = next(video_frames(generator, z, ORBIT, 12, show=("image", "depth", "nerf")))
    assert np.array_equal(together, np.concatenate(alone, axis=1))


def test_several_subjects_have_a_column_each(generator: Generator) -> None:
    z = generator.sample_latents(2, 0)
    frame = next(video_frames(generator, [z[0], z[1]], ORBIT, 12, show=("image", "nerf")))
    assert frame.shape == (24, 24, 3)
    for i in range(2):
        out = generator.render(z[i], ORBIT[0], 12)
        assert close(frame[:12, i * 12 : (i + 1) * 12], to_uint8(out.image)[0])
        assert close(frame[12:, i * 12 : (i + 1) * 12], to_uint8(out.aux_image)[0])


def test_the_depth_has_one_scale_for_all_frames(generator: Generator) -> None:
    """A view has the same colours whatever else the video shows, if the range is the same."""
    z = generator.map(generator.sample_latents(1, 0))
    near, far = depth_range(generator, z, ORBIT)
    frames = list(video_frames(generator, z, ORBIT, 12, show="depth"))
    assert np.array_equal(frames[0], next(video_frames(generator, z, ORBIT, 12, show="depth")))
    for i, frame in enumerate(frames):
        out = generator.render(z, ORBIT[i], 12)
        expected = cips3d.export.media.depth_map(out.depth - 1, out.opacity, near, far)
        assert close(frame, to_uint8(expected)[0])


def test_an_empty_subject_leaves_the_others_their_scale(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    styles = generator.map(generator.sample_latents(2, 0))
    alone = next(video_frames(generator, styles[0], ORBIT, 12, show="depth"))
    empty, render_rays = styles[1].shape, Generator.render_rays

    def shown(self: Generator, styles: Styles, *others: Any) -> Any:
        out = render_rays(self, styles, *others)
        return (
            replace(out, opacity=0 * out.opacity, last_weight=0 * out.last_weight)
            if torch.equal(styles.shape[:1], empty)
            else out
        )

    monkeypatch.setattr(Generator, "render_rays", shown)
    assert depth_range(generator, styles[1], ORBIT) is None
    both = next(video_frames(generator, [styles[0], styles[1]], ORBIT, 12, show="depth"))
    assert close(both[:, :12], alone)
    assert not next(video_frames(generator, styles[1], ORBIT, 12, show="depth")).any()  # black


def test_a_still_camera_and_codes_that_change(generator: Generator) -> None:
    codes = generator.map(generator.sample_latents(4, 0))
    frames = list(video_frames(generator, codes, ORBIT[0], 8))
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        assert close(frame, to_uint8(generator.render(codes[i], ORBIT[0], 8).image)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"show": ()}, "show: nothing"),
        ({"resolution": 0}, "image: height is 0"),
        ({"supersample": 0}, "image: supersample is 0"),
        ({"fps": 0}, "fps is 0"),
        (
            {"codes": 3},
            r"video: 3 codes or cameras for 5 frames; give one or 5 of each \(a list",
        ),
        (
            {"cameras": trajectories.dolly_zoom(4, 60.0, fov=6.0)},
            "camera: it comes within 0.0908 of the centre",
        ),
    ],
)
def test_what_cannot_become_a_video(
    generator: Generator, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    options = {"resolution": 8, "cameras": ORBIT, "codes": 1} | options
    codes = generator.sample_latents(options.pop("codes"), 0)
    with pytest.raises(UserError, match=words):
        cips3d.save_video(
            tmp_path / "a.mp4",
            generator,
            codes,
            options.pop("cameras"),
            options.pop("resolution"),
            **options,
        )
    assert os.listdir(tmp_path) == []


def test_a_video_without_subjects(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no subject"):
        cips3d.save_video(tmp_path / "a.mp4", generator, [], ORBIT, 8)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- from subject to subject
@pytest.mark.parametrize("frames", [3, 7, 30, 31])
def test_interpolation_passes_through_its_subjects_and_loops(
    generator: Generator, frames: int
) -> None:
    styles = generator.map(generator.sample_latents(3, 0))
    way = interpolated(styles, frames)
    assert len(way) == frames
    for name in ("shape", "appearance"):
        codes, keys = getattr(way, name), getattr(styles, name)
        where = [int((codes == key).all(dim=1).nonzero()[0, 0]) for key in keys]
        assert where == [round(i * frames / 3) for i in range(3)], (
            "each subject, to the bit, at its time"
        )
        steps = (codes.roll(-1, 0) - codes).norm(dim=1)
        if frames >= 30:
            assert steps[-1] < steps.mean(), "the last frame is near the first"


def test_interpolation_is_straight_and_even(generator: Generator) -> None:
    styles = generator.map(generator.sample_latents(2, 0))
    way = interpolated(styles, 40)
    start, end = styles.shape
    share = ((way.shape - start) @ (end - start)) / (end - start).square().sum()
    torch.testing.assert_close(way.shape, start + share[:, None] * (end - start), atol=1e-5, rtol=0)
    assert float(share[10]) == pytest.approx(0.5, abs=1e-5)
    torch.testing.assert_close(share[1:20], share[21:].flip(0), atol=1e-5, rtol=0)
    assert share[1] < 0.02 and (share[:21].diff() > 0).all()


def test_one_subject_stays_itself_and_styles_per_block_work(generator: Generator) -> None:
    styles = generator.map(generator.sample_latents(2, 0))
    assert torch.equal(interpolated(styles[0], 3).shape, styles.shape[:1].expand(3, -1))
    assert isinstance(styles.appearance, torch.Tensor)
    per_block = interpolated(
        Styles(styles.shape, [styles.appearance, styles.appearance.flip(0)]), 4
    )
    plain = interpolated(styles, 4)
    assert torch.equal(per_block.appearance[0], plain.appearance)
    assert torch.equal(per_block[2].appearance[1], styles.appearance[:1])


def test_too_few_frames(generator: Generator) -> None:
    styles = generator.map(generator.sample_latents(3, 0))
    with pytest.raises(UserError, match="2 frames for 3 subjects"):
        interpolated(styles, 2)


def test_styles_are_taken_like_latents() -> None:
    styles = Styles(torch.arange(6.0).view(3, 2), torch.arange(3.0).view(3, 1))
    assert styles[1].shape.tolist() == [[2, 3]] and styles[-1].appearance.tolist() == [[2]]
    assert len(styles[1:]) == 2 and len(styles[torch.tensor([2, 0, 0])]) == 3
