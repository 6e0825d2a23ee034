"""The same numbers on every device: what a GPU computes against the CPU.

On the CPU too, the second computation takes the routes of GPUs: large chunks, and torch in the
place of compiled loops. And draws do not depend on torch's default type and device.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

import tiny
from cips3d.camera import Camera
from cips3d.editing.inversion import InversionConfig, invert
from cips3d.export.meshes import extract_mesh
from cips3d.models import nerf, prepared, protocol, volume
from cips3d.models.cost import device_memory
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.ops import kernels, sine
from cips3d.models.types import RayDraws, RenderOutput
from cips3d.records import TensorRecord
from cips3d.training.augment import AugmentDraws
from cips3d.training.cameras import DatasetCameras
from cips3d.training.draws import FakeDraws, StepDraws, mirrored, real_order
from cips3d.training.loop import train
from cips3d.training.networks import Networks
from cips3d.training.objective import R1, Objective, Pose, squared_gradient
from cips3d.training.recipe import Stage
from cips3d.training.run import Run
from cips3d.training.step import Batch, StepContext, training_step
from cips3d.viewer.rendering import RenderSpeed, pixels_of, strips
from cips3d.viewer.worker import run_all
from steps import context

CPU = torch.device("cpu")
#: Relative to the largest number: float32 sums in another order, through sines of large arguments.
CLOSE = 2e-4

Named = dict[str, Tensor]


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """The routes that tensors take on GPUs, on CPUs too."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (nerf, prepared):
            patch.setattr(module, "CHUNK_SAMPLES", (nerf.CHUNK_SAMPLES[0],) * 2)
        patch.setattr(protocol, "CHUNK_BYTES", (protocol.CHUNK_BYTES[0],) * 2)
        patch.setattr(kernels, "readable", lambda *_: False)
        yield


def assert_same(
    compute: Callable[[torch.device], Named], device: torch.device, close: float = CLOSE
) -> None:
    """What is computed on the CPU and on the device, by the routes of GPUs, agrees."""
    expected = compute(CPU)
    with as_on_gpus():
        found = compute(device)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        other = found[name].detach()
        assert other.device.type == device.type, name
        scale = float(value.detach().abs().max()) or 1.0
        difference = float((other.cpu() - value.detach()).abs().max())
        assert difference <= close * scale, f"{name}: {difference:.2g} of {scale:.2g}"


def model(device: torch.device, **changes: Any) -> Generator:
    """A generator with a body in empty space."""
    torch.manual_seed(0)
    solid = {"density_gain": 40.0, "density_blob": 60.0, "coarse": 12}
    generator = Generator(tiny.generator(**(solid | changes)))
    generator.update_style_means(50)
    return generator.to(device)


def cameras(device: torch.device) -> Camera:
    return Camera.orbit(torch.tensor([-0.3, 0.1]), torch.tensor([0.1, -0.2])).to(device)


def ray_draws(generator: Generator, device: torch.device, side: int) -> RayDraws:
    draws = torch.Generator().manual_seed(1)
    return RayDraws.sample(2, side**2, generator.sampling, 1.0, draws).to(device)


# ---------------------------------------------------------------- generator
@pytest.mark.parametrize("embedding", ["film", "learned", "fixed"])
@pytest.mark.parametrize("background", ["plain", "endless"])
def test_images(device: torch.device, embedding: str, background: str) -> None:
    def images(device: torch.device) -> Named:
        generator = model(device, embedding=embedding, background=background)
        z, draws = generator.sample_latents(2, 0), ray_draws(generator, device, 12)
        with torch.no_grad():
            return vars(generator.render(z, cameras(device), 12, draws=draws))

    assert_same(images, device)


def test_gradients(device: torch.device) -> None:
    def gradients(device: torch.device) -> Named:
        generator = model(device)
        camera = cameras(device)
        pose = camera.cam_to_world.clone().requires_grad_()
        out = generator.render(
            generator.sample_latents(2, 0), replace(camera, cam_to_world=pose), 8,
            draws=ray_draws(generator, device, 8),
        )  # fmt: skip
        (out.image.square().mean() + out.aux_image.sum() + out.depth.mean()).backward()
        assert pose.grad is not None
        return {"camera": pose.grad} | named_gradients(generator)

    assert_same(gradients, device)


