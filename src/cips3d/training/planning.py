"""What a training run will cost, before it starts: its own code, run on shapes only (torch's meta device).

Every operation of a step is carried out without values, in the order of the trainer, while operations are counted and the
storages that are alive are added up. So the figures follow the code; there is no second model of it to keep in step.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from cips3d.camera import Camera
from cips3d.models import volume
from cips3d.models.registry import build_generator
from cips3d.models.cost import parameter_count
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.types import Latents, RayDraws, RenderOutput
from cips3d.training import gradients, losses
from cips3d.training.draws import FakeDraws, fake_draws
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.steps import Judging, Networks, discriminator_step, generator_step

Mode = Literal["full", "partial", "checkpointed"]
META = torch.device("meta")
#: How long `measured_speed` measures, about.
MEASURED_SECONDS = 3.0


@dataclass(frozen=True)
class StepCost:
    """What one step costs each process.

    Attributes:
        flops: operations of matrix products and convolutions (2 per multiply-add) per picture, with the penalties' share.
        peak_bytes: the most that is alive at one time, with weights, average and Adam's moments.
    """

    flops: float
    peak_bytes: int


class Account(TorchDispatchMode):
    """Counts operations and adds up the storages that they make for as long as these live.

    torch's FlopCounterMode does the first, but its hooks refuse the second derivative that R1 takes; its formulas serve here.

    Attributes:
        flops: operations of matrix products and convolutions so far (2 per multiply-add).
        peak: the largest sum of storages so far, bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def step_cost(
    config: TrainConfig,
    stage: Stage,
    pictures: int,
    memory: int,
    visible: float = 1.0,
    processes: int = 1,
) -> StepCost:
    """Cost of a step of a stage.

    Args:
        pictures: of the batch that each process takes; a multiple of `stage.accumulate`.
        memory: bytes of each process, from which chunks follow where the stage gives none.
        visible: share of the samples that are seen and need features and gradients (see `visible_share`).
        processes: with more than one, gradients are averaged.
    """
    networks = Networks(config, META, fresh=False)
    if config.precision != "no":
        inr = [
            part for name, part in networks.generator.named_children() if name == "inr"
        ]  # pi-gan has none
        for module in (*inr, *networks.discriminators.values()):
            _in_half_precision(module)
    state = 4 * (
        4 * parameter_count(networks.generator) + 3 * parameter_count(networks.discriminators)
    )
    piece = pictures // stage.accumulate
    sampling = config.sampling or networks.generator.sampling
    chunk = stage.chunk or gradients.automatic_chunk(config.generator, piece, sampling, memory)
    counted = max(chunk, stage.resolution**2 // 8)  # counting many small chunks would take minutes

    def run(chunk: int, penalised: bool) -> Account:
        return _run_step(networks, config, replace(stage, chunk=chunk), piece, penalised, processes)

    token = volume.assumed_share.set(visible)
    try:
        penalised = run(counted, True)
        plain = penalised if config.r1_every == 1 else run(counted, False)
        peak = max(penalised.peak, plain.peak)
        if counted > chunk and stage.gradients != "full":  # memory grows linearly with the chunk
            peak -= (run(2 * counted, True).peak - penalised.peak) * (counted - chunk) // counted
    finally:
        volume.assumed_share.reset(token)
    flops = plain.flops + (penalised.flops - plain.flops) / config.r1_every
    return StepCost(flops / piece, state + peak)


def in_mode(stage: Stage, mode: Mode) -> Stage:
    """The stage with other gradients; partial ones on as many rays as it says, or a quarter of them."""
    rays = (stage.gradient_rays or stage.resolution**2 // 4) if mode == "partial" else None
    return replace(stage, gradients=mode, gradient_rays=rays)


def visible_share(config: TrainConfig) -> float:
    """The share of samples that the run's new generator shows, or a half: fog comes before surfaces, which then hide more.

    Operations grow linearly with it: those of a real small picture lie between those of shapes with no and all samples seen.
    """
    stage = Stage(8, kimg=1)
    counts = []
    for assumed in (0.0, 1.0):
        token = volume.assumed_share.set(assumed)
        with torch.no_grad(), Account() as account:
            _generate(Networks(config, META, fresh=False).generator, config, stage, 1)
        volume.assumed_share.reset(token)
        counts.append(account.flops)
    if counts[0] == counts[1]:  # cips-2d has no samples
        return 1.0
    with torch.no_grad(), Account() as account:
        cpu = torch.device("cpu")
        _pictures(Networks(config, cpu, fresh=False).generator, config, stage.resolution, cpu)
    return max(0.5, (account.flops - counts[0]) / (counts[1] - counts[0]))


def measured_speed(config: TrainConfig, processes: int = 1) -> float:
    """Operations a second that this machine reaches in a generator's forward and backward pass.

    In the run's own precision, where the machine has it; of one small picture on a CPU, of what keeps an accelerator busy.

    Args:
        processes: that share the machine's cores, where it has no accelerator; the speed is that of one of them.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, threads // processes))
    try:
        return _speed(config, device)
    finally:
        torch.set_num_threads(threads)


def _speed(config: TrainConfig, device: torch.device) -> float:
    pictures, side = (
        (1, 32) if device.type == "cpu" else (2, min(128, config.stages[-1].resolution))
    )
    generator = build_generator(config.generator).to(device)
    halved = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def one_pass() -> None:
        with halved:
            image = _pictures(generator, config, side, device, pictures).image
        image.sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    with Account() as account:
        one_pass()
    start, elapsed, passes = time.perf_counter(), 0.0, 0
    while elapsed < MEASURED_SECONDS:
        one_pass()
        passes, elapsed = passes + 1, time.perf_counter() - start
    return passes * account.flops / elapsed


def _pictures(
    generator: Generator, config: TrainConfig, side: int, device: torch.device, count: int = 1
) -> RenderOutput:
    sampling = config.sampling or generator.sampling
    draws = fake_draws(config.generator, sampling, side, 0.0, ("plan",), range(count), device)
    return gradients.full(generator, draws.latents, draws.camera, side, draws.rays, sampling)


def parameters(config: TrainConfig) -> dict[str, int]:
    """Trainable numbers of each network."""
    networks = Networks(config, META, fresh=False)
    counts = {"generator": parameter_count(networks.generator)}
    names = {"main": "discriminator", "aux": "auxiliary discriminator"}
    return counts | {
        names[name]: parameter_count(module) for name, module in networks.discriminators.items()
    }


def _run_step(
    networks: Networks,
    config: TrainConfig,
    stage: Stage,
    pictures: int,
    penalised: bool,
    processes: int,
) -> Account:
    """One piece of a step, as the trainer takes it."""
    for parameter in (*networks.generator.parameters(), *networks.discriminators.parameters()):
        parameter.grad = None
    for name, part in networks.generator.named_children():
        part.requires_grad_(name not in stage.frozen)
    weights = [0.5 * gamma if penalised else 0.0 for gamma in (config.r1_gamma, config.r2_gamma)]
    judging = Judging(
        0.5 if stage.fade_kimg else 1.0, stage.auxiliary, None, config.loss == "relativistic"
    )
    if config.judges_cameras:
        labels = torch.empty(pictures, 25, device=META)
        judging = replace(judging, real_cameras=labels, fake_cameras=labels)
    if config.pose_weight:
        judging = replace(
            judging,
            fake_poses=torch.empty(pictures, 2, device=META),
            pose_weight=config.pose_weight,
        )
    with Account() as account:
        real = torch.empty(pictures, 3, stage.resolution, stage.resolution, device=META)
        with torch.set_grad_enabled(config.share_fakes):
            fake = _generate(networks.generator, config, stage, pictures)
        discriminator_step(networks, real, fake, judging, *weights)
        _average(networks.discriminators, processes)
        if not config.share_fakes:
            fake = _generate(networks.generator, config, stage, pictures)
        regulariser = None
        if config.transmittance_weight:
            regulariser = losses.transmittance_loss(fake.opacity, config.transmittance_target)
        generator_step(networks, fake, judging, regulariser, real)
        _average(networks.generator, processes)
    return account


def _generate(
    generator: Generator, config: TrainConfig, stage: Stage, pictures: int
) -> RenderOutput:
    c, side = generator.config, stage.resolution
    sampling = config.sampling or generator.sampling
    latents = Latents(
        torch.empty(pictures, c.shape_dim, device=META),
        torch.empty(pictures, c.appearance_dim, device=META),
    )
    camera = Camera(torch.empty(pictures, 4, 4, device=META), torch.empty(pictures, device=META))
    jitter = torch.empty(pictures, side**2, sampling.coarse, device=META)
    importance = torch.empty(pictures, side**2, sampling.fine, device=META)
    draws = FakeDraws(latents, camera, RayDraws(jitter, importance))
    return gradients.for_stage(
        stage, generator, draws, sampling, (0, 0), memory=0
    )  # `step_cost` sees to the chunk


def _average(module: nn.Module, processes: int) -> None:
    """The flat copies that averaging over processes makes."""
    if processes > 1:
        flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        flat.clone()


def _in_half_precision(module: nn.Module) -> None:
    """Makes a module compute in 16 bits, as autocast would have it; the meta device has no autocast."""
    module.to(torch.bfloat16)
    entries = exits = [module]
    if isinstance(module, ProgressiveDiscriminator):  # which is called by its method `judge`
        entries = [part for part in (*module.from_rgb.values(), module.label) if part is not None]
        exits = [part for part in (module.logit, module.pose) if part is not None]
    for part in entries:
        part.register_forward_pre_hook(
            lambda _, args: tree_map_only(Tensor, lambda x: x.bfloat16(), args)
        )
    for part in exits:
        part.register_forward_hook(lambda _, __, result: result.float())
