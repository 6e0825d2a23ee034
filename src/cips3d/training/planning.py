"""What a training run will cost, before it starts: its own step, run on shapes only.

Every operation of `training_step` is carried out on torch's meta device, without values, while
operations are counted and the storages that are alive are added up. So the figures follow the code.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cips3d.models.cost import Account, automatic_chunk, parameter_count
from cips3d.models.discriminator import ProgressiveDiscriminator
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


@dataclass(frozen=True)
class StepCost:
    """What one step costs each process.

    Attributes:
        flops: operations of matrix products and convolutions (2 per multiply-add) per image, lazy
            penalties included by their share.
        peak_bytes: the most that is alive at one time, with weights, average and Adam's moments.
    """

    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class ShapeDraws(StepDraws):
    """Draws without values.

    Attributes:
        visible_share: share of the samples that are visible, see `visible_share`.
    """

    visible_share: float = 1.0

    def fakes(self, positions: range | list[int], purpose: str) -> FakeDraws:
        """Latents, cameras and ray draws for as many images."""
        count, networks = len(positions), self.config.networks
        latents = Latents(
            torch.empty(count, networks.shape_dim, device=META),
            torch.empty(count, networks.appearance_dim, device=META),
        )
        generator = torch.Generator().manual_seed(0)
        camera = self.cameras.camera(self.cameras.draw(count, generator)).to(META)
        rays = self.resolution**2
        jitter = torch.empty(count, rays, self.sampling.coarse, device=META)
        importance = torch.empty(count, rays, self.sampling.fine, device=META)
        draws = RayDraws(jitter, importance, visible_share=self.visible_share)
        return FakeDraws(latents, camera, draws)


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
    networks = Networks(config, META, fresh=False)
    if config.precision != "no":
        inr = [part for name, part in networks.generator.named_children() if name == "inr"]
        for module in (*inr, *networks.discriminators.values()):
            _in_half_precision(module)
    networks.prepare(stage, config.frozen_discriminator_blocks)
    trained = parameter_count(networks.generator), parameter_count(networks.discriminators)
    state = 4 * (4 * trained[0] + 3 * trained[1])  # weights, average of the generator, moments
    piece = images // stage.accumulate
    sampling = config.sampling or config.generator.sampling
    chunk = stage.chunk or automatic_chunk(config.generator, piece, sampling, memory)
    counted = max(chunk, stage.resolution**2 // 8)  # counting many small chunks takes minutes

    def run(chunk: int, step: int) -> Account:
        one_piece = replace(stage, chunk=chunk, accumulate=1, batch=max(1, piece))
        return _run_step(networks, config, one_piece, piece, step, visible, processes)

    penalties = [term.every for term in (config.objective.r1, config.objective.r2) if term]
    every = min(penalties, default=1)
    penalised = run(counted, 0)  # all lazy terms are due at step 0, none at step 1
    plain = penalised if every == 1 else run(counted, 1)
    peak = max(penalised.peak, plain.peak)
    if counted > chunk and stage.gradients != "full":  # memory grows linearly with the chunk
        peak -= (run(2 * counted, 0).peak - penalised.peak) * (counted - chunk) // counted
    flops = plain.flops + (penalised.flops - plain.flops) / every
    return StepCost(flops / piece, state + peak)


def _run_step(
    networks: Networks,
    config: TrainConfig,
    stage: Stage,
    images: int,
    step: int,
    visible: float,
    processes: int,
) -> Account:
    """One piece of a step, as the training loop takes it."""
    side = stage.resolution
    context = StepContext(
        stage=stage,
        step=step,
        alpha=0.5 if stage.fade_kimg else 1.0,
        warming_up=False,
        share_fakes=config.share_fakes,
        memory=0,  # the stage has its chunk
        autocast=nullcontext,
        update=lambda optimizer: _averaged(optimizer, processes),
    )
    draws = ShapeDraws(
        config=config.generator,
        sampling=config.sampling or config.generator.sampling,
        resolution=side,
        noise_std=0.0,
        key=(0, 0),
        device=META,
        cameras=networks.poses or config.generator.poses,
        augment_probability=0.5 if config.augment_target is not None else stage.augment,
        visible_share=visible,
    )
    with Account() as account:
        labels = torch.empty(images, 25, device=META) if config.judges_cameras else None
        real = torch.empty(images, 3, side, side, device=META)
        training_step(
            networks, Batch(range(images), real, labels), draws, config.objective, context
        )
        for parameter in (*networks.generator.parameters(), *networks.discriminators.parameters()):
            parameter.grad = None
    return account


def _averaged(optimizer: torch.optim.Optimizer, processes: int) -> bool:
    """The flat copies that averaging over processes makes."""
    if processes > 1:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        flat.clone()
    return True


def in_mode(stage: Stage, mode: Mode) -> Stage:
    """The stage with other gradients; partial ones on its own rays, or a quarter of all."""
    rays = (stage.gradient_rays or stage.resolution**2 // 4) if mode == "partial" else None
    return replace(stage, gradients=mode, gradient_rays=rays)


def visible_share(config: TrainConfig) -> float:
    """The share of samples that the run's new generator shows, or a half.

    Fog comes before surfaces, which hide more later. Operations grow linearly with the share: those
    of a small real image lie between those of shapes with no and with all samples visible.
    """
    counts = []
    for assumed in (0.0, 1.0):
        with torch.no_grad(), Account() as account:
            _image(Networks(config, META, fresh=False).generator, config, 8, META, 1, assumed)
        counts.append(account.flops)
    if counts[0] == counts[1]:  # a generator without samples
        return 1.0
    cpu = torch.device("cpu")
    with torch.no_grad(), Account() as account:
        _image(Networks(config, cpu, fresh=False).generator, config, 8, cpu)
    return max(0.5, (account.flops - counts[0]) / (counts[1] - counts[0]))


def measured_speed(config: TrainConfig, processes: int = 1) -> float:
    """Operations per second of a generator's forward and backward pass on this machine.

    In the run's own precision: of one small image on a CPU, of enough to keep an accelerator busy.

    Args:
        processes: that share the machine's cores, where it has no accelerator; the speed is that of
            one of them.
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
    on_cpu = device.type == "cpu"
    images, side = (1, 32) if on_cpu else (2, min(128, config.stages[-1].resolution))
    generator = build_generator(config.generator).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    def one_pass() -> None:
        with autocast:
            image = _image(generator, config, side, device, images).image
        image.sum().backward()
        if not on_cpu:
            torch.accelerator.synchronize()

    with Account() as account:
        one_pass()
    start, elapsed, passes = time.perf_counter(), 0.0, 0
    while elapsed < MEASURED_SECONDS:
        one_pass()
        passes, elapsed = passes + 1, time.perf_counter() - start
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
    poses = config.generator.poses
    common = (config.generator, sampling, side, 0.0, (0, 0), device, poses)
    draws = ShapeDraws(*common, 0.0, visible) if device == META else StepDraws(*common)
    stage = Stage(1 << (side - 1).bit_length(), kimg=1, batch=count)
    context = StepContext(stage, 0, 1.0, False, False, 0, nullcontext, lambda _: True)
    return render_fakes(generator, draws.fakes(range(count), "plan"), draws, context)


def parameters(config: TrainConfig) -> dict[str, int]:
    """Trainable numbers of each network."""
    networks = Networks(config, META, fresh=False)
    counts = {"generator": parameter_count(networks.generator)}
    names = {"main": "discriminator", "aux": "auxiliary discriminator"}
    parts = networks.discriminators.items()
    return counts | {names[name]: parameter_count(module) for name, module in parts}


def _in_half_precision(module: nn.Module) -> None:
    """Makes a module compute in 16 bits like autocast, which the meta device does not have."""
    module.to(torch.bfloat16)
    entries = exits = [module]
    if isinstance(module, ProgressiveDiscriminator):  # called by its method `judge`
        entries = [part for part in (*module.from_rgb.values(), module.label) if part is not None]
        exits = [part for part in (module.logit, module.pose) if part is not None]

    def halve(_: nn.Module, args: object) -> object:
        return tree_map_only(Tensor, lambda x: x.bfloat16(), args)

    for part in entries:
        part.register_forward_pre_hook(halve)
    for part in exits:
        part.register_forward_hook(lambda _, __, result: result.float())
