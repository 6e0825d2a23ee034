"""Training speed of a preset at its last resolution, against the plain step of baseline.py.

Float32, two threads. All programs have the paper's losses only, since the baseline has no others,
and start from the same networks: those of three minutes of training from the demo's softer body. So
the share of samples in density, which decides how much ours computes, is that of a real run and not
that of a new generator's noise.

Each program has processes of its own, since ours changes the C library's allocator for the whole
process. They take turns of one R1 period, so that other load on the machine slows all of them
alike. Ours is the real training step, and once runs as `cips3d train` does: one process with one
thread per core. The second table times the parts of a step one by one.

Real images are random and made beforehand. Loading is in neither program's time; the last line of
the second table shows what it would add.

    python benchmarks/training_speed.py [heads-32 | heads-64]        (ten minutes; half an hour)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from baseline import Baseline, discriminator_loss, generator_loss
from measuring import medians, started
from stepping import prepared, take_step

from cips3d.data import open_dataset
from cips3d.training import checkpoint
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import run_in_processes
from cips3d.training.loop import real_batch, step_context, step_draws, train, update
from cips3d.training.networks import Networks
from cips3d.training.presets import for_a_few_minutes, preset, without_code_terms
from cips3d.training.recipe import TrainConfig, with_minutes
from cips3d.training.run import Run
from cips3d.training.step import discriminator_step, generator_step, render_fakes

THREADS, TURNS, REPEATS = 2, 3, 4
#: Name: (ours or the baseline, one batch of fakes for both steps, freed memory kept, processes).
PROGRAMS = {
    "baseline": (False, False, False, 1),
    "baseline, memory kept": (False, False, True, 1),
    "ours, same settings": (True, False, True, 1),
    "ours, preset": (True, True, True, 1),
    "ours, preset, memory not kept": (True, True, False, 1),
    "ours, as `cips3d train` runs": (True, True, True, THREADS),
}
PROFILED = ("baseline", "ours, same settings", "ours, preset")
Parts = dict[str, Callable[[], Any]]


# ---------------------------------------------------------------- configurations
def paper_losses(name: str) -> TrainConfig:
    """The preset for a few minutes of training, without transmittance and code terms."""
    config = without_code_terms(for_a_few_minutes(preset(name)))
    return replace(config, objective=replace(config.objective, transmittance=None))


def last_stage(name: str, share_fakes: bool) -> TrainConfig:
    """The last stage alone."""
    config = paper_losses(name)
    return replace(config, stages=config.stages[-1:], share_fakes=share_fakes)


def r1_period(config: TrainConfig) -> int:
    """Steps from one R1 penalty to the next."""
    assert config.objective.r1 is not None
    return config.objective.r1.every


def trained_networks(name: str, folder: Path) -> Path:
    """A checkpoint after three minutes of training."""
    run_in_processes(THREADS, train_in, with_minutes(paper_losses(name), 3.0), folder)
    return checkpoint.checkpoints(folder / checkpoint.FOLDER)[-1]


def train_in(config: TrainConfig, folder: Path) -> None:
    keep_freed_memory()
    train(Run(config, folder))


# ---------------------------------------------------------------- programs
class OurProgram:
    """The package's training step."""

    def __init__(self, config: TrainConfig, folder: str, trained: Path) -> None:
        self.run = prepared(Run(config, folder))
        networks = self.run.networks
        checkpoint.load_state(trained, networks)
        networks.prepare(config.stages[0])  # the checkpoint has no learning rates

    def step(self, real: torch.Tensor) -> None:
        take_step(self.run, real)

    def parts(self, real: torch.Tensor) -> Parts:
        """What a step consists of, to be timed one by one; the same as the baseline's."""
        run, networks, stage = self.run, self.run.networks, self.run.config.stages[0]
        draws, context = step_draws(run, stage), step_context(run, stage)
        batch = real_batch(run, draws, real[: len(run.positions(stage.batch))], None)
        fakes = draws.fakes(batch.positions, "D")
        objective, penalised = run.config.objective, replace(context, step=0)
        plain = replace(objective, r1=None)

        def forward() -> Any:
            return render_fakes(networks.generator, fakes, draws, context)

        def constant_images() -> None:
            with torch.no_grad():
                forward()

        def both() -> None:
            out = forward()
            backward(out.image, out.aux_image)

        fake = forward()
        image, aux_image = (x.detach().requires_grad_() for x in (fake.image, fake.aux_image))
        leaf = replace(fake, image=image, aux_image=aux_image)

        def update_all() -> None:
            update(run, networks.discriminator_optimizer)
            update(run, networks.generator_optimizer)
            networks.averaged.update_parameters(networks.generator)

        return {
            "draws": lambda: draws.fakes(batch.positions, "D"),
            "fakes for D alone": constant_images,
            "forward": forward,
            "both": both,
            "D": lambda: discriminator_step(networks, batch, fake, fakes, plain, context),
            "D with R1": lambda: discriminator_step(
                networks, batch, fake, fakes, objective, penalised
            ),
            "D for G": lambda: generator_step(networks, batch, leaf, fakes, plain, context),
            "update": update_all,
        }


