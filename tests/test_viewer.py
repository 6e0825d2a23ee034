"""The viewer: invalid requests, images in steps, the worker, and a server with real clients."""

from __future__ import annotations

import copy
import gc
import gzip
import io
import itertools
import json
import math
import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from chromium import CHROMIUM, FLAGS
from cips3d import pretrained, trajectories
from cips3d.camera import Camera, PoseDistribution
from cips3d.editing import inversion as editing_invert
from cips3d.editing.blending import mix_styles
from cips3d.editing.inversion import Inversion, InversionConfig
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.meshes import glb
from cips3d.files import png
from cips3d.model_paths import good_seeds
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.protocol import Prepared
from cips3d.models.types import Sampling
from cips3d.viewer import rendering
from cips3d.viewer.cameras import (
    Pose,
    PoseLimits,
    camera_from_viser,
    keyframe,
    prior_cameras,
    soft_clamp,
    viser_pose,
)
from cips3d.viewer.rendering import (
    RenderSpeed,
    finer_sides,
    on_canvas,
    pixels_of,
    preview,
    preview_sampling,
    preview_side,
    strips,
)
from cips3d.viewer.requests import BOUNDS, MODES, Choice, PhotoSubject, view_from
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.worker import Steps, Worker, run_all

pytest.importorskip("viser")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from viewer_client import Client

from cips3d.viewer import server, session, transfer
from cips3d.viewer.server import Viewer
from cips3d.viewer.session import Session
from cips3d.viewer.transfer import LONGEST_FILE, read_upload, saved_size

CONFIG = tiny.GENERATOR
UNTRAINED = Generator(CONFIG)
#: What `invert` reports to.
Progress = Callable[[float, str], None]
#: Side of the refined image.
SIDE = 4 * CONFIG.resolution
#: OpenCV axes at +z that look at the origin upright: x stays, y and z turn round.
FRONT = Pose((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0), math.radians(12), 300, 300)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """One whose subjects and views differ visibly; a new generator is nearly uniformly grey."""
    torch.manual_seed(0)
    made = (
        Generator(tiny.generator(density_gain=40.0, density_blob=30.0)).eval().requires_grad_(False)
    )
    for head in made.inr.to_rgb:
        head.weight.mul_(40)
    made.aux_head.weight.mul_(40)
    made.update_style_means(100)
    return made


# ---------------------------------------------------------------- cameras
def test_front_pose_is_the_front_camera() -> None:
    camera = camera_from_viser(FRONT, CONFIG.networks.extent)
    assert camera is not None
    torch.testing.assert_close(camera.cam_to_world, Camera.orbit(0.0).cam_to_world)
    torch.testing.assert_close(camera.fov, torch.tensor([12.0]))


@given(
    yaw=st.floats(-3, 3),
    pitch=st.floats(-1.5, 1.5),
    radius=st.floats(0.2, 50),
    fov=st.floats(1, 90),
)
def test_cameras_go_to_viser_and_back(yaw: float, pitch: float, radius: float, fov: float) -> None:
    camera = Camera.orbit(yaw, pitch, radius, fov)
    wxyz, position = viser_pose(camera)
    back = camera_from_viser(
        Pose(tuple(3 * wxyz), tuple(position), math.radians(fov), 300, 200), CONFIG.networks.extent
    )
    assert back is not None
    torch.testing.assert_close(back.cam_to_world, camera.cam_to_world, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(back.fov, camera.fov, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"wxyz": (0.0, 0.0, 0.0, 0.0)},
        {"wxyz": (math.nan, 1.0, 0.0, 0.0)},
        {"wxyz": (1.0, 0.0, 0.0)},
        {"wxyz": (1e300, 0.0, 0.0, 0.0)},
        {"position": (0.0, 0.0, 0.0)},
        {"position": (0.0, math.inf, 1.0)},
        {"position": (0.0, 1.0)},
        {"fov": math.nan},
        {"fov": -math.inf},
    ],
)
def test_garbage_cameras_are_none(changes: dict[str, Any]) -> None:
    assert camera_from_viser(replace(FRONT, **changes), CONFIG.networks.extent) is None


def test_cameras_out_of_reach_are_moved() -> None:
    near = camera_from_viser(
        replace(FRONT, position=(0.0, 0.0, 0.01), fov=0.0), CONFIG.networks.extent
    )
    far = camera_from_viser(
        replace(FRONT, position=(0.0, 0.0, 1e9), fov=7.0), CONFIG.networks.extent
    )
    assert near is not None and far is not None
    assert CONFIG.networks.extent < float(near.position[0, 2]) < 1.2 * CONFIG.networks.extent
    assert 10 < float(far.position[0, 2]) < 1000
    assert (float(near.fov), float(far.fov)) == pytest.approx((0.1, 150.0))


