"""Training speed of a preset at its last resolution (float32, two threads) against the plain implementation in baseline.py.

What is compared has the paper's losses alone, since the baseline has no others. All programs go on from the same networks,
those of three minutes of training from the softer body that the demo starts from: how many samples lie in density, which
decides what ours has to compute, is then what it is in a real run and not what a fresh generator's noise makes it.

Each program runs in processes of its own, since ours changes the C library's allocator for its whole process; they take turns
of one R1 period, so that whatever else the machine does falls on all of them alike. Ours is the real `Trainer`, driven as its
own loop drives it, and once as `cips3d train` runs it: a process with one thread per core. Real pictures are random and made
beforehand: loading them is in neither program's time; the last line of the second table says what it would add. The second
table times the parts of a step one by one.

    python benchmarks/training.py [heads-32 | heads-64]        (ten minutes; half an hour)
"""

from __future__ import annotations

import multiprocessing
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

from cips3d.data import open_dataset
from cips3d.training import checkpoint
from cips3d.training.allocator import keep_freed_memory
from cips3d.training.launch import run_in_processes
from cips3d.training.presets import for_a_few_minutes, preset
from cips3d.training.recipe import TrainConfig, with_minutes
from cips3d.training.steps import Judging, Networks, discriminator_step, generator_step
from cips3d.training.trainer import Trainer

THREADS, TURNS, REPEATS = 2, 3, 5
#: Name: (ours or the baseline, one batch of fakes for both steps, allocator setting of ours, processes)
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


def plain(name: str) -> TrainConfig:
    """The preset as three minutes need it, without the loss that the baseline does not have: transmittance."""
    return replace(for_a_few_minutes(preset(name)), transmittance_weight=0.0)


def settings(name: str, share_fakes: bool) -> TrainConfig:
    """The last stage alone."""
    config = plain(name)
    return replace(config, stages=config.stages[-1:], share_fakes=share_fakes)


def trained_networks(name: str, folder: Path) -> Path:
    """A checkpoint of three minutes of training."""
    run_in_processes(THREADS, train, with_minutes(plain(name), 3.0), folder)
    return checkpoint.checkpoints(folder / "checkpoints")[-1]


def train(config: TrainConfig, folder: Path) -> None:
    keep_freed_memory()
    Trainer(config, folder).run()


class OurProgram:
    def __init__(self, config: TrainConfig, folder: str, trained: Path) -> None:
        self.trainer, self.config, self.stage = Trainer(config, folder), config, config.stages[0]
        checkpoint.load_state(
            trained, self.trainer.networks.modules, self.trainer.networks.optimizers
        )
        self.positions = self.trainer._positions(self.stage.batch)
        self.networks = n = self.trainer.networks
        n.generator_optimizer.param_groups[0]["lr"] = self.stage.generator_lr
        n.discriminator_optimizer.param_groups[0]["lr"] = self.stage.discriminator_lr

    def step(self, real: torch.Tensor) -> None:
        """The body of the Trainer's loop."""
        at = self.trainer.counters
        self.trainer._step(
            self.stage, self.positions, real[: len(self.positions)], None, logged=False
        )
        at.step, at.images, at.stage_images = (
            at.step + 1,
            at.images + len(real),
            at.stage_images + len(real),
        )

    def parts(self, real: torch.Tensor) -> Parts:
        """What a step is made of, each to be timed alone; `BaselineProgram.parts` has the same."""
        n, t = self.networks, self.trainer
        draws = t._draws(self.stage, self.positions, "D")
        fake = t._generate(self.stage, draws)
        leaf = replace(
            fake,
            image=fake.image.detach().requires_grad_(),
            aux_image=fake.aux_image.detach().requires_grad_(),
        )
        pictures = real.float() / 127.5 - 1
        r1_weight = 0.5 * self.config.r1_gamma * self.config.r1_every

        def constant_pictures() -> None:
            with torch.no_grad():
                t._generate(self.stage, draws)

        def update() -> None:
            t._update(n.discriminator_optimizer)
            t._update(n.generator_optimizer)
            n.averaged.update_parameters(n.generator)

        return {
            "draws": lambda: t._draws(self.stage, self.positions, "D"),
            "fakes for D alone": constant_pictures,
            "forward": lambda: t._generate(self.stage, draws),
            "both": lambda: backward(*images(t._generate(self.stage, draws))),
            "D": lambda: discriminator_step(n, pictures, fake, Judging(1.0, True), 0.0),
            "D with R1": lambda: discriminator_step(
                n, pictures, fake, Judging(1.0, True), r1_weight
            ),
            "D for G": lambda: generator_step(n, leaf, Judging(1.0, True)),
            "update": update,
        }


class BaselineProgram(Baseline):
    def __init__(self, config: TrainConfig, trained: Path) -> None:
        networks = Networks(config, torch.device("cpu"))
        checkpoint.load_state(trained, networks.modules, networks.optimizers)
        super().__init__(config, config.stages[0], networks.generator, networks.discriminators)

    def parts(self, real: torch.Tensor) -> Parts:
        draws = self.draws()
        fake = self.generate(draws)
        constant = [x.detach() for x in fake]
        leaf = [x.detach().requires_grad_() for x in fake]
        pictures = real.float() / 127.5 - 1
        r1_weight = 0.5 * self.config.r1_gamma * self.config.r1_every
        d = self.discriminators

        def constant_pictures() -> None:
            with torch.no_grad():
                self.generate(draws)

        def discriminate_for_generator() -> None:
            d.requires_grad_(False)
            generator_loss(d, *leaf).backward()
            d.requires_grad_(True)

        def update() -> None:
            self.discriminator_optimizer.step()
            self.generator_optimizer.step()
            self.update_average()

        return {
            "draws": self.draws,
            "fakes for D alone": constant_pictures,
            "forward": lambda: self.generate(draws),
            "both": lambda: backward(*self.generate(draws)),
            "D": lambda: discriminator_loss(d, pictures, *constant, 0.0).backward(),
            "D with R1": lambda: discriminator_loss(d, pictures, *constant, r1_weight).backward(),
            "D for G": discriminate_for_generator,
            "update": update,
        }


