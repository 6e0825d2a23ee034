"""The training loop: losses, schedules, draws, stages, interrupts; one process or two."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import tiny
from cips3d import pretrained
from cips3d.interrupts import first_interrupt_noted
from cips3d.models.config import Sampling
from cips3d.models.discriminator import DiscriminatorConfig, Judgement, ProgressiveDiscriminator
from cips3d.models.protocol import MODEL_FILE
from cips3d.models.registry import build_generator
from cips3d.models.types import RenderOutput
from cips3d.training import loop
from cips3d.training import objective as losses
from cips3d.training import step as training_step
from cips3d.training.augment import AugmentDraws, diff_augment
from cips3d.training.batches import real_batches
from cips3d.training.draws import StepDraws, mirrored, real_order
from cips3d.training.loop import train
from cips3d.training.networks import Networks, ramped_average
from cips3d.training.objective import R1, R2, Objective, Pose, Transmittance
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run
from cips3d.training.step import StepContext, StepResult, render_fakes
from steps import PLAIN, context, discriminator_step, generator_step


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def weights(networks: Networks) -> dict[str, Tensor]:
    """All tensors of all networks but the mean styles, which are updated for saving and samples."""
    named = (
        (f"{m}/{key}", value)
        for m, module in networks.modules.items()
        for key, value in module.state_dict().items()
    )
    return {
        name: value.clone()
        for name, value in named
        if not name.endswith(("shape_mean", "appearance_mean"))
    }


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


# ---------------------------------------------------------------- losses
def test_losses_in_closed_form() -> None:
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[-1.0], [3.0]])
    log1p_exp = lambda *xs: sum(math.log1p(math.exp(x)) for x in xs) / len(xs)  # noqa: E731
    assert losses.logistic_discriminator(real, fake).item() == pytest.approx(
        log1p_exp(-1, 3) + log1p_exp(0, -2)
    )
    assert losses.logistic_generator(real, fake).item() == pytest.approx(log1p_exp(1, -3))


def test_the_generators_loss_does_not_saturate() -> None:
    hopeless = torch.tensor([[-30.0]], requires_grad=True)
    losses.logistic_generator(hopeless, hopeless).backward()
    assert hopeless.grad is not None and hopeless.grad.item() == pytest.approx(-1.0)


def test_squared_gradient_of_a_linear_discriminator_is_that_of_its_weights() -> None:
    w = torch.randn(3, 4, 4, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = losses.squared_gradient((images * w).sum(dim=(1, 2, 3))[:, None] + 7, images)
    torch.testing.assert_close(penalty, w.square().sum().expand(5, 1))
    penalty.mean().backward()
    torch.testing.assert_close(w.grad, 2 * w.detach())  # the penalty itself can be differentiated


class Linear(ProgressiveDiscriminator):
    """A discriminator D(x) = <w, x> at any fade-in, which always predicts yaw p and pitch −p."""

    def __init__(self, scale: float) -> None:
        nn.Module.__init__(self)
        self.w = nn.Parameter(scale * torch.linspace(-1, 1, 48).view(3, 4, 4))
        self.p = nn.Parameter(torch.tensor(scale))

    def judge(self, images: Tensor, alpha: float = 1.0, cameras: Tensor | None = None) -> Judgement:
        logits = (images * self.w).sum(dim=(1, 2, 3))[:, None]
        return Judgement(logits, torch.stack([self.p, -self.p]).expand(len(images), 2))


def linear_networks() -> Networks:
    networks = Networks.__new__(Networks)
    networks.generator = build_generator(tiny.GENERATOR)
    networks.discriminators = nn.ModuleDict({"main": Linear(0.1), "aux": Linear(0.2)})
    networks.mixes_batch = False
    return networks


def rendered(image: Tensor, aux_image: Tensor) -> RenderOutput:
    return RenderOutput(image, aux_image, *[torch.zeros_like(image[:, :1])] * 3)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_discriminator_step_adds_r1_of_every_discriminator_that_takes_part(auxiliary: bool) -> None:
    networks = linear_networks()
    real, image, aux_image = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    objective = Objective(r1=R1(10.0))
    result = discriminator_step(
        networks, real, rendered(image, aux_image), objective, auxiliary=auxiliary
    )
    main, aux = networks.discriminators["main"], networks.discriminators["aux"]
    taking_part = [(main, image), (aux, aux_image)][: 2 if auxiliary else 1]
    real_logits, fake_logits = (
        torch.cat([d(real) for d, _ in taking_part]),
        torch.cat([d(x) for d, x in taking_part]),
    )
    penalty = sum(d.w.square().sum() for d, _ in taking_part) / len(taking_part)
    expected = losses.logistic_discriminator(real_logits, fake_logits) + 5 * penalty
    assert result["d_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result["d_r1"].item() == pytest.approx(5 * penalty.item(), rel=1e-5)
    assert result["d_real_logit"].item() == pytest.approx(main(real).mean().item(), rel=1e-4)
    assert image.grad is None  # the fakes are constants
    assert (aux.w.grad is not None) == auxiliary
    expected_gradient = torch.autograd.grad(expected, main.w)[0]
    torch.testing.assert_close(main.w.grad, expected_gradient)


def test_generator_step_reaches_the_images_and_leaves_the_discriminators_alone() -> None:
    networks = linear_networks()
    image, aux_image = torch.zeros(2, 2, 3, 4, 4).unbind()
    image.requires_grad_(), aux_image.requires_grad_()
    result = generator_step(networks, rendered(image, aux_image))
    assert result["g_loss"].item() == pytest.approx(math.log(2))
    for seen, name in ((image, "main"), (aux_image, "aux")):
        discriminator = networks.discriminators[name]
        # d softplus(-<w, x>) at x = 0, over the four logits
        expected = -0.5 * discriminator.w.detach() / 4
        torch.testing.assert_close(seen.grad, expected.expand_as(seen))
        assert discriminator.w.grad is None and discriminator.w.requires_grad


@pytest.mark.parametrize("r1", [None, R1(10.0)])
def test_discriminators_learn_the_poses_of_generated_images_alone(r1: R1 | None) -> None:
    networks = linear_networks()
    real, image, aux_image = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    poses = torch.tensor([[0.5, 0.0], [-0.3, 0.1]])
    fake = rendered(image, aux_image)
    plain = discriminator_step(networks, real, fake, Objective(r1=r1))["d_loss"]
    networks.discriminators.zero_grad()
    objective = Objective(pose=Pose(15.0), r1=r1)
    loss = discriminator_step(networks, real, fake, objective, poses)["d_loss"]
    main, aux = networks.discriminators["main"], networks.discriminators["aux"]
    predicted = torch.stack([torch.stack([d.p, -d.p]).expand(2, 2) for d in (main, aux)])
    expected = 15 * (predicted - poses).square().mean()
    torch.testing.assert_close(loss - plain, expected.detach())
    torch.testing.assert_close(main.p.grad, torch.autograd.grad(expected, main.p)[0])


def test_the_generator_learns_to_show_the_pose() -> None:
    torch.manual_seed(0)
    with_head = DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)
    objective = Objective(pose=Pose(1000.0), r1=None)
    config = tiny.config(discriminator=with_head, aux_discriminator=with_head, objective=objective)
    networks = Networks(config, torch.device("cpu"))
    image = torch.zeros(4, 3, 8, 8, requires_grad=True)
    yaw = torch.linspace(-0.5, 0.5, 4)
    poses = torch.stack([yaw, torch.zeros(4)], dim=1)
    fake = rendered(image, torch.zeros(4, 3, 8, 8))
    generator_step(networks, fake, objective, poses, auxiliary=False)
    gradient = image.grad
    assert gradient is not None
    moved = image.detach() - 0.1 * gradient
    predicted = [networks.judge([x], 1.0)[1][0] for x in (moved, image.detach())]
    errors = [losses.pose_error([pose], poses).item() for pose in predicted]
    assert errors[0] < errors[1]  # images that follow their gradient show their poses better


def test_relativistic_steps_compare_partners() -> None:
    networks = linear_networks()
    real, image, aux_image = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fake = rendered(image, aux_image)
    pairs = [(networks.discriminators["main"], image), (networks.discriminators["aux"], aux_image)]
    margin = torch.cat([d(real) - d(x) for d, x in pairs])
    objective = Objective("relativistic", r1=R1(6.0), r2=R2(10.0))
    result = discriminator_step(networks, real, fake, objective)
    penalty = sum(d.w.square().sum() for d, _ in pairs) / 2
    expected = torch.nn.functional.softplus(-margin).mean() + (3 + 5) * penalty
    assert result["d_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result["d_r2"].item() == pytest.approx(5 * penalty.item(), rel=1e-5)
    # not the auxiliary image and the opacity: a frozen radiance field's have no gradient
    image.requires_grad_()
    objective = replace(objective, transmittance=Transmittance(0.5, 1.0))
    loss = generator_step(networks, fake, objective, real=real)["g_loss"]
    assert loss.item() == pytest.approx(
        torch.nn.functional.softplus(margin).mean().item(), rel=1e-5
    )
    assert image.grad is not None and image.grad.any()


def test_logits_are_of_augmented_images_and_penalties_of_the_original_ones() -> None:
    networks = linear_networks()
    real, image, aux_image = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for images in (real, image, aux_image):
        images.requires_grad_()
    draws = AugmentDraws.sample([0, 1])
    fake = rendered(image, aux_image)
    objective = Objective("relativistic", r1=R1(6.0), r2=R2(10.0))
    margins, penalties = [], []
    for name, generated in (("main", image), ("aux", aux_image)):
        logits = [
            networks.discriminators[name](diff_augment(images, draws))
            for images in (real, generated)
        ]
        margins.append(logits[0] - logits[1])
        penalties += [
            losses.squared_gradient(*pair) for pair in zip(logits, (real, generated), strict=True)
        ]
    r1, r2 = (torch.cat(penalties[kind::2]).mean() for kind in (0, 1))
    softplus, margin = torch.nn.functional.softplus, torch.cat(margins)
    loss = discriminator_step(networks, real.detach(), fake, objective, augment=draws)["d_loss"]
    assert loss.item() == pytest.approx(
        (softplus(-margin).mean() + 3 * r1 + 5 * r2).item(), rel=1e-5
    )
    expected = softplus(margin).mean()
    loss = generator_step(networks, fake, objective, real=real.detach(), augment=draws)["g_loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        [image.grad, aux_image.grad], [*torch.autograd.grad(expected, [image, aux_image])]
    )


def test_gradients_of_what_is_float32_are_float32_under_autocast() -> None:
    """Sines and compositing are float32 in the forward pass, so they are in the backward pass."""
    networks = linear_networks()
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pixels, gradients = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)), []
    for dtype in (torch.bfloat16, None):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            with torch.autocast("cpu", enabled=False):
                image = (w @ pixels).unflatten(2, (4, 4))
            generator_step(networks, rendered(image, image))
        assert w.grad is not None
        gradients.append(w.grad)
        w.grad = None
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_a_term_on_the_rendering_reaches_the_generator_besides_the_images() -> None:
    networks = linear_networks()
    image = torch.zeros(4, 3, 4, 4).requires_grad_()
    opacity = torch.rand(4, 1, 4, 4).requires_grad_()
    fake = replace(rendered(image, torch.zeros(4, 3, 4, 4)), opacity=opacity)
    objective = Objective(r1=None, transmittance=Transmittance(3.0, 1.0))
    figures = generator_step(networks, fake, objective, auxiliary=False, accumulate=2)
    torch.testing.assert_close(opacity.grad, torch.full_like(opacity, 0.5 * 3 / 64))
    of_image = -0.5 * networks.discriminators["main"].w.detach() / 4
    torch.testing.assert_close(image.grad, (0.5 * of_image).expand_as(image))
    torch.testing.assert_close(figures["g_transmittance"], -3 * (1 - opacity.detach()).mean())


def test_every_term_adds_to_the_objective_by_its_name() -> None:
    objective = Objective(pose=Pose(), r1=R1(1.0, every=2), r2=R2(1.0), transmittance=None)
    assert [*objective.terms(0)] == ["pose", "r1", "r2"]
    assert [*objective.terms(1)] == ["pose", "r2"]  # R1 is lazy
    assert [*PLAIN.terms()] == []


# ---------------------------------------------------------------- draws and order
def test_draws_do_not_depend_on_the_number_of_processes() -> None:
    def make(positions: range, key: tuple[int, int, str] = (0, 5, "D")) -> Any:
        seed, step, purpose = key
        poses = tiny.GENERATOR.poses
        draws = StepDraws(
            tiny.generator(background="field"), Sampling(4, 4), 4, 0.5, (seed, step),
            torch.device("cpu"), poses,
        )  # fmt: skip
        return draws.fakes(positions, purpose)

    whole, parts = make(range(4)), [make(range(2)), make(range(2, 4))]
    for read in (
        lambda d: d.latents.shape,
        lambda d: d.latents.appearance,
        lambda d: d.camera.cam_to_world,
        lambda d: d.rays.jitter,
        lambda d: d.rays.importance,
        lambda d: d.rays.coarse_noise,
        lambda d: d.rays.noise,
        lambda d: d.rays.turn,
    ):
        assert torch.equal(read(whole), torch.cat([read(part) for part in parts]))
        assert len(read(whole).flatten(1).unique(dim=0)) == 4  # no two images share their draws
        for other in ((1, 5, "D"), (0, 6, "D"), (0, 5, "G")):
            assert not torch.equal(read(whole), read(make(range(4), other)))


def test_the_far_sphere_is_turned_at_random_and_nothing_else_is_drawn_for_it() -> None:
    """So its pattern tells the discriminators nothing of the camera."""
    made = {}
    for background in ("plain", "field"):
        config, device = tiny.generator(background=background), torch.device("cpu")
        draws = StepDraws(config, Sampling(4, 4), 2, 0.5, (0, 0), device, config.poses)
        made[background] = draws.fakes(range(64), "G")
    plain, field = made["plain"], made["field"]
    assert plain.rays.turn is None
    assert torch.equal(plain.rays.jitter, field.rays.jitter)
    assert torch.equal(plain.latents.appearance, field.latents.appearance)
    assert torch.equal(plain.camera.cam_to_world, field.camera.cam_to_world)
    turn = field.rays.turn
    assert turn.shape == (64, 4, 1) and torch.equal(turn, turn[:, :1].expand_as(turn))
    quarters = torch.histc(turn[:, 0], 4, 0, 2 * math.pi)
    assert quarters.sum() == 64 and quarters.min() > 6


def taken(order: Iterator[list[int]], batches: int) -> list[list[int]]:
    return list(itertools.islice(order, batches))


def test_real_order_shows_every_image_once_an_epoch() -> None:
    shown, other = (
        [*itertools.chain(*taken(real_order(7, seed, 0, 4, range(4)), 7))] for seed in (0, 1)
    )
    epochs = [shown[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert shown != other


@pytest.mark.parametrize("start", [4, 8, 28])
def test_real_order_resumes_in_the_middle_of_an_epoch(start: int) -> None:
    whole = taken(real_order(7, 0, 0, 4, range(4)), 12)
    assert taken(real_order(7, 0, start, 4, range(4)), 4) == whole[start // 4 : start // 4 + 4]


def test_real_order_deals_the_batch_out_to_the_processes() -> None:
    whole = taken(real_order(5, 0, 0, 6, range(6)), 6)  # a batch above the size of the dataset
    parts = [taken(real_order(5, 0, 0, 6, range(i, i + 3)), 6) for i in (0, 3)]
    assert whole == [a + b for a, b in zip(*parts, strict=True)]


def test_mirrored_is_a_replayable_half_that_does_not_depend_on_the_processes() -> None:
    flips = mirrored((0, 3), range(2000))
    assert 900 < int(flips.sum()) < 1100
    assert torch.equal(
        flips, torch.cat([mirrored((0, 3), range(1000)), mirrored((0, 3), range(1000, 2000))])
    )
    for other in ((0, 4), (1, 3)):
        assert 900 < int((flips != mirrored(other, range(2000))).sum()) < 1100


# ---------------------------------------------------------------- average
def test_the_average_follows_its_ramp() -> None:
    module = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(module, multi_avg_fn=ramped_average(0.5))
    expected = 0.0
    for n, value in enumerate([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, -5.0, 3.0, 5.0]):
        module.weight.data.fill_(value)
        averaged.update_parameters(module)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0  # the first update copies
        expected = decay * expected + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- schedules, seen from inside a run
@dataclass
class Seen:
    """What one step was given."""

    resolution: int
    alpha: float
    r1_weight: float
    generator_lr: float
    discriminator_lr: float
    real: Tensor
    noise: list[float] = field(default_factory=list)


def observe(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Records what the steps of a run are given."""
    steps: list[Seen] = []
    step, fakes = loop.training_step, StepDraws.fakes

    def noted(
        networks: Networks, batch: Any, draws: StepDraws, objective: Objective, of: StepContext
    ) -> StepResult:
        rates = [o.param_groups[0]["lr"] for o in networks.optimizers.values()]
        r1 = objective.terms(of.step).get("r1")
        weight = 0.0 if r1 is None else 0.5 * r1.weight * r1.every
        steps.append(Seen(batch.images.shape[-1], of.alpha, weight, *rates, batch.images.clone()))
        return step(networks, batch, draws, objective, of)

    def drawn(self: StepDraws, positions: range, purpose: str) -> Any:
        steps[-1].noise.append(self.noise_std)
        return fakes(self, positions, purpose)

    monkeypatch.setattr(loop, "training_step", noted)
    monkeypatch.setattr(StepDraws, "fakes", drawn)
    return steps