class BaselineProgram(Baseline):
    """The plain implementation."""

    def __init__(self, config: TrainConfig, trained: Path) -> None:
        networks = Networks(config, torch.device("cpu"))
        checkpoint.load_state(trained, networks)
        super().__init__(config, config.stages[0], networks.generator, networks.discriminators)

    def parts(self, real: torch.Tensor) -> Parts:
        draws = self.draws()
        fake = self.generate(draws)
        constant = [x.detach() for x in fake]
        leaf = [x.detach().requires_grad_() for x in fake]
        images = real.float() / 127.5 - 1
        r1, judges = self.config.objective.r1, self.discriminators
        assert r1 is not None

        def constant_images() -> None:
            with torch.no_grad():
                self.generate(draws)

        def judge(r1_weight: float) -> None:
            discriminator_loss(judges, images, *constant, r1_weight).backward()

        def judge_for_generator() -> None:
            judges.requires_grad_(False)
            generator_loss(judges, *leaf).backward()
            judges.requires_grad_(True)

        def update_all() -> None:
            self.discriminator_optimizer.step()
            self.generator_optimizer.step()
            self.update_average()

        return {
            "draws": self.draws,
            "fakes for D alone": constant_images,
            "forward": lambda: self.generate(draws),
            "both": lambda: backward(*self.generate(draws)),
            "D": lambda: judge(0.0),
            "D with R1": lambda: judge(0.5 * r1.weight * r1.every),
            "D for G": judge_for_generator,
            "update": update_all,
        }


def backward(*images: torch.Tensor) -> None:
    torch.autograd.backward(images, [torch.ones_like(image) for image in images])


def breakdown(parts: Parts, share_fakes: bool, period: int) -> dict[str, float]:
    """Seconds of a step by part."""
    seconds = dict(zip(parts, medians([*parts.values()], REPEATS), strict=True))
    return {
        "random draws": seconds["draws"] * (1 if share_fakes else 2),
        "generator, fakes for D alone": 0.0 if share_fakes else seconds["fakes for D alone"],
        "generator forward": seconds["forward"],
        "generator backward": seconds["both"] - seconds["forward"],
        "discriminators' step, without R1": seconds["D"],
        f"R1 (every {period}th step)": (seconds["D with R1"] - seconds["D"]) / period,
        "discriminators in generator's step": seconds["D for G"],
        "optimisers and average": seconds["update"],
    }


# ---------------------------------------------------------------- processes
def work(name: str, preset_name: str, trained: Path, connection: Connection) -> None:
    """A program's main process."""
    torch.set_num_threads(THREADS)
    processes = PROGRAMS[name][-1]
    with tempfile.TemporaryDirectory() as folder:
        run_in_processes(processes, serve, name, preset_name, trained, folder, connection)


