"""Camera paths: course, loops and constant sizes; keyframes and damaged files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cips3d
from cips3d import trajectories
from cips3d.camera import Camera
from cips3d.errors import UserError

relaxed = settings(deadline=None, max_examples=15)
counts = st.integers(2, 60)
angles = st.floats(-1.2, 1.2)
radii = st.floats(0.5, 5.0)
fovs = st.floats(2.0, 60.0)

LOOPS = {
    "orbit": lambda n: trajectories.orbit(n, 0.7, 0.1),
    "figure-eight": lambda n: trajectories.figure_eight(n, 0.7, 0.3, 0.1),
    "dolly-zoom": lambda n: trajectories.dolly_zoom(n, 50.0, 0.2, 0.1),
    "keyframes": lambda n: trajectories.keyframes(
        {"loop": True, "keyframes": [{"yaw": -20}, {"yaw": 30, "fov": 20}]}, n
    ),
}


def degrees(camera: Camera) -> tuple[list[float], list[float]]:
    yaw, pitch = camera.yaw_pitch()
    return torch.rad2deg(yaw).tolist(), torch.rad2deg(pitch).tolist()


def assert_same(a: Camera, b: Camera, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.cam_to_world, b.cam_to_world, atol=atol, rtol=0)
    torch.testing.assert_close(a.fov, b.fov, atol=10 * atol, rtol=0)


# ---------------------------------------------------------------- paths by name
@given(counts, angles, angles, radii, fovs)
@relaxed
def test_every_path_keeps_radius_and_looks_at_the_origin(count, yaw, pitch, radius, fov) -> None:
    for camera in (
        trajectories.arc(count, yaw, pitch, radius, fov),
        trajectories.orbit(count, yaw, pitch, radius, fov),
        trajectories.figure_eight(count, yaw, 0.3, pitch, radius, fov),
    ):
        assert len(camera) == count and camera.cam_to_world.dtype == torch.float32
        torch.testing.assert_close(camera.position.norm(dim=-1), torch.full((count,), radius))
        torch.testing.assert_close(camera.fov, torch.full((count,), fov))
        assert_same(camera, Camera.orbit(*camera.yaw_pitch(), radius, fov), 1e-5 * radius)


def test_an_arc_goes_from_one_side_to_the_other_in_equal_steps() -> None:
    yaw, pitch = degrees(trajectories.arc(5, math.radians(40), math.radians(10)))
    assert yaw == pytest.approx([-40, -20, 0, 20, 40], abs=1e-4)
    assert pitch == pytest.approx([10] * 5, abs=1e-4)
    assert degrees(trajectories.arc(1, math.radians(40)))[0] == pytest.approx([40])


def test_an_orbit_starts_in_front_and_reaches_both_sides() -> None:
    yaw, _ = degrees(trajectories.orbit(8, math.radians(40)))
    half = 40 / math.sqrt(2)
    assert yaw == pytest.approx([0, half, 40, half, 0, -half, -40, -half], abs=1e-4)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_close(name: str) -> None:
    """The step from the last frame to the first is like its neighbours.

    Half the frames are every other one.
    """
    camera = LOOPS[name](200)
    features = torch.cat([camera.position, camera.fov[:, None] / 10], dim=1)
    steps = (features.roll(-1, 0) - features).norm(dim=1)
    assert steps[-1] < 1.1 * max(steps[-2], steps[0]) + 1e-3
    assert (steps.roll(-1) - steps).abs().max() < 0.1 * steps.max(), (
        "no jump, and no sudden change of speed"
    )
    assert_same(LOOPS[name](100), camera[::2])


@given(st.integers(1, 15), angles, st.floats(0.0, 0.3))
@relaxed
def test_a_figure_eight_is_the_same_after_half_a_turn(
    quarter: int, yaw: float, rise: float
) -> None:
    """Half a turn later the camera is at -yaw with the same pitch.

    Backwards in time, the path is turned by half a turn.
    """
    yaws, pitches = trajectories.figure_eight(4 * quarter, yaw, rise, 0.1).yaw_pitch()
    half = 2 * quarter
    torch.testing.assert_close(yaws.roll(half), -yaws, atol=1e-5, rtol=0)
    torch.testing.assert_close(pitches.roll(half), pitches, atol=1e-5, rtol=0)
    backward = (-torch.arange(4 * quarter)) % (4 * quarter)
    torch.testing.assert_close(yaws[backward], -yaws, atol=1e-5, rtol=0)
    torch.testing.assert_close(pitches[backward] - 0.1, 0.1 - pitches, atol=1e-5, rtol=0)
    assert float(yaws.abs().max()) == pytest.approx(abs(yaw), abs=1e-5)


@given(counts, fovs, fovs, angles, angles, radii)
@relaxed
def test_a_dolly_zoom_keeps_the_size_of_what_faces_the_camera(
    count, fov, to_fov, yaw, pitch, radius
) -> None:
    camera = trajectories.dolly_zoom(count, to_fov, yaw, pitch, radius, fov)
    right, up = camera.cam_to_world[:, :3, 0], camera.cam_to_world[:, :3, 1]
    points = 0.05 * radius * torch.stack([right, up, right - up], dim=1)
    place, _ = camera.project(points)
    torch.testing.assert_close(place, place[:1].expand_as(place), atol=1e-4, rtol=1e-3)
    assert float(camera.fov[0]) == pytest.approx(fov, rel=1e-5)
    if count % 2 == 0:
        assert float(camera.fov[count // 2]) == pytest.approx(to_fov, rel=1e-5)
    assert bool(
        (camera.fov <= max(fov, to_fov) + 1e-3).all()
        and (camera.fov >= min(fov, to_fov) - 1e-3).all()
    )


def test_a_dolly_zoom_makes_near_things_swell() -> None:
    camera = trajectories.dolly_zoom(2, 40.0)
    nose = torch.tensor([[[0.02, 0.0, 0.05]]]).expand(2, 1, 3)
    place, _ = camera.project(nose)
    assert place[1, 0, 0] > 1.1 * place[0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: trajectories.orbit(0),
        lambda: trajectories.orbit(10**9),
        lambda: trajectories.orbit(4, float("nan")),
        lambda: trajectories.orbit(4, float("inf")),
        lambda: trajectories.orbit(4, pitch=math.pi / 2),
        lambda: trajectories.orbit(4, pitch=float("nan")),
        lambda: trajectories.orbit(4, radius=0.0),
        lambda: trajectories.orbit(4, radius=float("inf")),
        lambda: trajectories.orbit(4, fov=180.0),
        lambda: trajectories.arc(-1),
        lambda: trajectories.figure_eight(4, rise=1.0, pitch=0.6),
        lambda: trajectories.dolly_zoom(4, 0.0),
        lambda: trajectories.dolly_zoom(4, float("nan")),
        lambda: trajectories.dolly_zoom(4, radius=-1.0),
        lambda: trajectories.keyframes([]),
        lambda: trajectories.keyframes([{"yaw": 0}], 0),
        lambda: trajectories.keyframes([{"yaw": 0}], fps=0.0),
        lambda: trajectories.keyframes([{"yaw": 0}, {"yaw": 1}], fps=float("nan")),
        lambda: trajectories.keyframes([{"yaw": 0}, {"yaw": 1}, {"yaw": 2}], 2),
        lambda: trajectories.keyframes([{"yaw": 0, "seconds": 80000}, {"yaw": 1}]),
    ],
)
def test_impossible_paths_are_one_clear_line(make) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).isprintable()


# ---------------------------------------------------------------- keyframes
def lookers(seed: int, count: int) -> Camera:
    """Cameras anywhere around the origin, look somewhere near it and are tilted."""
    random = torch.Generator().manual_seed(seed)
    position = torch.nn.functional.normalize(
        torch.randn(count, 3, generator=random), dim=-1
    ) * torch.tensor([1, 0.6, 1])
    position = position * (1 + torch.rand(count, 1, generator=random))
    target, up = (
        0.2 * torch.randn(count, 3, generator=random),
        torch.randn(count, 3, generator=random) * 0.2,
    )
    return Camera.look_at(
        position,
        target,
        up + torch.tensor([0.0, 1.0, 0.0]),
        10 + 30 * torch.rand(count, generator=random),
    )


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("frames", [5, 6, 9, 100])
def test_a_path_goes_through_its_keyframes_exactly(frames: int, loop: bool) -> None:
    keys = lookers(frames, 5)
    labels = keys.to_label().double().tolist()
    path = trajectories.keyframes({"loop": loop, "keyframes": labels}, frames)
    assert len(path) == frames
    distance = (path.to_label()[:, None] - keys.to_label()[None]).abs().amax(dim=-1)
    nearest = distance.argmin(dim=0)
    assert distance.amin(dim=0).max() < 2e-5
    assert nearest.tolist() == sorted(nearest.tolist()) and nearest[0] == 0
    if not loop:
        assert nearest[-1] == frames - 1


@given(
    st.lists(
        st.tuples(st.floats(-170, 170), st.floats(-80, 80), radii, fovs), min_size=2, max_size=5
    ),
    st.booleans(),
)
@relaxed
def test_cameras_on_the_sphere_stay_upright_and_within_the_keyframes(keys, loop: bool) -> None:
    entries = [dict(zip(("yaw", "pitch", "radius", "fov"), key, strict=True)) for key in keys]
    path = trajectories.keyframes({"loop": loop, "keyframes": entries}, 40)
    yaw, pitch = path.yaw_pitch()
    radius = path.position.norm(dim=-1)
    assert_same(path, Camera.orbit(yaw, pitch, radius, path.fov), 1e-4)
    for values, field in ((torch.rad2deg(pitch), 1), (radius, 2), (path.fov, 3)):
        given_ = [key[field] for key in keys]
        assert values.min() > min(given_) - 1e-2 and values.max() < max(given_) + 1e-2


def test_seconds_set_the_pace_and_the_length() -> None:
    entries = [{"yaw": 0, "seconds": 1}, {"yaw": 10, "seconds": 3}, {"yaw": 20, "seconds": 1}]
    path = trajectories.keyframes(entries, fps=10)
    assert len(path) == 41
    yaw, _ = degrees(path)
    assert (yaw[0], yaw[10], yaw[40]) == pytest.approx((0, 10, 20), abs=1e-3)
    assert all(b > a for a, b in itertools.pairwise(yaw))
    assert len(trajectories.keyframes({"loop": True, "keyframes": entries}, fps=10)) == 50
    halved, _ = degrees(trajectories.keyframes(entries, 21))
    assert halved == pytest.approx(yaw[::2], abs=1e-3)


def test_very_short_legs_keep_every_keyframe() -> None:
    entries: list[dict[str, float]] = [
        {"yaw": i, "seconds": 1e-6 if i % 3 else 5.0} for i in range(10)
    ]
    yaw, _ = degrees(trajectories.keyframes(entries, 12))
    for i in range(10):
        assert min(abs(y - i) for y in yaw) < 1e-3


def test_a_whole_turn_and_the_short_way_back() -> None:
    yaw = torch.tensor(degrees(trajectories.keyframes([{"yaw": 0}, {"yaw": 360}], 5))[0])
    assert torch.cos(torch.deg2rad(yaw)).tolist() == pytest.approx([1, 0, -1, 0, 1], abs=1e-5)
    turning = [{"yaw": 0}, {"yaw": 120}, {"yaw": 240}]
    steps = (
        torch.tensor(
            degrees(trajectories.keyframes({"loop": True, "keyframes": turning}, 36))[0]
        ).diff()
        % 360
    )
    torch.testing.assert_close(steps, torch.full((35,), 10.0), atol=1e-3, rtol=0)
    labels = Camera.orbit(torch.deg2rad(torch.tensor([170.0, -170.0]))).to_label().tolist()
    across = degrees(trajectories.keyframes(labels, 3))[0][1]
    assert abs(across) == pytest.approx(180, abs=1e-2)


@pytest.mark.parametrize(("rolls", "loop", "middle"), [
    ((170.0, 190.0), False, 180.0), ((-170.0, 170.0), False, 180.0), 
    ((120.0, 240.0, 360.0), False, 240.0),
    ((90.0, 200.0, 310.0), True, 200.0),
])  # fmt: skip
def test_cameras_that_roll_take_the_shorter_way(
    rolls: tuple[float, ...], loop: bool, middle: float
) -> None:
    """Labels at one place, rolled about the viewing axis.

    Halfway the path has the middle roll, and steps are small.
    """
    labels = []
    for roll in map(math.radians, rolls):
        pose = Camera.orbit(0.2, 0.1).cam_to_world[0]
        about_z = torch.tensor(
            [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1.0]]
        )
        pose[:3, :3] = pose[:3, :3] @ about_z
        labels.append(Camera(pose[None], torch.tensor([12.0])).to_label()[0].tolist())
    path = trajectories.keyframes({"loop": loop, "keyframes": labels}, frames=12 if loop else 13)
    rotation = path.cam_to_world[:, :3, :3]
    local = Camera.orbit(0.2, 0.1).cam_to_world[0, :3, :3].T @ rotation
    found = torch.rad2deg(torch.atan2(local[:, 1, 0], local[:, 0, 0]))
    assert math.cos(math.radians(float(found[6 if not loop else 4]) - middle)) == pytest.approx(
        1.0, abs=1e-4
    )
    steps = torch.diff(found, append=found[:1]) if loop else torch.diff(found)
    assert float(((steps + 180) % 360 - 180).abs().max()) < 60


def test_a_camera_that_has_rolled_round_does_not_unwind() -> None:
    """Rolls to 350 degrees, then turns aside: the last leg is as short as the turn."""
    labels = []
    for roll, aside in ((0, 0), (120, 0), (240, 0), (350, 0), (360, 10)):
        z, y = math.radians(roll), math.radians(aside)
        turn = torch.tensor(
            [[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1.0]]
        )
        look = torch.tensor(
            [[math.cos(y), 0, math.sin(y)], [0, 1.0, 0], [-math.sin(y), 0, math.cos(y)]]
        )
        pose = Camera.orbit(0.2, 0.1).cam_to_world[0]
        pose[:3, :3] = pose[:3, :3] @ look @ turn
        labels.append(Camera(pose[None], torch.tensor([12.0])).to_label()[0].tolist())
    rotation = trajectories.keyframes(labels, frames=41).cam_to_world[:, :3, :3]
    steps = rotation[:-1].mT @ rotation[1:]
    angles = torch.rad2deg(
        torch.arccos(((steps.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1))
    )
    assert float(angles[:30].sum()) == pytest.approx(350, abs=1) and float(
        angles[30:].sum()
    ) == pytest.approx(14.1, abs=0.5)


def test_labels_and_angles_mean_the_same_and_mix(tmp_path: Path) -> None:
    camera = Camera.orbit(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.1, 1.5, 20.0)
    angle = [
        {"yaw": math.degrees(yaw), "pitch": math.degrees(0.1), "radius": 1.5, "fov": 20}
        for yaw in (0.3, -0.2)
    ]
    label = camera.to_label().tolist()
    text = json.dumps([angle[0], {"label": label[1], "seconds": 1}])
    (tmp_path / "path.json").write_text(text)
    (tmp_path / "marked.json").write_text(text, encoding="utf-8-sig")
    expected = trajectories.keyframes(angle, 9)
    for source in (
        label,
        [label[0], angle[1]],
        tmp_path / "path.json",
        str(tmp_path / "path.json"),
        tmp_path / "marked.json",
    ):
        assert_same(trajectories.keyframes(source, 9), expected)


def test_missing_fields_take_the_callers_values() -> None:
    path = trajectories.keyframes([{"pitch": 10}, {"yaw": 20, "fov": 30}], 2, radius=2.0, fov=8.0)
    assert path.fov.tolist() == pytest.approx([8, 30])
    assert path.position.norm(dim=-1).tolist() == pytest.approx([2, 2])
    assert degrees(path)[1] == pytest.approx([10, 0], abs=1e-4)


def test_a_single_keyframe_does_not_move() -> None:
    path = trajectories.keyframes([{"yaw": 20, "seconds": 2}], fps=5)
    assert len(path) == 11 and degrees(path)[0] == pytest.approx([20] * 11, abs=1e-4)


LABEL = Camera.orbit(0.1).to_label()[0].tolist()


def changed(index: int, value: Any) -> list[Any]:
    return [value if i == index else number for i, number in enumerate(LABEL)]


DAMAGED: dict[str, tuple[bytes | str | Any, str]] = {
    "empty file": (b"", "not a JSON file"),
    "cut": (b'[{"yaw": 1', "not a JSON file"),
    "binary": (b"\xff\xfe\x00", "not a JSON file"),
    "nested": (b"[" * 100_000, "not a JSON file"),
    "number": (3, "no list of keyframes"),
    "text": ("orbit", "no list of keyframes"),
    "null": (None, "no list of keyframes"),
    "no keyframes": ([], "no list of keyframes"),
    "no keyframes in the object": ({"loop": True}, "no list of keyframes"),
    "one keyframe, not a list": ({"yaw": 3}, "'yaw' is unknown"),
    "loop of another kind": ({"loop": "yes", "keyframes": [{"yaw": 1}]}, "loop is 'yes'"),
    "word as a keyframe": ([{"yaw": 1}, "left"], "keyframe 2: 'left' is neither"),
    "null as a keyframe": ([None], "keyframe 1: None is neither"),
    "typo in a name": ([{"yaw": 1}, {"yow": 2}], "keyframe 2: yow"),
    "empty keyframe": ([{}], "keyframe 1: give either yaw"),
    "only seconds": ([{"seconds": 2}], "keyframe 1: give either yaw"),
    "yaw in words": ([{"yaw": "left"}], "keyframe 1: yaw"),
    "yaw is NaN": ([{"yaw": math.nan}], "keyframe 1: yaw is nan; give a finite number"),
    "yaw is infinite": (b'[{"yaw": 1e999}]', "keyframe 1: yaw is inf"),
    "yaw of a thousand bits": ([{"yaw": 2**1000}], "keyframe 1: a number of 1001 bits"),
    "pitch over the pole": ([{"yaw": 1, "pitch": 90}], "keyframe 1: pitch is 90; it must"),
    "fov": ([{"yaw": 1, "fov": 0}], "keyframe 1: fov is 0"),
    "radius": ([{"yaw": 1, "radius": -1}], "keyframe 1: radius is -1"),
    "radius of a mile": ([{"yaw": 1, "radius": 1e30}], "keyframe 1: radius is 1e+30"),
    "seconds": ([{"yaw": 1, "seconds": 0}], "keyframe 1: seconds is 0"),
    "seconds of a week": (
        [{"yaw": 1, "seconds": 1e6}, {"yaw": 2}],
        "keyframe 1: seconds is 1000000.0",
    ),
    "both kinds": ([{"yaw": 1, "label": LABEL}], "keyframe 1: give either yaw"),
    "short label": ([LABEL[:24]], "keyframe 1: the label has 24 numbers"),
    "label in words": ([changed(3, "x")], "keyframe 1: label.3"),
    "label with NaN": ([changed(3, math.nan)], "keyframe 1: label.3 is nan"),
    "label that is no rotation": (
        [changed(0, 5.0)],
        "keyframe 1: camera label: its first 16 numbers",
    ),
    "label that mirrors": (
        [[-x if i in (0, 4, 8) else x for i, x in enumerate(LABEL)]],
        "keyframe 1: camera label: its",
    ),
    "label with a last row": ([changed(12, 1.0)], "keyframe 1: camera label: its first 16 numbers"),
    "label with other intrinsics": ([changed(18, 0.7)], "keyframe 1: camera label"),
    "label without focal length": (
        [[0.0 if i in (16, 20) else x for i, x in enumerate(LABEL)]],
        "keyframe 1: camera",
    ),
    "label at the origin": (
        [[0.0 if i in (3, 7, 11) else x for i, x in enumerate(LABEL)]],
        "keyframe 1: its camera is 0",
    ),
    "label over the pole": (
        [[{3: 0.0, 7: 1.0, 11: 0.0}.get(i, x) for i, x in enumerate(LABEL)]],
        "keyframe 1: camera: it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_keyframes(kind: str, tmp_path: Path) -> None:
    content, words = DAMAGED[kind]
    path = tmp_path / "path.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for source in (
        (path, str(path)) if isinstance(content, bytes | str | None | int) else (path, content)
    ):
        with pytest.raises(UserError) as error:
            trajectories.keyframes(source, 9)
        line = str(error.value)
        assert words in line and line.isprintable()
        assert line.startswith(str(path)) or source is content


@pytest.mark.parametrize("name", ["missing.json", ".", "x" * 300])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        trajectories.keyframes(tmp_path / name)


def test_they_are_public() -> None:
    camera: Camera = cips3d.trajectories.orbit(frames=3)
    position: Tensor = camera.position
    assert position.shape == (3, 3)