def test_schedules(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Run(tiny.config(data, mirror=True, share_fakes=True), tmp_path)
    steps = observe(monkeypatch)
    train(trainer)
    assert [s.resolution for s in steps] == [4] * 4 + [8] * 8
    assert [s.alpha for s in steps] == [1] * 4 + [0, 0.25, 0.5, 0.75] + [1] * 4
    # ½ · γ 10 · every 3
    assert [s.r1_weight for s in steps] == [15.0 if i % 3 == 0 else 0.0 for i in range(12)]
    assert [s.generator_lr for s in steps] == [1e-3] * 4 + [5e-4] * 8
    assert [s.discriminator_lr for s in steps] == [2e-3] * 4 + [1e-3] * 8
    # one set of draws a step
    assert [s.noise for s in steps] == [[max(0.0, 1 - 4 * i / 32)] for i in range(12)]
    order = taken(real_order(6, 0, 0, 4, range(4)), 12)
    for i, step in enumerate(steps[4:], 4):  # at 4² the images are scaled down
        for flip, index, real in zip(mirrored((0, i), range(4)), order[i], step.real, strict=True):
            original = trainer.dataset[index] / 127.5 - 1
            torch.testing.assert_close(real, original.flip(2) if flip else original)


def test_two_sets_of_fakes_a_step_by_default(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(replace(tiny.config(data), stages=(Stage(8, kimg=0.008, batch=4),)), tmp_path)
    steps = observe(monkeypatch)
    train(trainer)
    assert [len(step.noise) for step in steps] == [2, 2]


def test_what_a_run_leaves(tmp_path: Path, data: str) -> None:
    shares: list[float] = []
    config = tiny.config(data, log_steps=5, sample_kimg=0.02)
    model = train(Run(config, tmp_path), lambda share, _: shares.append(share))
    assert model == tmp_path / MODEL_FILE and model.exists()
    assert shares == pytest.approx([(i + 1) / 12 for i in range(12)])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["images"], line["resolution"]) for line in lines] == [
        (1, 4, 4), (5, 20, 8), (6, 24, 8), (10, 40, 8), (11, 44, 8)
    ]  # fmt: skip
    assert {"diversity", "non_flatness", "mirror_jump"} <= lines[1].keys()
    assert {
        "d_loss",
        "g_loss",
        "d_real_logit",
        "d_fake_logit",
        "last_sample_share",
        "depth_std",
    } <= lines[0].keys()
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        f"{i:012d}.png" for i in (20, 40)
    ]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"{i:012d}.safetensors" for i in (32, 48)
    ]