def named_gradients(module: nn.Module) -> Named:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_prepared_subjects(device: torch.device, precision: Any) -> None:
    def images(device: torch.device) -> Named:
        generator = model(device).requires_grad_(False)
        subject = generator.prepare(generator.map(generator.sample_latents(1, 0)), precision)
        return vars(generator.render(subject, cameras(device), 12))

    assert_same(images, device, CLOSE if precision == "auto" else 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(device: torch.device, dtype: torch.dtype) -> None:
    generator = model(device)
    z = generator.sample_latents(2, 0)
    plain = generator.render(z, cameras(device), 12)
    with torch.autocast(device.type, dtype):
        half = generator.render(z, cameras(device), 12)
    assert torch.equal(half.depth, plain.depth)  # the field is not in 16 bits
    assert 0 < (half.image - plain.image).abs().max() < 2e-2
    half.image.square().mean().backward()
    assert all(gradient.isfinite().all() for gradient in named_gradients(generator).values())


def test_a_prepared_subject_keeps_its_precision_under_autocast(device: torch.device) -> None:
    generator = model(device).requires_grad_(False)
    styles = generator.map(generator.sample_latents(1, 0))
    plain = generator.render(generator.prepare(styles, "float32"), cameras(device), 12)
    with torch.autocast(device.type, torch.bfloat16):
        other = generator.render(generator.prepare(styles, "float32"), cameras(device), 12)
    for expected, found in zip(vars(plain).values(), vars(other).values(), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- samples, chunks, sines
@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 0.97, 1.0])
def test_all_visible_samples_are_selected(device: torch.device, share: float) -> None:
    draws = torch.Generator().manual_seed(0)
    marked = torch.rand(3, 1000, generator=draws) < torch.tensor([[share], [share / 2], [0.0]])
    exact, marked = int(marked.sum(dim=1).max()), marked.to(device)
    most, index = volume.most_marked(marked), volume.first_marked(marked)
    assert exact <= most <= min(1000, exact * 1.0625 + 15)
    chosen = torch.zeros_like(marked).scatter_(1, index, True)
    assert bool((chosen | ~marked).all())
    assert index.shape[1] == max(1, most)
    assert all(len(row.unique()) == len(row) for row in index)


@pytest.mark.parametrize("samples", [1, 7, 2**20])
@pytest.mark.parametrize("embedding", ["film", "fixed"])
def test_densities_do_not_depend_on_the_chunk(
    samples: int, embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = model(CPU, embedding=embedding)
    w = generator.map(generator.sample_latents(2, 0)).shape
    rays = cameras(CPU).rays(5, 5)
    t = torch.linspace(0.8, 1.2, 6).expand(2, rays.count, -1).contiguous()
    expected = generator.nerf.density_along(rays, t, w)
    monkeypatch.setattr(nerf, "CHUNK_SAMPLES", (samples, samples))
    torch.testing.assert_close(generator.nerf.density_along(rays, t, w), expected)


def test_sines(device: torch.device) -> None:
    def sines(device: torch.device) -> Named:
        draws = torch.Generator().manual_seed(0)
        x = (60 * torch.randn(2, 7, 4, generator=draws)).to(device).requires_grad_()
        shift, t = torch.randn(2, 1, 4, generator=draws), torch.randn(2, 7, 3, generator=draws)
        shift, t = shift.to(device).requires_grad_(), t.to(device)
        out = sine.sine(x, shift)
        first = torch.autograd.grad(out.square().sum(), (x, shift), create_graph=True)
        (second,) = torch.autograd.grad(first[0].sum(), x)
        with torch.no_grad():
            in_place = sine.sine_(x.detach().clone(), shift)
            along = sine.sine_along(x.detach(), x.detach().flip(1), t, slice(2, 6))
        names = ("out", "x", "shift", "second", "in place", "along")
        return dict(zip(names, (out, *first, second, in_place, along), strict=True))

    assert_same(sines, device)


# ---------------------------------------------------------------- training
def test_discriminators(device: torch.device) -> None:
    def judged(device: torch.device) -> Named:
        torch.manual_seed(0)
        config = DiscriminatorConfig({4: 8, 8: 8, 16: 4}, stddev_group=2, pose_head=True)
        network = ProgressiveDiscriminator(config).to(device)
        draws = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 16, 16, generator=draws).to(device).requires_grad_()
        judgement = network.judge(images, 0.3)
        logits, pose = judgement.logits, judgement.pose
        assert pose is not None
        penalty = squared_gradient(logits, images)
        (penalty.mean() + pose.square().sum()).backward()
        values = {"logits": logits, "pose": pose, "penalty": penalty}
        return values | named_gradients(network)

    assert_same(judged, device)