def test_keyframes_are_what_the_trajectories_read() -> None:
    angles = keyframe(Camera.orbit(math.radians(-30), math.radians(10), 1.5, 20.0))
    assert angles == pytest.approx({"yaw": -30, "pitch": 10, "fov": 20, "radius": 1.5}, abs=1e-3)
    aside = Camera.look_at(torch.tensor([[0.0, 0.0, 1.0]]), target=torch.tensor([[0.1, 0.0, 0.0]]))
    label = keyframe(aside)["label"]
    torch.testing.assert_close(
        Camera.from_label(torch.tensor([label])).cam_to_world, aside.cam_to_world
    )
    path = trajectories.keyframes({"keyframes": [angles, {"label": label}]}, frames=2)
    torch.testing.assert_close(path[1].cam_to_world, aside.cam_to_world, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("yaw", [-175.0, 90.0, 350.0, 530.0])
def test_a_path_takes_the_shorter_way_round(yaw: float) -> None:
    last = {"yaw": 535.0}
    found = keyframe(Camera.orbit(math.radians(yaw), 0.0, 1.0, 12.0), [last])["yaw"]
    assert abs(found - last["yaw"]) <= 180
    assert math.cos(math.radians(found - yaw)) == pytest.approx(1.0)


def test_a_path_takes_the_shorter_way_past_a_camera_that_looks_aside() -> None:
    """Its label holds no whole turns; three quarters round, and on."""
    path: list[dict[str, Any]] = []
    for yaw, aside in (
        (0, False),
        (120, False),
        (240, False),
        (300, True),
        (360, False),
        (400, True),
        (410, False),
    ):
        camera = Camera.orbit(math.radians(yaw), 0.0, 1.0, 12.0)
        if aside:
            camera = Camera.look_at(camera.position, torch.tensor([[0.0, 0.02, 0.0]]))
        path.append(keyframe(camera, path))
        assert ("label" in path[-1]) == aside
    assert [round(key["yaw"]) for key in path if "yaw" in key] == [0, 120, 240, 360, 410]
    cameras = trajectories.keyframes(path, frames=411)
    steps = torch.rad2deg(torch.diff(cameras.yaw_pitch()[0])).remainder(360)
    assert float(steps.max()) < 5  # never back, never past a whole turn


@pytest.mark.parametrize(
    ("kind", "reach"), [("gaussian", 0.8), ("uniform", 0.4), ("spherical", 0.4)]
)
def test_prior_cameras_span_the_prior(kind: Any, reach: float) -> None:
    poses = PoseDistribution(kind=kind, yaw_mean=0.1, yaw_std=0.4, pitch_mean=-0.1, radius=2.0)
    yaw, pitch = prior_cameras(poses).yaw_pitch()
    torch.testing.assert_close(yaw, 0.1 + reach * torch.linspace(-1, 1, 5))
    torch.testing.assert_close(pitch, torch.full((5,), -0.1), atol=2e-3, rtol=0.0)


# ---------------------------------------------------------------- limits of yaw and pitch
LIMITS = PoseLimits.of(PoseDistribution(yaw_mean=0.1, yaw_std=0.3, pitch_std=0.155))


@given(offset=st.floats(-3, 3), reach=st.floats(0.05, 3))
def test_the_limit_is_soft(offset: float, reach: float) -> None:
    """Free inside, never beyond the reach, monotonic, and without a kink."""
    bent, step = soft_clamp(offset, reach), 1e-4
    assert abs(bent) <= reach
    if abs(offset) <= 0.8 * reach:
        assert bent == offset
    rises = [soft_clamp(offset + i * step, reach) - bent for i in (1, -1)]
    assert 0 <= rises[0] <= 1.001 * step and -1.001 * step <= rises[1] <= 0
    assert abs(rises[0] + rises[1]) < step**2 * 10 / reach


@pytest.mark.parametrize(
    ("yaw", "pitch"), [(2.0, 0.0), (-2.0, 1.2), (3.1, -1.5), (0.1, 1.57), (-3.1, 0.0)]
)
def test_limited_cameras_look_from_the_trained_range(yaw: float, pitch: float) -> None:
    camera = Camera.orbit(yaw, pitch, 1.5, 20.0)
    new_yaw, new_pitch = (float(angle) for angle in LIMITS.limited(camera).yaw_pitch())
    assert abs(new_yaw - 0.1) <= 0.6001 and abs(new_pitch) <= 0.311
    torch.testing.assert_close(
        LIMITS.limited(camera).cam_to_world,
        Camera.orbit(new_yaw, new_pitch, 1.5).cam_to_world,
        atol=1e-3,
        rtol=0.0,
    )
    if abs(yaw - 0.1) > 0.6:  # on the nearer side, nearly at the end
        assert (new_yaw - 0.1) * math.remainder(yaw - 0.1, math.tau) > 0.5 * 0.6
    near = LIMITS.reined_in(camera)
    for angle, expected in zip(LIMITS.limited(near).yaw_pitch(), (new_yaw, new_pitch), strict=True):
        assert float(angle) == pytest.approx(expected, abs=0.03)
    again = LIMITS.reined_in(near).cam_to_world
    torch.testing.assert_close(again, near.cam_to_world, atol=1e-3, rtol=0.0)


def test_cameras_in_the_trained_range_are_left_alone() -> None:
    aside = Camera.look_at(torch.tensor([[0.3, -0.1, 0.95]]), torch.tensor([[0.05, 0.02, 0.0]]))
    for camera in (Camera.orbit(0.5, 0.2), aside):
        assert LIMITS.contains(camera) and LIMITS.reined_in(camera) is camera
    beyond = LIMITS.limited(aside.turned(2.0))  # keeps looking past the subject
    turned = Camera.orbit(float(beyond.yaw_pitch()[0] - aside.yaw_pitch()[0])).cam_to_world
    torch.testing.assert_close(
        beyond.cam_to_world[:, :3], turned[:, :3, :3] @ aside.cam_to_world[:, :3]
    )
    whole_turn = PoseLimits.of(PoseDistribution(kind="uniform", yaw_std=math.pi))
    assert whole_turn.contains(Camera.orbit(3.1))


# ---------------------------------------------------------------- nonsense
NAMES = ("mode", "mix_from", *BOUNDS)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.floats()),
    st.sampled_from([10**400, -(10**400)]),
)


@given(
    controls=st.dictionaries(st.sampled_from(NAMES), ANYTHING),
    width=st.integers(),
    height=st.integers(),
)
def test_nonsense_controls_make_a_view(controls: dict[str, Any], width: int, height: int) -> None:
    view = view_from(controls, replace(FRONT, width=width, height=height), UNTRAINED)
    assert view is not None
    assert view.mode in MODES and 0.25 <= view.aspect <= view.canvas_aspect <= 4
    made = {**vars(view.choice), **vars(view.sampling), "side": view.side}
    for name, (low, high) in {**BOUNDS, "mix_from": (0, CONFIG.networks.inr_blocks)}.items():
        assert type(made[name]) is type(low) and low <= made[name] <= high


def test_values_in_range_are_kept() -> None:
    photo = PhotoSubject(UNTRAINED, UNTRAINED.map(UNTRAINED.sample_latents(1, 0)))
    controls = {
        "mode": "depth", "shape_seed": 3, "appearance_seed": 4, "psi_shape": 0.5,
        "psi_appearance": 1.2, "mix_seed": 5, "mix_from": 1, "blend": 0.25, "side": 48,
        "coarse": 7, "fine": 9, "photo": photo,
    }  # fmt: skip
    view = view_from(controls, replace(FRONT, width=600), UNTRAINED)
    assert view is not None
    assert view.choice == Choice(3, 4, 0.5, 1.2, 5, 1, 0.25, photo)
    assert (view.mode, view.side, view.sampling, view.aspect) == ("depth", 48, Sampling(7, 9), 2.0)


# ---------------------------------------------------------------- subjects
def test_equal_seeds_are_the_command_lines_subject(generator: Generator) -> None:
    found, styles = Subjects(generator).find(
        Choice(shape_seed=5, appearance_seed=5, psi_shape=0.7, psi_appearance=0.7)
    )
    expected = generator.map(generator.sample_latents(1, 5), 0.7)
    assert found is generator
    torch.testing.assert_close(styles.shape, expected.shape)
    torch.testing.assert_close(styles.appearance, expected.appearance)


