"""What a training run will cost, before it starts: its own step, run on shapes only.

Every operation of `training_step` is carried out on torch's meta device, without values, while
operations are counted and the storages that are alive are added up. So the figures follow the code.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cips3d.models.cost import Account, automatic_chunk, parameter_count
from cips3d.models.discriminator import ProgressiveDiscriminator
from cips3d.models.ops.precision import fast_products
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.models.types import Latents, RayDraws, RenderOutput
from cips3d.training.draws import FakeDraws, StepDraws
from cips3d.training.networks import Networks
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.step import Batch, StepContext, render_fakes, training_step

Mode = Literal["full", "partial", "checkpointed"]
META = torch.device("meta")
#: How long `measured_speed` measures, about.
MEASURED_SECONDS = 3.0
#: Seconds that Python and torch need to launch one call on a GPU, about.
LAUNCH_SECONDS = 1e-5
#: Bytes per second of the memory of a V100, the paper's GPU.
BANDWIDTH = 900e9
#: Bytes that `measured_bandwidth` copies at a time, more than any cache holds.
_COPIED = 2**28


@dataclass(frozen=True)
class Machine:
    """How fast each process trains.

    Attributes:
        speed: operations of matrix products and convolutions per second.
        bandwidth: bytes per second that all other calls read and write.
        launch: seconds to launch a call.
    """

    speed: float
    bandwidth: float = BANDWIDTH
    launch: float = LAUNCH_SECONDS


@dataclass(frozen=True)
class StepCost:
    """What one step costs each process.

    Attributes:
        flops: operations of matrix products and convolutions (2 per multiply-add) per image, lazy
            penalties included by their share.
        peak_bytes: the most that is alive at one time, with weights, average and Adam's moments.
        launches: calls per step that compute something, lazy penalties likewise.
        passed_bytes: bytes per image that calls other than those products read and write, likewise.
    """

    flops: float
    peak_bytes: int
    launches: float
    passed_bytes: float

    def seconds(self, images: int, machine: Machine) -> dict[str, float]:
        """What each resource alone needs for a step; the step takes as long as the slowest.

        Launches run ahead of the GPU, and products overlap with the passes of other calls at best.
        """
        return {
            "arithmetic": images * self.flops / machine.speed,
            "launches": self.launches * machine.launch,
            "memory": images * self.passed_bytes / machine.bandwidth,
        }


@dataclass(frozen=True)
class ShapeDraws(StepDraws):
    """Draws without values, of which a share is visible (see `visible_share`)."""

    visible_share: float = 1.0

    def fakes(self, positions: range | list[int], purpose: str) -> FakeDraws:
        count, rays, networks = len(positions), self.resolution**2, self.config.networks
        generator = torch.Generator().manual_seed(0)
        camera = self.cameras.camera(self.cameras.draw(count, generator)).to(META)
        latents = Latents(
            torch.empty(count, networks.shape_dim, device=META),
            torch.empty(count, networks.appearance_dim, device=META),
        )
        draws = RayDraws(
            torch.empty(count, rays, self.sampling.coarse, device=META),
            torch.empty(count, rays, self.sampling.fine, device=META),
            visible_share=self.visible_share,
        )
        return FakeDraws(latents, camera, draws, positions)


def step_cost(
    config: TrainConfig,
    stage: Stage,
    images: int,
    memory: int,
    visible: float = 1.0,
    processes: int = 1,
) -> StepCost:
    """Cost of a step of a stage.

    Args:
        images: of the batch that each process takes; a multiple of `stage.accumulate`.
        memory: bytes of each process, which set the chunks where the stage gives none.
        visible: share of the samples that are visible and need features and gradients.
        processes: with more than one, gradients are averaged.
    """
    networks, piece = Networks(config, META, fresh=False), images // stage.accumulate
    if config.precision != "no":
        inr = [part for name, part in networks.generator.named_children() if name == "inr"]
        for module in (*inr, *networks.discriminators.values()):
            _in_half_precision(module)
    networks.prepare(stage, config.frozen_discriminator_blocks)
    side, sampling = stage.resolution, config.sampling or config.generator.sampling
    chunk = stage.chunk or automatic_chunk(config.generator, piece, sampling, memory)
    counted = max(chunk, side**2 // 8)  # counting many small chunks takes minutes
    augment = 0.5 if config.augment_target is not None else stage.augment
    cameras = networks.poses or config.generator.poses
    draws = ShapeDraws(
        config.generator, sampling, side, 0.0, (0, 0), META, cameras, augment, visible
    )

    def run(chunk: int, step: int) -> Account:
        """One piece of a step, as the training loop takes it."""
        one_piece = replace(stage, chunk=chunk, accumulate=1, batch=max(1, piece))
        context = _context(one_piece, step, config.share_fakes, processes)
        with Account() as account:
            labels = torch.empty(piece, 25, device=META) if config.judges_cameras else None
            real = torch.empty(piece, 3, side, side, device=META)
            batch = Batch(range(piece), real, labels, draws.augment(range(piece)))
            training_step(networks, batch, draws, config.objective, context)
        return account

    penalties = [term.every for term in (config.objective.r1, config.objective.r2) if term]
    every = min(penalties, default=1)
    penalised = run(counted, 0)  # all lazy terms are due at step 0, none at step 1
    plain = penalised if every == 1 else run(counted, 1)
    peak = max(penalised.peak, plain.peak)
    launches = plain.launches + (penalised.launches - plain.launches) / every
    # memory grows linearly with the chunk, launches with the number of chunks
    if counted > chunk and stage.gradients != "full":
        larger = run(2 * counted, 0)
        peak -= (larger.peak - penalised.peak) * (counted - chunk) // counted
        many, some, few = (math.ceil(side**2 / c) for c in (chunk, counted, 2 * counted))
        launches += (penalised.launches - larger.launches) * (many - some) / (some - few)
    # float32 weights, average of the generator, and Adam's moments
    generator, discriminators = map(parameter_count, (networks.generator, networks.discriminators))
    state = 4 * (4 * generator + 3 * discriminators)
    flops = plain.flops + (penalised.flops - plain.flops) / every
    passed = plain.passed_bytes + (penalised.passed_bytes - plain.passed_bytes) / every
    return StepCost(flops / piece, state + peak, launches * stage.accumulate, passed / piece)


def _context(
    stage: Stage, step: int = 0, share_fakes: bool = False, processes: int = 1
) -> StepContext:
    def update(optimizer: torch.optim.Optimizer) -> bool:
        if processes > 1:  # the flat copies that averaging over processes makes
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).clone()
        return True

    alpha = 0.5 if stage.fade_kimg else 1.0
    return StepContext(stage, step, alpha, False, share_fakes, 0, nullcontext, update)


def in_mode(stage: Stage, mode: Mode) -> Stage:
    """The stage with other gradients; partial ones on its own rays, or a quarter of all."""
    rays = (stage.gradient_rays or stage.resolution**2 // 4) if mode == "partial" else None
    return replace(stage, gradients=mode, gradient_rays=rays)


def visible_share(config: TrainConfig) -> float:
    """The share of samples that the run's new generator shows, or a half.

    Fog comes before surfaces, which hide more later. Operations grow linearly with the share: those
    of a small real image lie between those of shapes with no and with all samples visible.
    """

    def flops(device: torch.device, visible: float = 1.0) -> int:
        generator = Networks(config, device, fresh=False).generator
        # with gradients, as in training: without them samples are not chosen
        with torch.enable_grad(), Account() as account:
            _image(generator, config, 8, device, visible=visible)
        return account.flops

    none, all_samples = flops(META, 0.0), flops(META, 1.0)
    if none == all_samples:  # a generator without samples
        return 1.0
    return max(0.5, (flops(torch.device("cpu")) - none) / (all_samples - none))


def measured_machine(config: TrainConfig, processes: int = 1) -> Machine:
    """This machine. On a CPU, the speed of products includes all other calls."""
    speed = measured_speed(config, processes)
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return Machine(speed, bandwidth=math.inf, launch=0.0)
    return Machine(speed, measured_bandwidth(device))


def measured_bandwidth(device: torch.device) -> float:
    """Bytes per second that copying on an accelerator reads and writes."""
    source, copy = (torch.empty(_COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = []
    for _ in range(5):
        torch.accelerator.synchronize()
        start = time.perf_counter()
        copy.copy_(source)
        torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * _COPIED / min(seconds)


def measured_speed(config: TrainConfig, processes: int = 1) -> float:
    """Operations per second of a generator's forward and backward pass on this machine.

    In the run's own precision: of one small image on a CPU, of enough to keep an accelerator busy.
    On a CPU it is the speed of one of `processes` that share the cores.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    on_cpu, threads = device.type == "cpu", torch.get_num_threads()
    images, side = (1, 32) if on_cpu else (2, min(128, config.stages[-1].resolution))
    generator = build_generator(config.generator).to(device)
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    autocast = torch.autocast(device.type, dtype, enabled=config.precision != "no")

    def one_pass() -> None:
        with autocast:
            image = _image(generator, config, side, device, images).image
        image.sum().backward()
        if not on_cpu:
            torch.accelerator.synchronize()

    if on_cpu:
        torch.set_num_threads(max(1, threads // processes))
    try:
        with Account() as account:
            one_pass()
        start, elapsed, passes = time.perf_counter(), 0.0, 0
        with fast_products("auto"):
            while elapsed < MEASURED_SECONDS:
                one_pass()
                passes, elapsed = passes + 1, time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return passes * account.flops / elapsed


def _image(
    generator: ImageGenerator,
    config: TrainConfig,
    side: int,
    device: torch.device,
    count: int = 1,
    visible: float = 1.0,
) -> RenderOutput:
    """Images as a training step renders them, with all gradients."""
    sampling = config.sampling or config.generator.sampling
    common = (config.generator, sampling, side, 0.0, (0, 0), device, config.generator.poses)
    draws = ShapeDraws(*common, 0.0, visible) if device == META else StepDraws(*common)
    stage = Stage(1 << (side - 1).bit_length(), kimg=1, batch=count)
    return render_fakes(generator, draws.fakes(range(count), "plan"), draws, _context(stage))


def parameters(config: TrainConfig) -> dict[str, int]:
    """Trainable numbers of each network."""
    networks = Networks(config, META, fresh=False)
    names = {
        "main": "discriminator",
        "aux": "auxiliary discriminator",
        "geometry": "reader of the geometry",
    }
    judges = {names[name]: module for name, module in networks.discriminators.items()}
    parts = {"generator": networks.generator} | judges
    return {name: parameter_count(module) for name, module in parts.items()}


def _in_half_precision(module: nn.Module) -> None:
    """Makes a module compute in 16 bits like autocast, which the meta device does not have."""
    module.to(torch.bfloat16)
    entries = exits = [module]
    if isinstance(module, ProgressiveDiscriminator):  # called by its method `judge`
        entries = [part for part in (*module.from_rgb.values(), module.label) if part is not None]
        heads = (module.logit, module.pose, module.code)
        exits = [part for part in heads if part is not None]
    for part in entries:
        part.register_forward_pre_hook(
            lambda _, args: tree_map_only(Tensor, lambda x: x.bfloat16(), args)
        )
    for part in exits:
        part.register_forward_hook(lambda _, __, result: result.float())