def test_gradients_are_clipped_to_one_norm_for_each_optimiser(tmp_path: Path, data: str) -> None:
    trainer = Run(
        tiny.config(data, stages=(Stage(8, kimg=0.008, batch=4),), grad_clip=1e-3), tmp_path
    )
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norms.append(float(torch.nn.utils.get_total_norm(found)))

    for optimizer in trainer.networks.optimizers.values():
        optimizer.register_step_pre_hook(note)
    train(trainer)
    assert norms == [pytest.approx(1e-3, rel=0.01)] * 4


# ---------------------------------------------------------------- end of a stage, interrupts
def test_a_stage_ends_by_time_and_counts_the_time_before_an_interrupt(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]

    def perf_counter() -> float:
        clock[0] += 1e-6
        return clock[0]

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=perf_counter))
    stages = (
        Stage(4, kimg=1000, batch=4, minutes=5 / 60),
        Stage(8, kimg=0.012, batch=4, minutes=1000),
    )
    config = tiny.config(data, stages=stages)

    def one_second_a_step(stop_at: int) -> tuple[Run, list[int]]:
        trainer, steps = Run(config, tmp_path), []

        def progress(share: float, figures: dict[str, float]) -> None:
            assert 0 <= share <= 1
            clock[0] += 1
            steps.append(int(figures["resolution"]))
            if trainer.counters.step == stop_at:
                raise KeyboardInterrupt

        if stop_at:
            with pytest.raises(KeyboardInterrupt):
                train(trainer, progress)
        else:
            train(trainer, progress)
        return trainer, steps

    # the fourth step ends three seconds after the first
    assert one_second_a_step(stop_at=4)[1] == [4] * 4
    clock[0] += 3600  # the time between two sessions does not count
    resumed, steps = one_second_a_step(stop_at=0)
    assert steps == [4] * 3 + [8] * 3  # after three, four and five seconds; then to the end by kimg
    assert resumed.progress() == 1