def test_mixing_changes_the_later_blocks_alone(generator: Generator) -> None:
    subjects = Subjects(generator)
    _, plain = subjects.find(Choice(1, 2))
    _, other = subjects.find(Choice(1, 3))
    _, mixed = subjects.find(Choice(1, 2, mix_seed=3, mix_from=1))
    assert isinstance(mixed.appearance, list)
    for got, expected in zip(
        (mixed.shape, *mixed.appearance),
        (plain.shape, plain.appearance, other.appearance),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_blending_goes_from_one_model_to_the_other(generator: Generator) -> None:
    other = pretrained.build_generator(generator.config)
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        other.inr.to_rgb[0].weight.add_(1.0)
    subjects = Subjects(generator, other)
    weights = [
        subjects.find(Choice(blend=amount))[0].inr.to_rgb[0].weight for amount in (0.0, 0.5, 1.0)
    ]
    for weight, shift in zip(weights, (0.0, 0.5, 1.0), strict=True):
        torch.testing.assert_close(weight, generator.inr.to_rgb[0].weight + shift)
    with pytest.raises(UserError, match="blended"):
        Subjects(generator, Generator(CONFIG))


def test_few_blends_are_kept(generator: Generator) -> None:
    subjects = Subjects(generator, copy.deepcopy(generator))
    made = [weakref.ref(subjects.find(Choice(blend=i / 20))[0]) for i in range(1, 21)]
    gc.collect()
    assert sum(blend() is not None for blend in made) == 8


def test_a_photos_subject_can_be_changed_and_is_forgotten(generator: Generator) -> None:
    subjects, w = Subjects(generator), generator.map(generator.sample_latents(1, 9))
    tuned = copy.deepcopy(generator)
    photo = PhotoSubject(tuned, replace(w, appearance=[w.appearance, w.appearance + 1]))
    found, whole = subjects.find(Choice(photo=photo))
    assert found is tuned
    torch.testing.assert_close(whole.shape, w.shape)
    torch.testing.assert_close(whole.appearance[1], w.appearance + 1)
    _, mean = subjects.find(Choice(photo=photo, psi_shape=0.0, psi_appearance=0.0))
    torch.testing.assert_close(mean.shape[0], generator.shape_mean)
    torch.testing.assert_close(mean.appearance[1][0], generator.appearance_mean)
    subjects.forget()
    kept = weakref.ref(photo)
    del tuned, photo, found
    gc.collect()
    assert kept() is None


def test_subjects_are_made_ready_once_and_follow_their_choice_and_the_weights(
    generator: Generator,
) -> None:
    generator = copy.deepcopy(generator)
    subjects = Subjects(generator)
    choices = [
        Choice(1), Choice(2), Choice(1, psi_shape=0.5), Choice(1, mix_seed=3, mix_from=1),
    ]  # fmt: skip
    camera = Camera.orbit(0.3)

    def shows_the_choice(choice: Choice) -> bool:
        _, ready = subjects.ready(choice)
        (found, styles), image = subjects.find(choice), generator.render(ready, camera, 16).image
        assert isinstance(ready, Prepared) and found is ready.generator
        return torch.allclose(generator.render(styles, camera, 16).image, image, atol=1e-3)

    assert all(map(shows_the_choice, choices))
    assert len({id(subjects.ready(choice)[1]) for choice in choices}) == len(choices)
    assert subjects.ready(Choice(1))[1] is subjects.ready(Choice(1))[1]
    before = generator.render(subjects.ready(choices[0])[1], camera, 16).image
    with torch.no_grad():
        generator.inr.to_rgb[0].weight.mul_(-1)
        generator.nerf.density.bias.add_(0.1)
    assert all(map(shows_the_choice, choices))
    after = generator.render(subjects.ready(choices[0])[1], camera, 16).image
    assert (after - before).abs().max() > 0.1


# ---------------------------------------------------------------- images in steps
def test_coarse_images_are_close_to_the_full_ones(generator: Generator) -> None:
    styles, camera = generator.map(generator.sample_latents(1, 0)), Camera.orbit(0.3)
    sampling, speed = Sampling(6, 6), RenderSpeed()
    full = generator.render(styles, camera, (64, 80), sampling=sampling)
    out = preview(generator, generator.prepare(styles), camera, (64, 80), sampling, speed)
    assert (out.image - full.image).square().mean().sqrt() < 0.02
    assert speed.rays_within(1.0, sampling) > 0


@pytest.mark.parametrize("seconds_per_ray", [1e-9, 1e-4, 1.0])
def test_strips_are_the_image(generator: Generator, seconds_per_ray: float) -> None:
    speed, sampling = RenderSpeed(), Sampling(4, 3)
    speed.record(sampling, 1, seconds_per_ray)
    styles, camera = generator.map(generator.sample_latents(1, 0)), Camera.orbit(0.3)
    steps = strips(generator, styles, camera, (24, 40), sampling, speed)
    count = len(list(steps))
    out = run_all(strips(generator, styles, camera, (24, 40), sampling, RenderSpeed()))
    expected = generator.render(styles, camera, (24, 40), sampling=sampling)
    torch.testing.assert_close(out.image, expected.image)
    torch.testing.assert_close(out.depth, expected.depth)
    assert (count == 1) == (seconds_per_ray < 1e-5)


def a_view(**changes: Any) -> Any:
    view = view_from({"side": 128}, FRONT, UNTRAINED)
    assert view is not None
    return replace(view, **changes)


def test_coarse_images_are_as_large_as_time_allows() -> None:
    view, sides = a_view(), []
    for seconds in (1e-9, 2e-6, 6e-6, 1e-5, 2.5e-5, 1.0):
        speed = RenderSpeed()
        speed.record(preview_sampling(view.sampling), 100, 100 * seconds)
        sides.append(preview_side(view, speed))
        assert sides[-1] ** 2 * seconds <= rendering.FRAME_SECONDS or sides[-1] == 24
    assert sides == sorted(sides, reverse=True) and len(set(sides)) > 3
    assert sides[0] == 128 and sides[-1] == 24


def test_coarse_images_do_not_flicker_between_two_sizes() -> None:
    view, speed = a_view(), RenderSpeed()
    speed.record(
        preview_sampling(view.sampling), 1000, rendering.FRAME_SECONDS * 1000 / (64**2 * 1.1)
    )
    assert preview_side(view, speed, last=64) == 64  # it fits
    assert preview_side(view, speed, last=51) == 51  # but is not changed to without some reserve


@pytest.mark.parametrize(
    ("side", "coarse", "sides"),
    [(128, 24, [32, 64, 128]), (128, 64, [128]), (64, 64, [64]), (20, 20, [20])],
)
def test_finer_sides(side: int, coarse: int, sides: list[int]) -> None:
    assert finer_sides(side, coarse) == sides


@pytest.mark.parametrize(("width", "aspect"), [(300, 1.0), (600, 2.0), (150, 0.5)])
def test_images_stay_in_place_when_they_are_refined(width: int, aspect: float) -> None:
    """A square image, centred across or along the window."""
    view = view_from({"side": 96}, replace(FRONT, width=width), a_generator("endless"))
    assert view is not None
    shapes, middles = set(), []
    for side in (24, 48, 96):
        height, across = view.size(side)
        pixels = np.zeros((height, across, 3), dtype=np.uint8)
        pixels[: height // 2, : across // 2] = 255
        canvas = on_canvas(pixels, view, grey=0)
        shapes.add(canvas.shape)
        lit = np.argwhere(canvas[..., 0] > 127)
        middles.append(lit.mean(axis=0))
    shape = (96, round(96 * aspect), 3) if aspect >= 1 else (round(96 / aspect), 96, 3)
    assert shapes == {shape}
    assert np.ptp(middles, axis=0).max() < 1


@pytest.mark.parametrize(("width", "size"), [(600, (50, 100)), (150, (100, 50))])
def test_a_separate_background_fills_the_window(width: int, size: tuple[int, int]) -> None:
    pose = replace(FRONT, width=width)
    kinds = {"plain": size, "field": size, "endless": (50, 50)}
    views = [view_from({}, pose, a_generator(kind)) for kind in kinds]
    assert [view and view.size(50) for view in views] == [*kinds.values()]


def test_a_narrow_window_shows_the_whole_square() -> None:
    """The field of view spans the shorter side: the square in the middle is the square image."""
    view = view_from({}, replace(FRONT, width=150), a_generator("plain"))
    assert view is not None
    tall = view.rendered_camera.rays(20, 10).directions.unflatten(1, (20, 10))
    square = Camera.orbit(0.0).rays(10, 10).directions.unflatten(1, (10, 10))
    torch.testing.assert_close(tall[:, 5:15], square)


def a_generator(background: Any) -> Generator:
    return Generator(tiny.generator(background=background))


def test_modes_show_different_images(generator: Generator) -> None:
    out = generator.render(generator.sample_latents(1, 0), Camera.orbit(0.3), 16)
    image, aux, depth = (pixels_of(out, mode) for mode in ("image", "NeRF image", "depth"))
    assert image.shape == aux.shape == depth.shape == (16, 16, 3)
    assert not np.array_equal(image, aux) and not np.array_equal(image, depth)


# ---------------------------------------------------------------- the worker
@contextmanager
def a_worker() -> Iterator[Worker]:
    worker = Worker("a test's worker")
    yield worker
    worker.close()
    assert not threads("a test's worker")


def test_the_newest_wish_wins() -> None:
    done: list[int] = []
    hold, started, finished = threading.Event(), threading.Event(), threading.Event()

    def wish(number: int) -> Steps[None]:
        if number == 0:
            started.set()
            assert hold.wait(10)
        done.append(number)
        yield 0.0
        done.append(number)
        if number == 99:
            finished.set()

    with a_worker() as worker:
        worker.submit("me", wish(0))
        assert started.wait(10)
        for number in range(1, 100):
            worker.submit("me", wish(number))
        hold.set()
        assert finished.wait(10)
    # the first was at work, its second step and all others are passed over
    assert done == [0, 99, 99]


def test_owners_take_turns_and_faults_stay_with_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    hold, finished = threading.Event(), threading.Event()

    def wish(name: str) -> Steps[None]:
        assert hold.wait(10)
        for i in range(3):
            if name == "fault" and i == 1:
                raise RuntimeError("this one fails")
            done.append(name)
            yield 0.0
        if name == "b":
            finished.set()

    with a_worker() as worker:
        for name in ("a", "fault", "b"):
            worker.submit(name, wish(name))
        hold.set()
        assert finished.wait(10)
    assert done == ["a", "fault", "b", "a", "b", "a", "b"]
    assert "this one fails" in capsys.readouterr().err


def test_steps_wait_and_can_be_forgotten() -> None:
    times: list[float] = []
    finished = threading.Event()

    def wish() -> Steps[None]:
        times.append(time.monotonic())
        yield 0.2
        times.append(time.monotonic())
        finished.set()

    remembered: list[str] = []
    begun = threading.Event()

    def forgotten() -> Steps[None]:
        begun.set()
        yield 0.1
        remembered.append("forgotten")

    with a_worker() as worker:
        worker.submit("other", forgotten())
        assert begun.wait(10)
        worker.forget("other")
        worker.submit("me", wish())
        assert finished.wait(10)
        assert times[1] - times[0] >= 0.2
        assert remembered == []


# ---------------------------------------------------------------- files
def test_uploads_are_central_squares() -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:20], pixels[:, 20:30] = (255, 0, 0), (0, 0, 255)
    image = read_upload("two.png", png(Image.fromarray(pixels)), 4)
    assert image.shape == (1, 3, 4, 4)
    for column, colour in ((0, [1.0, -1.0, -1.0]), (3, [-1.0, -1.0, 1.0])):
        expected = torch.tensor(colour)
        torch.testing.assert_close(image[0, :, 0, column], expected, atol=0.2, rtol=0.0)


def test_bad_uploads_are_named() -> None:
    for content in (
        b"",
        b"no image",
        png(Image.new("RGB", (8, 8)))[:45],
        bytes(LONGEST_FILE + 1),
    ):
        with pytest.raises(UserError, match=r"^cat\.png: "):
            read_upload("cat.png", content, 8)


def test_meshes_become_glb() -> None:
    back = trimesh.load(
        io.BytesIO(glb(trimesh.creation.icosphere(subdivisions=1))), file_type="glb", force="mesh"
    )
    assert len(back.faces) == 80


# ---------------------------------------------------------------- a real server, raw clients
def threads(prefix: str) -> list[str]:
    """Names of the threads that begin so."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(prefix)]


@pytest.fixture(scope="module")
def viewer(generator: Generator) -> Iterator[Viewer]:
    with Viewer(generator, port=0, name="shared") as viewer:
        yield viewer
    assert threads("viewer shared") == []


@contextmanager
def connected(
    generator: Generator, camera: Camera | None = None, **options: Any
) -> Iterator[tuple[Client, Session, Viewer]]:
    """A client at rest, its session and its viewer, which is its own."""
    with Viewer(generator, port=0, **options) as viewer, Client(viewer.url, camera) as client:
        client.rest()
        yield client, viewer.sessions[0], viewer


def subject_of(generator: Generator, seed: int, camera: Camera) -> Subject:
    return Subject(generator.map(generator.sample_latents(1, seed)), camera)


def assert_image(
    image: np.ndarray,
    generator: Generator,
    camera: Camera,
    side: int = SIDE,
    seed: int = 0,
    atol: int = 1,
) -> None:
    """The image is that of a seed's subject with the default ψ."""
    out = generator.render(generator.sample_latents(1, seed), camera, side, psi=0.7)
    assert_close(image, pixels_of(out, "image"), atol)


def assert_shown(client: Client, generator: Generator, subject: Subject) -> None:
    out = generator.render(subject.styles, subject.camera, SIDE)
    assert_close(client.image, pixels_of(out, "image"))


def assert_close(image: np.ndarray, expected: np.ndarray, atol: int = 1) -> None:
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=atol)