def serve(name: str, preset_name: str, trained: Path, folder: str, connection: Connection) -> None:
    """Answers requests: "turn", "parts", "end". The main process passes them on to the others."""
    ours, share_fakes, keep, processes = PROGRAMS[name]
    if keep and not keep_freed_memory():
        print("note: this C library's allocator cannot keep freed memory")
    config = last_stage(preset_name, share_fakes)
    program = OurProgram(config, folder, trained) if ours else BaselineProgram(config, trained)
    is_main = processes == 1 or torch.distributed.get_rank() == 0
    stage, period = config.stages[0], r1_period(config)
    size = (stage.batch, 3, stage.resolution, stage.resolution)
    real = torch.randint(0, 256, size, dtype=torch.uint8)
    for _ in range(2):  # warms up, with R1 and without
        program.step(real)
    if is_main:
        connection.send("ready")
    while True:
        request = [connection.recv() if is_main else ""]
        if processes > 1:
            torch.distributed.broadcast_object_list(request)
        if request == ["end"]:
            return
        if request == ["parts"]:
            connection.send(breakdown(program.parts(real), share_fakes, period))
            continue
        start = time.perf_counter()
        for _ in range(period):
            program.step(real)
        if is_main:
            connection.send(period * stage.batch / (time.perf_counter() - start))


def loading_seconds(config: TrainConfig) -> float:
    """Seconds to make one batch of the embedded heads."""
    stage = config.stages[0]
    dataset = open_dataset(config.data, stage.resolution)
    batches = iter(range(10**6))

    def load() -> None:
        first = next(batches) * stage.batch
        dataset.__getitems__(list(range(first, first + stage.batch)))

    return medians([load], REPEATS)[0]


def main() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    preset_name = sys.argv[1] if len(sys.argv) > 1 else "heads-32"
    config = last_stage(preset_name, share_fakes=True)
    running = {}
    with tempfile.TemporaryDirectory() as folder:
        trained = trained_networks(preset_name, Path(folder))
        for name in PROGRAMS:
            running[name] = started(work, name, preset_name, trained)
            running[name][1].recv()

    def answer(name: str, request: str) -> Any:
        running[name][1].send(request)
        return running[name][1].recv()

    rates: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(TURNS):
        for name, values in rates.items():
            values.append(answer(name, "turn"))
    parts = {name: answer(name, "parts") for name in PROFILED}
    for process, connection in running.values():
        connection.send("end")
        process.join()
    report(preset_name, config, rates, parts)


def report(
    preset_name: str,
    config: TrainConfig,
    rates: dict[str, list[float]],
    parts: dict[str, dict[str, float]],
) -> None:
    """Prints both tables."""
    (stage,) = config.stages
    middle = {name: statistics.median(values) for name, values in rates.items()}
    title = f"training {preset_name} at {stage.resolution}², batch {stage.batch}, float32"
    print(f"{title}, {THREADS} threads, {TURNS} turns each")
    print(f"{'':32}{'images/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, rate in middle.items():
        low, high, ratio = min(rates[name]), max(rates[name]), rate / middle["baseline"]
        print(f"{name:32}{rate:10.1f}{low:10.1f}{high:10.1f}{ratio:8.2f}")

    def line(label: str, seconds: list[float]) -> None:
        print(f"{label:36}" + "".join(f"{1000 * value:22.1f}" for value in seconds))

    print("\ntime of a step by part, ms")
    print(f"{'':36}" + "".join(f"{name:>22}" for name in PROFILED))
    for part in parts[PROFILED[0]]:
        line(part, [parts[name][part] for name in PROFILED])
    line("sum of these", [sum(parts[name].values()) for name in PROFILED])
    line("whole steps, measured", [stage.batch / middle[name] for name in PROFILED])
    line("not in a step: making real heads", [loading_seconds(config)] * len(PROFILED))


if __name__ == "__main__":
    main()