def test_tensorboard_shows_every_step_once(tmp_path: Path, data: str) -> None:
    train(Run(tiny.config(data), tmp_path))
    (tmp_path / "checkpoints" / f"{48:012d}.safetensors").unlink()
    train(Run(tiny.config(data), tmp_path))  # from the checkpoint at 32 images on
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    shown = [(event.step, event.value) for event in board.Scalars("d_loss")]
    assert shown == [(line["images"], pytest.approx(line["d_loss"], rel=1e-5)) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data: str) -> dict[str, Tensor]:
    trainer = Run(tiny.config(data), tmp_path_factory.mktemp("uninterrupted"))
    train(trainer)
    return weights(trainer.networks)


def test_an_interrupt_between_steps_saves_and_the_run_resumes(
    tmp_path: Path, data: str, uninterrupted: dict[str, Tensor]
) -> None:
    trainer = Run(tiny.config(data), tmp_path)

    def stop(share: float, figures: dict[str, float]) -> None:
        if trainer.counters.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer, stop)
    assert (tmp_path / "checkpoints" / f"{24:012d}.safetensors").exists()
    resumed = Run(tiny.config(data), tmp_path)
    assert resumed.counters.step == 6
    train(resumed)
    assert same_bits(weights(resumed.networks), uninterrupted)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_lets_the_step_end(
    number: signal.Signals,
    tmp_path: Path,
    data: str,
    uninterrupted: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, usual = Run(tiny.config(data), tmp_path), signal.getsignal(number)

    one_step = training_step.discriminator_step

    def step(*args: Any) -> Any:
        if trainer.counters.step == 5:
            os.kill(os.getpid(), number)
        return one_step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_step, "discriminator_step", step)
        train(trainer)
    assert signal.getsignal(number) is usual
    resumed = Run(tiny.config(data), tmp_path)
    assert resumed.counters.step == 6
    train(resumed)
    assert same_bits(weights(resumed.networks), uninterrupted)