def test_a_client_is_shown_its_view(viewer: Viewer, generator: Generator) -> None:
    front, aside = Camera.orbit(0.0), Camera.orbit(-0.4, 0.2, fov=20.0)
    with Client(viewer.url, Camera.orbit(0.45)) as client:
        client.rest()
        assert_image(client.image, generator, Camera.orbit(0.45))
        client.look(aside)
        client.rest()
        assert_image(client.image, generator, aside)
        client.set("Shape seed", 3)
        client.set("Color seed", 3)
        client.look(front)
        client.rest()
        assert_image(client.image, generator, front, seed=3)
        settings = {"Mixed seed": 8, "Mix from": 1, "Pixels": 64}
        for label, value in (settings | {"Coarse samples": 6, "Fine samples": 2}).items():
            client.set(label, value)
        client.rest()
        first, second = generator.sample_latents(1, 3), generator.sample_latents(1, 8)
        mixed = mix_styles(generator, first, replace(first, appearance=second.appearance), 1, 0.7)
        out = generator.render(mixed, front, 64, sampling=Sampling(6, 2))
        assert_close(client.image, pixels_of(out, "image"))


@pytest.mark.parametrize(("resolution", "side"), [(8, 32), (64, 256), (128, 256), (512, 512)])
def test_images_are_refined_to_256_pixels(generator: Generator, resolution: int, side: int) -> None:
    """To four times the resolution if that is less, and never below the resolution."""
    model = copy.copy(generator)
    model.config = replace(generator.config, resolution=resolution)
    with Viewer(model, port=0) as viewer, Client(viewer.url):
        until(lambda: bool(viewer.sessions))
        assert viewer.sessions[0].controls.values()["side"] == side