@dataclass(frozen=True)
class MovedDraws(StepDraws):
    """Draws made on the CPU, whose random numbers other devices do not have."""

    def fakes(self, positions: Any, purpose: str) -> FakeDraws:
        here = StepDraws(**(vars(self) | {"device": CPU})).fakes(positions, purpose)
        moved = (part.to(self.device) for part in (here.latents, here.camera, here.rays))
        return FakeDraws(*moved, here.positions)


@pytest.mark.parametrize("gradients", ["full", "partial", "checkpointed"])
def test_training_steps(device: torch.device, gradients: Any) -> None:
    stage = Stage(
        8, kimg=1, batch=4, accumulate=2, gradients=gradients, chunk=20,
        gradient_rays=24 if gradients == "partial" else None,
    )  # fmt: skip
    judges = (
        DiscriminatorConfig({4: 8, 8: 8}, pose_head=True),
        DiscriminatorConfig({4: 8, 8: 8}, downsample_first=True, pose_head=True),
    )
    config = replace(
        tiny.config(), stages=(stage,), objective=Objective(r1=R1(10.0), pose=Pose()),
        generator=tiny.generator(density_gain=40.0, density_blob=60.0),
        discriminator=judges[0], aux_discriminator=judges[1],
    )  # fmt: skip

    def step(device: torch.device) -> Named:
        networks = Networks(config, device)
        networks.prepare(stage)
        generator = torch.Generator().manual_seed(0)
        real = torch.rand(4, 3, 8, 8, generator=generator).to(device)
        draws = MovedDraws(
            config.generator, config.generator.sampling, 8, 1.0, (0, 0), device,
            config.generator.poses, 0.7,
        )  # fmt: skip
        batch = Batch(range(4), real, None, draws.augment(range(4)))
        of_step: StepContext = context(stage, alpha=0.4)
        result = training_step(networks, batch, draws, config.objective, of_step)
        found = named_gradients(networks.generator) | dict(result.figures)
        return found | named_gradients(networks.discriminators)

    assert_same(step, device, 1e-3)