def test_a_scheduler_can_stop_a_background_job() -> None:
    shell = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does
    try:
        with pytest.raises(KeyboardInterrupt), first_interrupt_noted() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, shell)


def test_a_second_ctrl_c_acts_at_once_and_saves_no_half_step(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Run(tiny.config(data), tmp_path)

    one_step = training_step.discriminator_step

    def step(*args: Any) -> Any:
        result = one_step(*args)
        if trainer.counters.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second one was ignored")
        return result

    monkeypatch.setattr(training_step, "discriminator_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"{16:012d}.safetensors"
    ]


def test_the_model_is_there_with_every_checkpoint(tmp_path: Path, data: str) -> None:
    trainer = Run(tiny.config(data), tmp_path)

    def stop(share: float, figures: dict[str, float]) -> None:
        if figures["images"] >= 24:  # the first checkpoint was written at 16
            assert (tmp_path / MODEL_FILE).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trainer, stop)
    saved = pretrained.load(tmp_path / MODEL_FILE).state_dict()
    now = trainer.networks.ema.state_dict()
    # an interrupt writes both again
    assert all(torch.equal(saved[name], now[name]) for name in saved)


def test_a_finished_run_writes_its_model_again(tmp_path: Path, data: str) -> None:
    first = train(Run(tiny.config(data), tmp_path)).read_bytes()
    (tmp_path / MODEL_FILE).unlink()
    assert train(Run(tiny.config(data), tmp_path)).read_bytes() == first