def test_the_first_subject_may_be_a_seed(generator: Generator) -> None:
    with connected(generator, subject=5) as (client, session, _):
        assert_image(client.image, generator, Camera.orbit(0.0), seed=5)
        values = session.controls.values()
        assert (values["shape_seed"], values["appearance_seed"]) == (5, 5)


def test_yaw_and_pitch_are_limited_unless_the_switch_is_off(generator: Generator) -> None:
    far = Camera.orbit(1.5, -0.7)
    limited = PoseLimits.of(generator.config.poses).limited(far)
    with connected(generator) as (client, session, _):
        client.set("Pixels", 16)
        client.look(far)
        client.rest()
        assert_image(client.image, generator, limited, 16, atol=4)
        pulled = camera_from_viser(session.pose, 0.12)  # the browser's camera follows
        assert pulled is not None and 0.6 < float(pulled.yaw_pitch()[0]) < 0.8
        client.set("Limit angles", False)
        client.look(far)
        client.rest()
        assert_image(client.image, generator, far, 16)
        client.set("Limit angles", True)
        until(lambda: session.pose.position[0] < 0.9)
        client.rest()
        assert_image(client.image, generator, limited, 16, atol=4)


def test_a_photo_from_outside_the_trained_range_lifts_the_limit(generator: Generator) -> None:
    subject = subject_of(generator, 9, Camera.orbit(1.0))
    with connected(generator, subject=subject) as (client, session, _):
        assert session.controls.limit.value is False
        assert_shown(client, generator, subject)


def test_buttons_change_camera_subject_and_path(generator: Generator) -> None:
    with connected(generator, Camera.orbit(0.5, 0.2)) as (client, seen, _):
        client.set("Field of view", 20.0)
        until(lambda: math.degrees(seen._client.camera.fov) == pytest.approx(20.0))
        client.set("Actions", "Reset view")
        until(lambda: seen.pose.position == pytest.approx((0.0, 0.0, 1.0), abs=1e-6))
        assert math.degrees(seen.pose.fov) == pytest.approx(12.0)
        before = seen.controls.values()
        client.set("Actions", "Random")
        seeds = ("shape_seed", "appearance_seed")
        until(lambda: all(seen.controls.values()[name] != before[name] for name in seeds))
        for count in (1, 2):
            client.set("Path", "Add view")
            until(lambda count=count: seen.controls.path.label == f"Path ({count})")
        client.set("Path", "Clear")
        until(lambda: seen.controls.path.label == "Path")
        client.set("Path", "Save")  # an empty path is an error, which is shown
        client.wait_for(lambda client: "the camera path is empty" in notices(client))


def notices(client: Client) -> str:
    """The texts of all notifications."""
    shown = of_kind(client, "NotificationShowMessage")
    return " ".join(str(message["props"]) for message in shown)


@pytest.mark.parametrize(
    ("window", "side", "size"),
    [
        ((1280, 720), 720, (720, 1280)),
        ((300, 200), 256, (256, 384)),
        ((390, 844), 390, (844, 390)),
        ((16000, 16000), 2048, (2048, 2048)),
    ],
)
def test_images_are_saved_as_large_as_the_window(
    window: tuple[int, int], side: int, size: tuple[int, int]
) -> None:
    """And at least 256 pixels along the shorter side, and not without limit."""
    width, height = window
    pose = replace(FRONT, width=width, height=height)
    view, square = (view_from({}, pose, a_generator(kind)) for kind in ("plain", "endless"))
    assert view is not None and square is not None
    assert saved_size(view) == size
    assert saved_size(square) == (side, side)


def http(url: str, request: str) -> bytes:
    """All that a server answers to an HTTP request."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as browser:
        browser.sendall(f"{request}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: browser.recv(2**16), b""))


def test_the_page_has_a_title_and_a_head_request_its_answer(
    generator: Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    with Viewer(generator, port=0, name="cats & dogs") as viewer:
        head = http(viewer.url, "HEAD / HTTP/1.1")  # first: viser mutes its log at the first GET
        refused = http(viewer.url, "POST / HTTP/1.1")
        page = http(viewer.url, "GET / HTTP/1.1")
        zipped = http(viewer.url, "GET / HTTP/1.1\r\nAccept-Encoding: gzip")
        missing = http(viewer.url, "HEAD /nowhere HTTP/1.1")
        with Client(viewer.url) as client:
            client.rest()
    headers, _, body = page.partition(b"\r\n\r\n")
    assert (
        b"<title>cats &amp; dogs \xc2\xb7 cips3d</title>" in body and b"Viser</title>" not in body
    )
    assert f"Content-Length: {len(body)}".encode() in headers
    assert gzip.decompress(zipped.partition(b"\r\n\r\n")[2]) == body
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert missing.startswith(b"HTTP/1.1 404 ") and missing.endswith(b"\r\n\r\n")
    assert refused == b""
    assert capfd.readouterr().err == ""


ASIDE = Camera.look_at(torch.tensor([[0.3, -0.1, 0.95]]), torch.tensor([[0.05, 0.02, 0.0]]))
ROLLED = Camera.look_at(torch.tensor([[0.3, -0.1, 0.95]]), up=torch.tensor([[0.5, 1.0, 0.0]]))


@pytest.mark.parametrize("camera", [Camera.orbit(0.3, -0.1), ASIDE, ROLLED])
def test_a_given_subject_is_shown_from_its_camera(camera: Camera, generator: Generator) -> None:
    subject = subject_of(generator, 9, camera)
    with connected(generator, subject=subject) as (client, _, _):
        assert_shown(client, generator, subject)


def test_a_photos_subject_and_random_ones_have_a_truncation_each(generator: Generator) -> None:
    subject = subject_of(generator, 9, Camera.orbit(0.0))
    with connected(generator, subject=subject) as (client, session, _):

        def psi() -> tuple[float, float]:
            values = session.controls.values()
            return values["psi_shape"], values["psi_appearance"]

        assert psi() == (1.0, 1.0)
        for label, value, expected in (
            ("Shape ψ", 0.9, (0.9, 1.0)),
            ("Actions", "Random", (0.7, 0.7)),
            ("Photo's subject", True, (0.9, 1.0)),
            ("Photo's subject", False, (0.7, 0.7)),
        ):
            client.set(label, value)
            until(lambda expected=expected: psi() == expected)


def test_a_photo_is_opened_and_its_subject_found(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the inversion itself, of a step of each kind, and the discriminator's features."""
    discriminator = ProgressiveDiscriminator(
        DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    ).requires_grad_(False)
    found: list[Inversion] = []

    def invert(*args: Any, **options: Any) -> Inversion:
        found.append(
            editing_invert.invert(*args, **options, config=InversionConfig(steps=(1, 1, 1, 1)))
        )
        return found[-1]

    monkeypatch.setattr(session, "invert", invert)
    with connected(generator, discriminator=discriminator) as (client, _, viewer):
        before = client.image
        upload(client, "grey.png", 50)
        until(lambda: bool(found))
        client.rest()
        assert differs(client.image, before)
        assert_shown(client, found[0].generator, Subject(found[0].styles, found[0].camera))
        controls = viewer.sessions[0].controls
        until(lambda: controls.reach.visible)  # beside the photo, what was reached
        assert controls.photo.visible and int(controls.photo.image.max()) == 50
        assert "reached: " in controls.reach.content
        controls.show_inversion.value = False
        until(lambda: not controls.photo.visible and not controls.reach.visible)