def images(fake: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return fake.image, fake.aux_image


def backward(image: torch.Tensor, aux_image: torch.Tensor) -> None:
    torch.autograd.backward(
        [image, aux_image], [torch.ones_like(image), torch.ones_like(aux_image)]
    )


def breakdown(parts: Parts, share_fakes: bool, r1_every: int) -> dict[str, float]:
    """Seconds of a step by part."""
    took: dict[str, list[float]] = {name: [] for name in parts}
    for name in list(parts) * REPEATS:
        start = time.perf_counter()
        parts[name]()
        took[name].append(time.perf_counter() - start)
    t = {name: statistics.median(seconds[1:]) for name, seconds in took.items()}
    return {
        "random draws": t["draws"] * (1 if share_fakes else 2),
        "generator, fakes for D alone": 0.0 if share_fakes else t["fakes for D alone"],
        "generator forward": t["forward"],
        "generator backward": t["both"] - t["forward"],
        "discriminators' step, without R1": t["D"],
        f"R1 (every {r1_every}th step)": (t["D with R1"] - t["D"]) / r1_every,
        "discriminators in generator's step": t["D for G"],
        "optimisers and average": t["update"],
    }


def work(name: str, preset_name: str, trained: Path, pipe: Connection) -> None:
    """A program's main process."""
    torch.set_num_threads(THREADS)
    processes = PROGRAMS[name][-1]
    with tempfile.TemporaryDirectory() as folder:
        run_in_processes(processes, serve, name, preset_name, trained, folder, pipe)


def serve(name: str, preset_name: str, trained: Path, folder: str, pipe: Connection) -> None:
    """Makes the program, then answers each request; with several processes, the main one passes requests on to the others."""
    ours, share_fakes, keep, processes = PROGRAMS[name]
    if keep and not keep_freed_memory():
        print("note: this C library's allocator cannot be told to keep freed memory")
    config = settings(preset_name, share_fakes)
    program = OurProgram(config, folder, trained) if ours else BaselineProgram(config, trained)
    main = processes == 1 or torch.distributed.get_rank() == 0
    stage = config.stages[0]
    real = torch.randint(
        0, 256, (stage.batch, 3, stage.resolution, stage.resolution), dtype=torch.uint8
    )
    for _ in range(2):  # warms up, with R1 and without
        program.step(real)
    if main:
        pipe.send("ready")
    while True:
        request = [pipe.recv() if main else ""]
        if processes > 1:
            torch.distributed.broadcast_object_list(request)
        if request == ["end"]:
            return
        if request == ["parts"]:
            pipe.send(breakdown(program.parts(real), share_fakes, config.r1_every))
            continue
        start = time.perf_counter()
        for _ in range(config.r1_every):
            program.step(real)
        if main:
            pipe.send(config.r1_every * stage.batch / (time.perf_counter() - start))


def loading_seconds(config: TrainConfig) -> float:
    """Seconds to make one batch of the embedded heads."""
    stage = config.stages[0]
    dataset = open_dataset(config.data, stage.resolution)
    took = []
    for i in range(REPEATS):
        start = time.perf_counter()
        dataset.__getitems__(list(range(i * stage.batch, (i + 1) * stage.batch)))
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


def main() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    preset_name = sys.argv[1] if len(sys.argv) > 1 else "heads-32"
    config = settings(preset_name, share_fakes=True)
    stage = config.stages[0]
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        trained = trained_networks(preset_name, Path(folder))
        for name in PROGRAMS:
            pipes[name], end = context.Pipe()
            processes.append(context.Process(target=work, args=(name, preset_name, trained, end)))
            processes[-1].start()
            end.close()  # so that a process that dies is noticed
            pipes[name].recv()
    rates: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(TURNS):
        for name, pipe in pipes.items():
            pipe.send("turn")
            rates[name].append(pipe.recv())
    parts = {}
    for name in PROFILED:
        pipes[name].send("parts")
        parts[name] = pipes[name].recv()
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()

    median = {name: statistics.median(r) for name, r in rates.items()}
    print(
        f"training {preset_name} at {stage.resolution}², batch {stage.batch}, float32, {THREADS} threads, {TURNS} turns each"
    )
    print(f"{'':32}{'images/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, rate in median.items():
        low, high, ratio = min(rates[name]), max(rates[name]), rate / median["baseline"]
        print(f"{name:32}{rate:10.1f}{low:10.1f}{high:10.1f}{ratio:8.2f}")
    print("\nwhere a step's time goes, ms")
    print(f"{'':36}" + "".join(f"{name:>22}" for name in PROFILED))
    for part in parts[PROFILED[0]]:
        print(f"{part:36}" + "".join(f"{1000 * parts[name][part]:22.1f}" for name in PROFILED))
    print(
        f"{'sum of these':36}"
        + "".join(f"{1000 * sum(parts[name].values()):22.1f}" for name in PROFILED)
    )
    print(
        f"{'whole steps, measured':36}"
        + "".join(f"{1000 * stage.batch / median[name]:22.1f}" for name in PROFILED)
    )
    seconds = loading_seconds(config)
    print(f"{'not in a step: making real heads':36}" + f"{1000 * seconds:22.1f}" * len(PROFILED))


if __name__ == "__main__":
    main()