# ---------------------------------------------------------------- learning
def discriminator_loss_on(n: Networks, real: Tensor, fake: RenderOutput) -> float:
    with torch.no_grad():
        logits = n.judge([real, real], 1.0)[0], n.judge([fake.image, fake.aux_image], 1.0)[0]
    return losses.logistic_discriminator(*logits).item()


def test_each_side_gains_while_the_other_is_fixed(tmp_path: Path, data: str) -> None:
    config = tiny.config(data)
    trainer, stage = Run(config, tmp_path), config.stages[1]
    n, positions = trainer.networks, range(4)
    real = next(real_batches(trainer, stage))[0].float() / 127.5 - 1
    draws = loop.step_draws(trainer, stage)
    drawn, of_step = draws.fakes(positions, "D"), context(stage)
    fake = render_fakes(n.generator, drawn, draws, of_step)
    for optimizer in n.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.01

    before = discriminator_loss_on(n, real, fake)
    for _ in range(40):
        n.discriminator_optimizer.zero_grad()
        discriminator_step(n, real, fake)
        n.discriminator_optimizer.step()
    after = discriminator_loss_on(n, real, fake)
    assert after < 0.5 * before

    for _ in range(40):
        n.generator_optimizer.zero_grad()
        generator_step(n, render_fakes(n.generator, drawn, draws, of_step))
        n.generator_optimizer.step()
    fooled = discriminator_loss_on(n, real, render_fakes(n.generator, drawn, draws, of_step))
    assert fooled > 2 * after


