"""Options beyond the paper: gradient accumulation, adaptive augmentation, other cameras."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d import pretrained
from cips3d.camera import Camera, PoseDistribution, mirrored_label
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.heads.archive import write_heads
from cips3d.models.config import Sampling
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput
from cips3d.training import loop, objective
from cips3d.training.cameras import DatasetCameras, LearnedPoses
from cips3d.training.draws import StepDraws
from cips3d.training.loop import AUGMENT_STEPS, MOST_AUGMENT, train
from cips3d.training.networks import Networks
from cips3d.training.objective import R1, R2, Objective, Pose, Transmittance
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run
from cips3d.training.step import StepResult
from official import relative


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "heads.zip"
    write_heads(path, SyntheticHeads(6, 8))
    return str(path)


def one_stage(data: str, **changes: Any) -> TrainConfig:
    stage = {name: changes.pop(name) for name in ("accumulate", "kimg") if name in changes}
    return tiny.config(
        data, **{"stages": (Stage(8, batch=4, **({"kimg": 0.016} | stage)),)} | changes
    )


# ---------------------------------------------------------------- pieces of a batch
@pytest.mark.parametrize("loss", ["logistic", "relativistic"])
def test_gradients_of_pieces_add_up_to_those_of_the_batch(
    tmp_path: Path, data: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, float], list[Tensor]] = {}
    for pieces, reward in ((1, 0.0), (1, 0.5), (2, 0.5), (4, 0.5)):
        found = seen.setdefault((pieces, reward), [])

        def update(run: Run, optimizer: torch.optim.Optimizer, found: list[Tensor] = found) -> bool:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
            return True  # no step, so that all see the same weights

        monkeypatch.setattr(loop, "update", update)
        config = one_stage(
            data, accumulate=pieces, kimg=0.004,
            objective=Objective(
                loss, r1=R1(10.0), r2=R2(2.0),
                transmittance=Transmittance(reward, 1.0) if reward else None,
            ),
        )  # fmt: skip
        train(Run(config, tmp_path / f"{pieces}-{reward}"))
    whole = seen[1, 0.5]
    assert [relative(*pair) > 0.01 for pair in zip(seen[1, 0.0], whole, strict=True)] == [
        False,
        True,
    ]  # the generator's alone
    for pieces in (2, 4):
        assert all(relative(*pair) < 1e-5 for pair in zip(seen[pieces, 0.5], whole, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"), [({"accumulate": 3}, "3 equal pieces"), ({"accumulate": 0}, "at least 1")]
)
def test_pieces_that_cannot_be(data: str, changes: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        one_stage(data, **changes)


def test_pieces_do_not_go_with_a_shared_batch_of_fakes(data: str) -> None:
    with pytest.raises(UserError, match="share_fakes"):
        one_stage(data, accumulate=2, share_fakes=True)


# ---------------------------------------------------------------- adapted augmentation
@pytest.mark.parametrize(("sign", "expected"), [(1.0, 1), (-1.0, 0)])
def test_augmentation_rises_while_the_discriminator_is_too_sure(
    tmp_path: Path, data: str, sign: float, expected: int
) -> None:
    trainer = Run(one_stage(data, augment_target=0.6), tmp_path)
    counters = trainer.counters
    blank = torch.zeros(1, 3, 1, 1)
    fake = RenderOutput(blank, blank, *[blank[:, :1]] * 3)
    result = StepResult({"d_real_sign": torch.tensor(sign)}, True, fake)
    for step in range(3 * AUGMENT_STEPS):
        counters.step = step
        loop.adapt_augmentation(trainer, result, batch=4)
    assert counters.augment == pytest.approx(expected * 3 * AUGMENT_STEPS * 4 / 500_000)
    for step in range(3 * AUGMENT_STEPS, 40 * AUGMENT_STEPS):
        counters.step = step
        loop.adapt_augmentation(trainer, result, batch=50_000)
    assert counters.augment == expected * MOST_AUGMENT


def test_a_probability_that_adapts_needs_the_logits_zero(data: str) -> None:
    with pytest.raises(UserError, match="augment_target uses the sign of real logits"):
        one_stage(data, augment_target=0.6, objective=Objective("relativistic"))


def test_images_are_changed_with_the_adapted_probability(tmp_path: Path, data: str) -> None:
    config = one_stage(data, augment_target=0.6)
    trainer = Run(config, tmp_path)
    assert loop.step_draws(trainer, config.stages[0]).augment(range(4)) is None
    trainer.counters.augment = 0.5
    shares = []
    for step in range(200):
        trainer.counters.step = step
        augment = loop.step_draws(trainer, config.stages[0]).augment(range(4))
        assert augment is not None
        shares.append(augment.applied.float().mean().item())
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.06)


def test_the_probability_survives_an_interrupt(tmp_path: Path, data: str) -> None:
    config = one_stage(data, augment_target=-0.9, log_steps=1, kimg=0.048)
    whole = Run(config, tmp_path / "whole")
    train(whole)
    assert whole.counters.augment > 0

    def stop(share: float, _: dict[str, float]) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Run(config, tmp_path / "broken"), stop)
    resumed = Run(config, tmp_path / "broken")
    train(resumed)
    assert resumed.counters.augment == whole.counters.augment
    assert (tmp_path / "broken/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()


# ---------------------------------------------------------------- camera labels
def test_a_mirrored_label_sees_the_mirrored_world() -> None:
    camera = Camera.orbit(torch.tensor([0.3, -0.7]), torch.tensor([0.2, 0.1]), 1.3, 20.0)
    label = camera.to_label()
    mirrored = Camera.from_label(mirrored_label(label))
    flip = torch.tensor([-1.0, 1.0, 1.0])
    rays, other = camera.rays(4, 6), mirrored.rays(4, 6)
    as_seen = other.directions.view(2, 4, 6, 3).flip(2).reshape(2, 24, 3)
    torch.testing.assert_close(as_seen, rays.directions * flip)
    torch.testing.assert_close(mirrored.position, camera.position * flip)
    torch.testing.assert_close(mirrored_label(mirrored_label(label)), label)


def test_a_conditional_discriminator_sees_the_camera() -> None:
    torch.manual_seed(0)
    discriminator = ProgressiveDiscriminator(DiscriminatorConfig({4: 8, 8: 8}, camera_label=True))
    images = torch.randn(2, 3, 8, 8)
    here, there = (Camera.orbit(torch.full((2,), yaw)).to_label() for yaw in (0.0, 0.5))
    logits = discriminator(images, 1.0, here)
    assert logits.shape == (2, 1)
    assert not torch.allclose(logits, discriminator(images, 1.0, there))
    torch.testing.assert_close(discriminator(images.flip(0), 1.0, here.flip(0)), logits.flip(0))


def test_labels_reach_the_discriminators_with_their_images(
    tmp_path: Path, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditional = DiscriminatorConfig({4: 8, 8: 8}, camera_label=True)
    config = one_stage(
        labelled,
        discriminator=conditional,
        cameras="labels",
        mirror=True,
        kimg=0.012,
        objective=Objective(r1=None),
    )
    heads = SyntheticHeads(6, 8)
    shown = torch.stack([heads[i] for i in range(6)]).float() / 127.5 - 1
    labels = heads.camera_labels(range(6))
    both = torch.cat([labels, mirrored_label(labels)])
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    judge = Networks.judge

    def watched(self: Networks, images: list[Tensor], alpha: float, cameras: Any = None) -> Any:
        assert cameras is not None
        if len(images[0]) == 8:  # the discriminators' step judges both at once, fakes first
            pairs.append((images[0][4:], cameras[4:], cameras[:4]))
        return judge(self, images, alpha, cameras)

    monkeypatch.setattr(Networks, "judge", watched)
    train(Run(config, tmp_path))
    assert len(pairs) == 3
    known = torch.cat([shown, shown.flip(3)])
    for real, real_cameras, fake_cameras in pairs:
        for image, label in zip(real, real_cameras, strict=True):
            index = int((known - image).flatten(1).norm(dim=1).argmin())
            torch.testing.assert_close(label, both[index], atol=1e-5, rtol=0)
        for label in fake_cameras:
            assert float((both - label).norm(dim=1).min()) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"cameras": "labels"},
        {"aux_discriminator": DiscriminatorConfig({4: 8, 8: 8}, camera_label=True)},
    ],
)
def test_labels_that_are_missing(tmp_path: Path, data: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"dataset\.json"):
        Run(one_stage(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_labelled_data_has_their_cameras(tmp_path: Path, labelled: str) -> None:
    config = one_stage(labelled, cameras="labels", mirror=False)
    yaw, pitch = Camera.from_label(SyntheticHeads(6, 8).camera_labels(range(6))).yaw_pitch()
    poses = pretrained.load(train(Run(config, tmp_path / "run"))).config.poses
    found = poses.yaw_mean, poses.yaw_std, poses.pitch_mean, poses.pitch_std
    expected = yaw.mean(), yaw.std(correction=0), pitch.mean(), pitch.std(correction=0)
    assert found == pytest.approx([float(x) for x in expected], abs=0.02)
    assert poses.kind == "gaussian" and (poses.radius, poses.fov) == (1.0, 12.0)


def test_labels_of_other_cameras_than_the_models_are_refused(tmp_path: Path) -> None:
    far = SyntheticHeads(6, 8, poses=PoseDistribution(radius=2.7, fov=18.8))
    write_heads(tmp_path / "far.zip", far)
    line = (
        r"labels' cameras are at 2\.7 with a field of view of 18\.8 .* "
        r"set generator\.poses\.radius=2\.7 .*extent to 4\.25"
    )
    with pytest.raises(UserError, match=line):
        Run(one_stage(str(tmp_path / "far.zip"), cameras="labels"), tmp_path / "run")


@pytest.mark.parametrize("index", [18, 0])
def test_a_label_of_no_camera_is_named_before_the_run(index: int, tmp_path: Path) -> None:
    data = Path(tiny.images(tmp_path / "data"))
    labels = SyntheticHeads(6, 8).camera_labels(range(6))
    if index == 18:
        labels[4, 18] = 0.4  # its principal point is off centre
    else:
        labels[4, :16] /= 2.7  # scales the rotation too, not only the position
    content = {"labels": [[f"{i}.png", label] for i, label in enumerate(labels.tolist())]}
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"data: the label of 4\.png"):
        Run(one_stage(str(data), cameras="labels"), tmp_path / "run")


def test_a_model_to_start_from_must_render_alike(tmp_path: Path, data: str) -> None:
    start = tmp_path / "start.safetensors"
    changed = replace(tiny.generator(density_gain=2.0), sampling=Sampling(9, 4))
    pretrained.save(Generator(changed), start)
    with pytest.raises(
        UserError, match=r"has density_gain 2\.0; set generator\.networks\.density_gain"
    ):
        Run(one_stage(data, start=str(start)), tmp_path / "run")
    pretrained.save(Generator(replace(changed, networks=tiny.GENERATOR.networks)), start)
    Run(one_stage(data, start=str(start)), tmp_path / "run")


def test_poses_to_predict_are_those_that_were_rendered(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_head = DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    config = one_stage(
        data,
        discriminator=with_head,
        aux_discriminator=with_head,
        objective=Objective(pose=Pose(15.0)),
        share_fakes=True,
    )
    drawn, aimed_at = [], []
    fakes, error = StepDraws.fakes, objective.pose_error

    def watched_fakes(self: StepDraws, positions: range, purpose: str) -> Any:
        found = fakes(self, positions, purpose)
        drawn.append(torch.stack(found.camera.yaw_pitch(), dim=1))
        return found

    def watched_error(predicted: list[Tensor], true: Tensor) -> Tensor:
        aimed_at.append(true)
        return error(predicted, true)

    monkeypatch.setattr(StepDraws, "fakes", watched_fakes)
    monkeypatch.setattr(objective, "pose_error", watched_error)
    train(Run(config, tmp_path / "run"))
    assert len(drawn) == 4 and len(aimed_at) == 8  # both steps of each iteration
    torch.testing.assert_close(aimed_at, [poses for poses in drawn for _ in range(2)])


def test_a_pose_weight_and_pose_heads_go_together(data: str) -> None:
    with_head = DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    for changes in (
        {"objective": Objective(pose=Pose(15.0)), "discriminator": with_head},
        {"discriminator": with_head},
    ):  # one without, one untrained
        with pytest.raises(
            UserError, match=r"objective\.pose and the discriminators' pose_head go together"
        ):
            one_stage(data, **changes)


def test_a_discriminator_predicts_the_pose_of_an_image_of_any_size_without_a_label() -> None:
    torch.manual_seed(0)
    with_head = ProgressiveDiscriminator(
        DiscriminatorConfig({4: 8, 8: 8}, camera_label=True, pose_head=True)
    )
    images = torch.rand(3, 3, 8, 8)
    _, expected, _ = with_head.judge(images, 1.0, Camera.orbit(torch.zeros(3)).to_label())
    torch.testing.assert_close(with_head.predicted_poses(images), expected)
    torch.testing.assert_close(
        with_head.predicted_poses(images.repeat_interleave(2, 2).repeat_interleave(2, 3)), expected
    )
    assert (
        ProgressiveDiscriminator(DiscriminatorConfig({4: 8, 8: 8})).predicted_poses(images) is None
    )


@pytest.mark.parametrize("radius", [1.0, 2.7])
def test_labels_that_reveal_the_real_images_are_refused(radius: float, tmp_path: Path) -> None:
    """By labels of another camera distance, a discriminator tells real images without a look."""
    images = Path(tiny.images(tmp_path / "data"))
    labels = [
        [f"{i}.png", Camera.orbit(0.1 * i, radius=radius).to_label()[0].tolist()] for i in range(6)
    ]
    (images / "dataset.json").write_text(json.dumps({"labels": labels}))
    seeing = DiscriminatorConfig({4: 8, 8: 8}, camera_label=True)
    config = one_stage(str(images), discriminator=seeing)
    if radius == 1:
        train(Run(config, tmp_path / "run"))
        return
    with pytest.raises(
        UserError, match=r"labels' cameras are at 2\.7 .* set generator\.poses\.radius=2\.7"
    ):
        Run(config, tmp_path / "run")


def test_dataset_cameras_are_the_datasets_in_equal_shares() -> None:
    heads = SyntheticHeads(5, 8)
    source = DatasetCameras(heads, False, heads.poses)
    labels = source.camera(source.draw(2000, torch.Generator().manual_seed(0))).to_label()
    nearest = torch.cdist(labels, heads.camera_labels(range(5))).argmin(dim=1)
    assert torch.bincount(nearest, minlength=5).tolist() == pytest.approx([400] * 5, abs=80)


# ---------------------------------------------------------------- learned prior
@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_a_learned_prior_starts_as_the_given_one(kind: Any) -> None:
    start = PoseDistribution(
        kind, yaw_mean=0.1, yaw_std=0.4, pitch_mean=-0.1, pitch_std=0.2, radius=1.5, fov=20.0
    )
    learned = LearnedPoses(start)
    draws = learned.draw(7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(learned.camera(draws).cam_to_world, start.camera(draws).cam_to_world)
    values = learned.distribution()
    assert (values.yaw_mean, values.yaw_std, values.kind) == (
        pytest.approx(0.1),
        pytest.approx(0.4),
        kind,
    )


def test_the_gradient_of_the_cameras_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR).double().requires_grad_(False)
    learned = LearnedPoses(PoseDistribution()).double()
    sampling = Sampling(6, 0)  # importance samples move with the densities without a gradient
    config, device = generator.config, torch.device("cpu")
    drawn = StepDraws(config, sampling, 4, 0.0, (0, 0), device, config.poses).fakes(range(2), "D")
    latents, rays = drawn.latents.to(torch.float64), drawn.rays.to(torch.float64)
    standard = torch.tensor([[0.5, -1.0], [-0.3, 0.8]], dtype=torch.float64)

    def loss() -> Tensor:
        out = generator(latents, learned.camera(standard), 4, rays, sampling)
        return (
            out.image
            * torch.linspace(-1, 1, out.image.numel(), dtype=torch.float64).view_as(out.image)
        ).sum()

    loss().backward()
    for parameter in (learned.mean, learned.log_std):
        assert parameter.grad is not None
        for i in range(2):
            values, step = [], 1e-5
            for side in (-step, 2 * step):
                parameter.data[i] += side
                values.append(loss().item())
            parameter.data[i] -= step
            assert parameter.grad[i].item() == pytest.approx(
                (values[1] - values[0]) / (2 * step), rel=1e-4, abs=1e-8
            )


def test_a_learned_prior_is_trained_saved_and_resumed(tmp_path: Path, data: str) -> None:
    config = one_stage(data, cameras="learned", log_steps=1, checkpoint_kimg=0.008)
    trainer = Run(config, tmp_path)
    model = pretrained.load(train(trainer))
    assert trainer.networks.poses is not None
    learned = trainer.networks.poses.distribution()
    assert learned.yaw_std != config.generator.poses.yaw_std
    assert model.config.poses == learned
    assert replace(learned, yaw_mean=0, yaw_std=0, pitch_mean=0, pitch_std=0) == replace(
        config.generator.poses, yaw_mean=0, yaw_std=0, pitch_mean=0, pitch_std=0
    )
    resumed = Run(config, tmp_path)
    assert resumed.networks.poses is not None and resumed.networks.poses.distribution() == learned
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["yaw_std"] == pytest.approx(learned.yaw_std) and math.isfinite(last["pitch_mean"])


def test_a_spherical_prior_cannot_be_learned(data: str) -> None:
    generator = replace(tiny.GENERATOR, poses=PoseDistribution("spherical"))
    with pytest.raises(UserError, match="spherical"):
        one_stage(data, cameras="learned", generator=generator)