def test_ten_clients_at_once_have_their_own_views(viewer: Viewer, generator: Generator) -> None:
    cameras = [Camera.orbit(0.05 * i) for i in range(10)]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(viewer.url, camera)) for camera in cameras]
        for step, client in itertools.product(range(5), clients):
            client.look(Camera.orbit(0.05 * step))
        for client, camera in zip(clients, cameras, strict=True):
            client.look(camera)
        for client, camera in zip(clients, cameras, strict=True):
            client.rest(silence=0.5)
            assert_image(client.image, generator, camera)
        assert len(viewer.sessions) == 10
    until(lambda: not viewer.sessions)


def test_clients_that_vanish_do_no_harm(viewer: Viewer, generator: Generator) -> None:
    with Client(viewer.url) as stays:
        for _ in range(3):
            gone = Client(viewer.url, Camera.orbit(0.3))
            gone.wait_for(lambda client: client.images > 0)
            gone.set("Pixels", 1024)  # minutes of work
            gone.look(Camera.orbit(0.2))
            gone.vanish()
        stays.look(Camera.orbit(0.4))
        stays.rest()
        assert_image(stays.image, generator, Camera.orbit(0.4))
        until(lambda: len(viewer.sessions) == 1)


def test_nonsense_on_the_wire_does_no_harm(viewer: Viewer, generator: Generator) -> None:
    with Client(viewer.url) as client:
        client.rest()
        shown = client.images
        for wxyz in ([0, 0, 0, 0], [math.nan] * 4, [1e308] * 4, [1, 0, 0]):
            client.look_raw(wxyz, [0.0, 0.0, 1.0], 0.2)
        for position, fov in (
            ([0, 0, 0], 0.2),
            ([math.inf, 0, 1], 0.2),
            ([0, 0, 1], math.nan),
            ([1, 2, 3, 4], 0.2),
        ):
            client.look_raw([0, 1, 0, 0], position, fov)
        for label in client.controls:
            for value in (math.nan, -math.inf, 2**63, -5, "nonsense", None, [1, 2], {}):
                if label != "Open a photo":
                    client.set(label, value)
        client.send("NoSuchMessage")
    with Client(viewer.url) as client:
        client.send_bytes(b"\xff\x00 nonsense")
    with Client(viewer.url, Camera.orbit(0.2)) as client:
        client.rest()
        assert_image(client.image, generator, Camera.orbit(0.2))
    assert shown > 0


def test_nobody_can_open_a_tunnel_to_the_public(viewer: Viewer) -> None:
    assert viewer._server.request_share_url() is None
    with Client(viewer.url) as client:
        client.rest()
        client.send("ShareUrlRequest")
        time.sleep(0.2)
        assert not of_kind(client, "ShareUrlUpdated")


def files(client: Client) -> dict[str, bytes]:
    """What has come to be saved, by name."""
    starts, parts = (of_kind(client, f"FileTransfer{kind}") for kind in ("StartDownload", "Part"))
    found = {}
    for start in starts:
        uuid = start["transfer_uuid"]
        content = [part["content"] for part in parts if part["transfer_uuid"] == uuid]
        if len(content) == start["part_count"]:
            found[start["filename"]] = b"".join(content)
    return found


def of_kind(client: Client, kind: str) -> list[dict[str, Any]]:
    return [message for message in client.messages if message["type"] == kind]


def saved(client: Client, button: str, folder: Path, *names: str) -> list[Path]:
    """The files of those names that come when a button is pressed, in a folder."""
    client.set("Save", button)
    client.wait_for(lambda client: set(names) <= files(client).keys())
    for name in names:
        (folder / name).write_bytes(files(client)[name])
    return [folder / name for name in names]


def assert_shown_is_saved(client: Client, folder: Path) -> None:
    """A subject that another model than the viewer's shows is saved with that."""
    subject, model = saved(client, "Subject", folder, "subject.safetensors", "model.safetensors")
    generator = pretrained.load(model)
    assert_shown(client, generator, Subject.load(subject, generator))


def busy(hold: threading.Event) -> Steps[None]:
    """As with other clients' images."""
    assert hold.wait(20)
    yield 0.0


def test_the_image_that_is_saved_is_the_one_that_was_seen_then(
    viewer: Viewer, generator: Generator, tmp_path: Path
) -> None:
    hold = threading.Event()
    with Client(viewer.url, Camera.orbit(0.45)) as client:
        client.rest()
        (seen,) = viewer.sessions
        viewer._shared.workers["images"].submit("another", busy(hold))
        client.set("Save", "Image")
        client.look(Camera.orbit(-0.5))
        until(lambda: seen.pose.position[0] < 0)
        hold.set()
        client.wait_for(lambda client: "view.png" in files(client))
        (tmp_path / "view.png").write_bytes(files(client)["view.png"])
    image = np.asarray(Image.open(tmp_path / "view.png"))
    assert_image(image, generator, Camera.orbit(0.45), 256)  # the window has 128


def test_frusta_are_the_cameras(viewer: Viewer, generator: Generator) -> None:
    with Client(viewer.url) as client:
        client.rest()
        client.set("Show cameras", True)
        client.set("Show", "mesh")
        client.wait_for(
            lambda client: all(
                len(of_cameras(client, kind)) == 5 for kind in ("CameraFrustumMessage", *PLACES)
            )
        )
        cameras = prior_cameras(generator.config.poses)
        for message, (wxyz, position), fov in zip(
            of_cameras(client, "CameraFrustumMessage").values(),
            [viser_pose(cameras[i]) for i in range(5)],
            cameras.fov.deg2rad(),
            strict=True,
        ):
            assert (
                message["props"]["fov"] == pytest.approx(float(fov))
                and message["props"]["aspect"] == 1
            )
            # as its client has it: half the height at the far end, for a frustum of that volume
            depth = message["props"]["scale"] / (math.tan(float(fov) / 2) ** 2 / 3) ** (1 / 3)
            assert depth == pytest.approx(0.5 * float(np.linalg.norm(position)))
            placed, turned = (of_cameras(client, kind)[message["name"]] for kind in PLACES)
            np.testing.assert_allclose(placed["position"], position, atol=1e-6)
            np.testing.assert_allclose(turned["wxyz"], wxyz, atol=1e-6)