# ---------------------------------------------------------------- many processes
def two_process_config(data: str) -> TrainConfig:
    """A configuration with everything that processes have to agree on."""
    return tiny.config(
        data, mirror=True, sampling=Sampling(4, 2), cameras="learned", augment_target=-0.9,
        augment_kimg=0.04,
        objective=Objective(r1=R1(10.0, 3), transmittance=Transmittance(0.5, 1.0)),
    )  # fmt: skip


def train_as_rank(rank: int, processes: int, port: int, folder: str, data: str) -> None:
    """One process of a run in float64: gradients before and after averaging, then the whole run.

    Of several processes, the second receives a Ctrl-C after the fifth step; then all resume.
    """
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }

    def ctrl_c(*_: object) -> None:
        if rank == 1 and trainer.counters.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == processes
        trainer = trainer_of_rank(accelerator, folder, data)
        result: dict[str, Any] = {
            "local": gradients(trainer, average=False),
            "gradients": gradients(trainer, average=True),
        }
        if processes > 1:
            with pytest.raises(KeyboardInterrupt):
                train(trainer, ctrl_c)
            result["stopped"] = dict(vars(trainer.counters))
            trainer = trainer_of_rank(accelerator, folder, data)
        train(trainer)
        result |= {"weights": weights(trainer.networks), "augment": trainer.counters.augment}
        torch.save(result, Path(folder) / f"{processes}-{rank}.pt")
    finally:
        torch.set_default_dtype(default)


def trainer_of_rank(accelerator: Accelerator, folder: str, data: str) -> Run:
    trainer = Run(
        two_process_config(data), Path(folder) / f"run-{accelerator.num_processes}", accelerator
    )
    for discriminator in trainer.networks.discriminators.values():  # real images are float32
        assert isinstance(discriminator, ProgressiveDiscriminator)
        for entry in discriminator.from_rgb.values():
            entry.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    return trainer