def test_draws_are_sent_without_waiting(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA tells when it waits")
    config = tiny.config()
    draws = StepDraws(
        config.generator, config.generator.sampling, 8, 1.0, (0, 0), device,
        config.generator.poses, 0.7,
    )  # fmt: skip
    draws.fakes(range(4), "D")
    torch.cuda.set_sync_debug_mode("error")
    try:
        draws.fakes(range(4), "D")
        draws.augment(range(4))
        draws.gradient_rays(range(8), 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_trains(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        config = tiny.config(tiny.images(tmp_path / "images"), workers=1)
        run = Run(config, tmp_path / "run", Accelerator())
        assert run.device.type == device.type and run.memory == device_memory(run.device)
        path = train(run)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    again = Run(config, tmp_path / "run", Accelerator(cpu=device.type == "cpu"))
    assert path.exists() and again.counters.images == 48 and again.counters.skipped == 0


# ---------------------------------------------------------------- use
def test_meshes(device: torch.device) -> None:
    def mesh(device: torch.device) -> Named:
        generator = model(device)
        found = extract_mesh(generator, generator.sample_latents(1, 0), resolution=24)
        assert found.is_watertight
        low, high = found.bounds
        numbers = [found.metadata["level"], found.volume, *low, *high]
        colours = found.visual.vertex_colors[:, :3].mean(axis=0) / 255
        return {
            "shape": torch.tensor(numbers, dtype=torch.float32).to(device),
            "colours": torch.tensor(colours, dtype=torch.float32).to(device),
        }

    assert_same(mesh, device, 1e-2)


def test_inversion(device: torch.device) -> None:
    def inverted(device: torch.device) -> Named:
        generator = model(device).requires_grad_(False)
        image = generator.render(generator.sample_latents(1, 5), cameras(device)[0], 8).image
        config = InversionConfig(steps=(3, 3, 2, 2))
        found = invert(generator, image.clamp(-1, 1), config=config)
        assert found.generator.device.type == device.type
        angles = torch.stack(found.camera.yaw_pitch())
        return {"angles": angles, "loss": torch.tensor([found.loss]).to(device)}

    assert_same(inverted, device, 2e-2)


def test_the_viewers_strips(device: torch.device) -> None:
    def shown(device: torch.device) -> RenderOutput:
        generator = model(device).requires_grad_(False)
        styles = generator.map(generator.sample_latents(1, 0))
        steps = strips(
            generator, styles, cameras(device)[0], (20, 30), generator.sampling, RenderSpeed()
        )
        return run_all(steps)

    expected = shown(CPU)
    with as_on_gpus():
        found = shown(device)
    assert found.image.device == CPU
    torch.testing.assert_close(found.image, expected.image, atol=CLOSE, rtol=0)
    assert pixels_of(found, "depth").shape == (20, 30, 3)


# ---------------------------------------------------------------- torch's defaults
@contextmanager
def defaults(dtype: torch.dtype, device: str | None) -> Iterator[None]:
    """Other defaults of torch; the meta device stands for any that the tensors are not on."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def tensors_of(record: TensorRecord) -> list[Tensor]:
    return [value for value in vars(record).values() if isinstance(value, Tensor)]


def every_draw(generator: Generator, networks: bool) -> list[Tensor]:
    """Numbers that a seed alone decides."""
    config, seeded = tiny.config(), lambda: torch.Generator().manual_seed(0)
    step = StepDraws(
        config.generator, generator.sampling, 4, 0.5, (0, 0), CPU, config.generator.poses, 0.5
    )
    fakes, augment = step.fakes(range(2), "D"), step.augment(range(2))
    assert augment is not None
    uniform = replace(config.generator.poses, kind="uniform")
    tensors = [
        *tensors_of(generator.sample_latents(2, 0)),
        *tensors_of(generator.sample_latents(2, seeded())),
        config.generator.poses.draw(2, seeded()), uniform.draw(2, seeded()),
        *tensors_of(fakes.latents), *tensors_of(fakes.camera), *tensors_of(fakes.rays),
        *tensors_of(augment), *tensors_of(AugmentDraws.sample([3, 4])),
        DatasetCameras.draw(DatasetCameras.__new__(DatasetCameras), 2, seeded()),
        step.gradient_rays(range(8), 5), mirrored((0, 0), range(8)),
        torch.tensor(next(real_order(10, 0, 0, 4, range(4))), device="cpu"),
    ]  # fmt: skip
    if networks:
        made = Networks(config, CPU)
        tensors += [*made.generator.parameters(), *made.discriminators.parameters()]
        assert made.averaged.n_averaged.device == CPU
    return tensors


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float64, None), (torch.float32, "meta"), (torch.float64, "meta")]
)
def test_draws_do_not_depend_on_defaults(dtype: torch.dtype, device: str | None) -> None:
    generator = model(CPU)
    networks = dtype == torch.float32  # new networks have the default type
    expected = every_draw(generator, networks)
    with defaults(dtype, device):
        found = every_draw(generator, networks)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_rendered_is_where_the_model_is(dtype: torch.dtype) -> None:
    generator = model(CPU).requires_grad_(False)
    z, camera = generator.sample_latents(1, 0), cameras(CPU)[0]
    styles = generator.map(z)

    def images() -> list[Tensor]:
        config = InversionConfig(steps=(1, 1, 1, 1))
        plain = generator.render(z, camera, 8)
        ready = generator.render(generator.prepare(styles, "float32"), camera, 8)
        found = invert(generator, plain.image, config=config)
        return [*tensors_of(plain), *tensors_of(ready), *tensors_of(found.camera)]

    expected = images()
    with defaults(dtype, "meta"):
        found = images()
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# ---------------------------------------------------------------- make gpu
def test_the_script_for_gpus_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--out", str(tmp_path)])
    path = tmp_path / "gpu.json"

    def status() -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            gpu.main()
        return ended.value.code

    # two parts are there; compiling would fail in the checks of types that the tests add
    there = {name: {"seconds": 1.0} for name in ("compiled", "step heads-32 bf16")}
    done = {"machine": gpu.machine(CPU)} | there
    path.write_text(json.dumps(done))
    assert status() == 0
    found = json.loads(path.read_text())
    assert found.items() >= done.items() and "compiled:" not in capsys.readouterr().out
    names = {name.split()[0] for name in found}
    assert names == {"machine", "compiled", "tests", "product", "image", "step", "trained"}
    assert "passed" in found["tests"]["summary"]
    psnr = {name: value["psnr"] or math.inf for name, value in found.items() if "psnr" in value}
    assert psnr["image 8 bf16"] > 50 and psnr["image 8 no prepared"] > 80
    assert found["step heads-32 no"]["planned_bytes"] > 1e7
    assert found["trained"]["images"] == 12
    assert Image.open(tmp_path / "gpu.png").width > 5 * 16

    written = path.stat().st_mtime_ns
    assert status() == 0 and path.stat().st_mtime_ns == written  # everything is there
    path.write_text(json.dumps({"machine": {"device": "another"}}))
    assert status() == 2 and "give another --out" in capsys.readouterr().err