PLACES = ("SetPositionMessage", "SetOrientationMessage")


def of_cameras(client: Client, kind: str) -> dict[str, dict[str, Any]]:
    """The newest message of that kind for each frustum."""
    found = {message["name"]: message for message in of_kind(client, kind)}
    return {name: message for name, message in found.items() if name.startswith("/cameras/")}


@pytest.fixture
def other(generator: Generator) -> Generator:
    """The generator with other colours."""
    changed = copy.deepcopy(generator)
    changed.inr.to_rgb[0].weight.add_(1.0)
    return changed


def test_a_mesh_is_saved_and_a_subject_without_the_model_that_was_given(
    viewer: Viewer, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meshed: list[torch.Tensor] = []

    def extract_mesh(generator: Generator, styles: Any, resolution: int) -> trimesh.Trimesh:
        meshed.append(styles.shape)
        return trimesh.creation.icosphere(subdivisions=1)

    monkeypatch.setattr(transfer, "extract_mesh", extract_mesh)
    with Client(viewer.url) as client:
        client.rest()
        saved(client, "Subject", tmp_path, "subject.safetensors")
        (mesh,) = saved(client, "Mesh", tmp_path, "subject.glb")
        assert len(trimesh.load(mesh, force="mesh").faces) == 80
        assert files(client).keys() == {"subject.safetensors", "subject.glb"}
    torch.testing.assert_close(meshed, [generator.map(generator.sample_latents(1, 0), 0.7).shape])


def test_a_file_is_of_the_subject_that_was_shown_though_another_photo_came(
    generator: Generator, other: Generator, tmp_path: Path
) -> None:
    first, second = (subject_of(generator, seed, Camera.orbit(0.2)) for seed in (9, 10))
    hold = threading.Event()
    with connected(generator, subject=first) as (client, seen, viewer):
        viewer._shared.workers["meshes"].submit("another", busy(hold))
        client.set("Save", "Subject")
        until(
            lambda: (
                (seen._client.client_id, "subject file") in viewer._shared.workers["meshes"]._tasks
            )
        )
        seen._show_inversion(generator, second.styles, second.camera)
        hold.set()
        client.wait_for(lambda client: "subject.safetensors" in files(client))
        (tmp_path / "a.safetensors").write_bytes(files(client)["subject.safetensors"])
    torch.testing.assert_close(
        Subject.load(tmp_path / "a.safetensors", generator).styles.shape, first.styles.shape
    )


def test_the_mesh_of_a_subject_that_is_chosen_again_is_shown_again(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    meshed: list[tuple[float, int]] = []

    def extract_mesh(generator: Generator, ready: Prepared, resolution: int) -> trimesh.Trimesh:
        meshed.append((float(ready.styles.shape[0, 0]), resolution))
        if (
            len(meshed) == 3
        ):  # the coarse mesh of another subject: before its fine one the first is chosen again
            client.set("Shape seed", 0)
            until(lambda: seen.controls.values()["shape_seed"] == 0)
        return trimesh.creation.icosphere(subdivisions=1)

    monkeypatch.setattr(session, "extract_mesh", extract_mesh)
    monkeypatch.setattr(session, "MESH_STILL_SECONDS", 0.0)
    with connected(generator) as (client, seen, _):
        client.set("Show", "mesh")
        until(lambda: len(meshed) == 2 and seen._meshed is not None)
        client.set("Shape seed", 5)
        until(lambda: len(meshed) >= 4 and meshed[-1] == meshed[1])
    assert meshed[2][0] != meshed[0][0]


def test_a_wide_models_own_view_can_be_had_again(generator: Generator) -> None:
    wide = copy.deepcopy(generator)
    wide.config = replace(wide.config, poses=PoseDistribution(fov=75.0))
    with connected(wide, Camera.orbit(0.5, fov=75.0)) as (client, seen, _):
        client.set("Actions", "Reset view")
        until(lambda: abs(seen.pose.position[0]) < 1e-6)
        assert math.degrees(seen.pose.fov) == pytest.approx(75.0)


def test_a_blended_subject_is_saved_with_its_model(
    generator: Generator, other: Generator, tmp_path: Path
) -> None:
    with connected(generator, other=other) as (client, _, _):
        before = client.image.astype(int)
        client.set("Blend", 0.5)
        client.rest()
        assert differs(client.image, before)
        assert_shown_is_saved(client, tmp_path)


def upload(client: Client, name: str, grey: int) -> None:
    content = png(Image.new("RGB", (8, 8), (grey, grey, grey)))
    button = {"source_component_uuid": client.controls["Open a photo"], "transfer_uuid": name}
    client.send(
        "FileTransferStartUpload",
        filename=name,
        mime_type="image/png",
        part_count=1,
        size_bytes=len(content),
        **button,
    )
    client.send("FileTransferPart", part_index=0, content=content, **button)


def test_a_second_photo_takes_the_place_of_one_whose_subject_is_not_found_yet(
    viewer: Viewer,
    generator: Generator,
    other: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = subject_of(generator, 77, Camera.orbit(0.4))
    begun, finished = [], []

    def invert(
        generator: Generator, image: torch.Tensor, discriminator: None, progress: Progress
    ) -> Inversion:
        is_first, end = bool(image.mean() < 0), time.monotonic() + 10
        begun.append(is_first)
        while is_first and time.monotonic() < end:  # as long as anybody waits for it
            progress(0.5, "w")
            time.sleep(0.01)
        finished.append(is_first)
        return Inversion(subject.camera, subject.styles, other, loss=0.0)

    monkeypatch.setattr(session, "invert", invert)
    with Client(viewer.url) as client:
        client.rest()
        upload(client, "dark.png", 50)
        until(lambda: begun == [True])
        until(lambda: bool(of_kind(client, "NotificationShowMessage")))
        upload(client, "bright.png", 200)
        client.rest()
        assert (begun, finished) == ([True, False], [False])
        assert_shown(client, other, subject)
        assert_shown_is_saved(client, tmp_path)

        def notices(kind: str) -> set[str]:
            return {message["uuid"] for message in of_kind(client, kind)}

        # all are removed, so none is an error; viser sends none that is removed at once
        until(
            lambda: notices("NotificationShowMessage") <= notices("RemoveNotificationMessage"), 60
        )


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---------------------------------------------------------------- addresses and the command line
def test_addresses_that_cannot_be_had(generator: Generator) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is used"):
            Viewer(generator, port=port)
    for host, port, says in (
        ("127.0.0.1", 70000, "port is 70000"),
        ("no.such.host.invalid", 0, "host is "),
        ("192.0.2.1", 0, "host is "),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            Viewer(generator, host=host, port=port)


def test_a_port_that_viser_passes_over_is_taken(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        server, "_check_address", lambda host, port: None
    )  # as if it were taken just afterwards
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is used by another"):
            Viewer(generator, port=taken.getsockname()[1])


@pytest.fixture(scope="module")
def model(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(generator, path)
    return str(path)


def run_cli(arguments: list[str]) -> None:
    from cips3d import cli

    cli.main(arguments)


@pytest.mark.parametrize("options", [[], ["--open"]])
def test_the_verb_listens_on_this_machine_until_interrupted(
    options: list[str],
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages: list[bytes] = []

    def interrupt(_: float) -> None:
        url = re.search(r"http://127\.0\.0\.1:(\d+)", capsys.readouterr().out)
        assert url is not None
        with socket.create_connection(("127.0.0.1", int(url[1]))) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            pages.append(browser.recv(100))
        raise KeyboardInterrupt

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    monkeypatch.setattr("cips3d.cli.view.time.sleep", interrupt)
    monkeypatch.setattr("cips3d.training.allocator.keep_freed_memory", lambda: True)
    with pytest.raises(SystemExit) as caught:
        run_cli(["view", model, "--port", "0", "--blend", model, *options])
    assert caught.value.code == 130
    assert len(opened) == len(options)
    assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+", url) for url in opened)
    assert b"200 OK" in pages[0]
    assert not threads(f"viewer {Path(model).stem}")


@pytest.mark.parametrize("name", ["heads", "model"])
def test_the_first_subject_is_that_of_sample(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts: list[object] = []

    def viewer(*arguments: object) -> None:
        firsts.append(arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "Viewer", viewer)
    monkeypatch.setattr("cips3d.training.allocator.keep_freed_memory", lambda: True)
    with pytest.raises(SystemExit):
        run_cli(["view", name if name == "heads" else model])
    assert firsts == [good_seeds("heads")[0] if name == "heads" else 0]


def test_without_viser(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    for name in [name for name in sys.modules if name.startswith("cips3d.viewer")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as caught:
        run_cli(["view", model])
    assert caught.value.code == 2
    assert "pip install 'cips3d[viewer]'" in capsys.readouterr().err


# ---------------------------------------------------------------- a real browser
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def a_page(browser: Any, viewer: Viewer) -> Iterator[Any]:
    """The viewer's page when it shows a refined image."""
    page = browser.new_page(viewport={"width": 600, "height": 400})
    try:
        page.set_default_timeout(40_000)
        page.goto(viewer.url)
        page.get_by_text("samples,").wait_for()
        yield page
    finally:
        page.close()


def shot(page: Any) -> np.ndarray:
    """The window left of the panel and below the notifications, once it no longer changes."""
    last = None
    for _ in range(40):
        image = Image.open(
            io.BytesIO(page.screenshot(clip={"x": 0, "y": 140, "width": 260, "height": 260}))
        )
        pixels = np.asarray(image.convert("RGB")).astype(int)
        if last is not None and np.array_equal(last, pixels):
            return pixels
        last = pixels
        time.sleep(0.3)
    raise AssertionError("the image does not come to rest")


def show(page: Any, mode: str) -> None:
    page.get_by_role("combobox", name="Show").click()
    page.get_by_role("option", name=mode, exact=True).click()


def differs(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).mean() > 1)


def downloaded(page: Any, button: str) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return download.value.path()


def saved_at(pose: Pose) -> tuple[int, int]:
    """Width and height of an image that is saved from a window."""
    scale = max(1.0, 256 / min(pose.width, pose.height))
    return round(scale * pose.width), round(scale * pose.height)


def test_the_page_in_a_browser(
    browser: Any, viewer: Viewer, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ball = trimesh.creation.icosphere(radius=0.1)
    monkeypatch.setattr(session, "extract_mesh", lambda generator, styles, resolution: ball)
    with a_page(browser, viewer) as page:
        front = shot(page)
        assert front.std() > 1  # more than an empty page
        page.mouse.move(60, 300)
        page.mouse.down()
        page.mouse.move(110, 300, steps=5)
        page.mouse.up()
        turned = shot(page)
        assert differs(front, turned)
        # what is seen follows the mouse to the right, so the camera goes to the left
        assert -2 < math.atan2(*viewer.sessions[0].pose.position[::2]) < -0.1
        assert page.title() == "shared · cips3d"
        page.get_by_role("slider").first.focus()
        for _ in range(16):
            page.keyboard.press("ArrowRight")
        until(lambda: viewer.sessions[0].controls.values()["psi_shape"] == 1.5)
        assert differs(turned, shot(page))
        pose = viewer.sessions[0].pose
        assert Image.open(downloaded(page, "Image")).size == saved_at(pose)
        subject = Subject.load(downloaded(page, "Subject"), generator)
        again = generator.map(generator.sample_latents(1, 0), (1.5, 0.7))
        torch.testing.assert_close(subject.styles.shape, again.shape)
        now = camera_from_viser(viewer.sessions[0].pose, 0.12)
        assert now is not None
        seen = PoseLimits.of(generator.config.poses).limited(now).cam_to_world
        torch.testing.assert_close(subject.camera.cam_to_world, seen, atol=1e-3, rtol=0.0)
        show(page, "depth")
        depth = shot(page)
        assert differs(turned, depth)
        show(page, "mesh")
        page.get_by_text("triangles").wait_for()
        mesh = shot(page)
        assert differs(depth, mesh)
        drawn, pose = Image.open(downloaded(page, "Image")), viewer.sessions[0].pose
        assert drawn.size == saved_at(pose)
        assert drawn.mode == "RGBA"
        lit = np.argwhere(np.asarray(drawn)[..., 3] > 127)  # the ball fills the shorter side
        assert 0.9 < float(np.ptp(lit, axis=0).max()) / min(drawn.size) <= 1.0
        show(page, "image")
        page.get_by_text("samples,").wait_for()
        page.get_by_role("tab", name="View").click()
        page.get_by_role("button", name="Add view").click()
        page.get_by_text("Path (1)").wait_for()
        (entry,) = json.loads(downloaded(page, "Save").read_text())["keyframes"]
        assert entry == pytest.approx({"yaw": 0, "pitch": 0, "fov": 12, "radius": 1}, abs=1e-3)


def test_a_photo_in_a_browser(
    browser: Any,
    viewer: Viewer,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.Tensor] = []

    def invert(
        generator: Generator, image: torch.Tensor, discriminator: None, progress: Progress
    ) -> Inversion:
        asked.append(image)
        progress(0.5, "w")
        styles = generator.map(generator.sample_latents(1, 77))
        return Inversion(Camera.orbit(0.4), styles, generator, loss=0.0)

    monkeypatch.setattr(session, "invert", invert)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(png(Image.new("RGB", (20, 30), (200, 200, 200))))
    with a_page(browser, viewer) as page:
        before = shot(page)

        def upload(name: str) -> None:
            with page.expect_file_chooser() as chooser:
                page.get_by_role("button", name="Open a photo").click()
            chooser.value.set_files(tmp_path / name)

        upload("bad.png")
        page.get_by_text("bad.png: ").wait_for()
        upload("good.png")
        page.get_by_text("Photo's subject").wait_for()
        assert differs(before, shot(page))
        assert asked[0].shape == (1, 3, 8, 8)
        yaw = math.atan2(*viewer.sessions[0].pose.position[::2])
        assert yaw == pytest.approx(0.4, abs=1e-3)