def gradients(trainer: Run, average: bool) -> dict[str, Tensor]:
    """Gradients of both networks' losses, computed as a step computes them, and cleared."""
    stage, n = trainer.config.stages[0], trainer.networks
    positions = trainer.positions(stage.batch)
    trainer.dataset = loop.open_dataset(trainer.config.data, stage.resolution)
    real = next(real_batches(trainer, stage))[0].double() / 127.5 - 1
    draws = loop.step_draws(trainer, stage)
    fake = render_fakes(n.generator, draws.fakes(positions, "D"), draws, context(stage))
    discriminator_step(n, real, fake, Objective(r1=R1(10.0)), alpha=0.5)
    generator_step(n, fake, alpha=0.5)
    result = {}
    for name in ("generator", "discriminators", "poses"):
        module = n.modules[name]
        if average:
            loop.average_gradients(trainer, [*module.parameters()])
        result |= {
            f"{name}/{key}": p.grad.clone()
            for key, p in module.named_parameters()
            if p.grad is not None
        }
        module.zero_grad(set_to_none=True)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(
    tmp_path_factory: pytest.TempPathFactory, data: str
) -> Iterator[dict[str, dict[str, Any]]]:
    """Results of two processes with half the batch each, and of one with the whole batch."""
    folder, port = str(tmp_path_factory.mktemp("ranks")), free_port()
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=train_as_rank, args=(rank, 2, port, folder, data)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    threads = torch.get_num_threads()
    train_as_rank(0, 1, 0, folder, data)
    torch.set_num_threads(threads)
    for process in processes:
        process.join(90)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0
    yield {name: torch.load(Path(folder) / f"{name}.pt") for name in ("1-0", "2-0", "2-1")}


def test_half_the_batch_on_each_of_two_processes_gives_the_gradients_of_the_whole(
    ranks: dict[str, dict[str, Any]],
) -> None:
    whole = flat(ranks["1-0"]["gradients"])
    assert torch.equal(whole, flat(ranks["1-0"]["local"]))
    for rank in ("2-0", "2-1"):
        assert ranks[rank]["gradients"].keys() == ranks["1-0"]["gradients"].keys()
        assert (flat(ranks[rank]["gradients"]) - whole).norm() <= 1e-6 * whole.norm()
        # the halves differ
        assert (flat(ranks[rank]["local"]) - whole).norm() > 0.01 * whole.norm()


def test_two_processes_train_to_the_weights_of_one(ranks: dict[str, dict[str, Any]]) -> None:
    assert same_bits(ranks["2-0"]["weights"], ranks["2-1"]["weights"])
    initial = weights_at_the_start(ranks)
    one, two = flat(ranks["1-0"]["weights"]), flat(ranks["2-0"]["weights"])
    assert (one - initial).abs().max() > 1e-3  # the run did train
    assert (one - two).abs().max() < 1e-6


def test_all_processes_adapt_the_augmentation_alike(ranks: dict[str, dict[str, Any]]) -> None:
    assert [ranks[rank]["augment"] for rank in ("2-0", "2-1")] == [ranks["1-0"]["augment"]] * 2
    assert ranks["1-0"]["augment"] > 0


def test_a_ctrl_c_to_one_process_stops_all_at_the_same_step(
    ranks: dict[str, dict[str, Any]],
) -> None:
    assert ranks["2-0"]["stopped"] == ranks["2-1"]["stopped"]
    assert ranks["2-0"]["stopped"]["step"] == 6


def weights_at_the_start(ranks: dict[str, dict[str, Any]]) -> Tensor:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return flat(weights(Networks(two_process_config("heads"), torch.device("cpu"))))
    finally:
        torch.set_default_dtype(default)


def test_only_the_main_process_writes(
    ranks: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = next(tmp_path_factory.getbasetemp().glob("ranks*")) / "run-2"
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
    assert len(list(run.glob("events.*"))) == 2  # one before the interrupt and one after it
    stored = load_file(run / "checkpoints" / f"{48:012d}.safetensors")
    assert torch.equal(stored["averaged/module.inr.blocks.0.first.weight"], ranks["2-1"]["weights"][
        "averaged/module.inr.blocks.0.first.weight"
    ])  # fmt: skip
