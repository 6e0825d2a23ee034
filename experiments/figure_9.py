"""Fig. 9a, 9b: CIPS-3D has more parameters than pi-GAN and trains faster.

Paper-size generators, forward and backward pass of one picture at a time: a minute on two cores. And what each keeps for the
backward pass: Section 4.2 calls pi-GAN memory-intensive. Both see thin fog, all of whose samples count, as they do in the
authors' programs: ours passes over samples that nobody sees, and how many those are is chance while networks are new.
figure_9c.py measures ModFC.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import Result
from matplotlib.figure import Figure

from cips3d.camera import Camera
from cips3d.models.baselines import build_generator
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import generator_cost, parameter_count
from cips3d.models.generator import Generator
from cips3d.training.allocator import keep_freed_memory

SIDES, TURNS = (16, 32, 64), 3
#: The published pi-GAN: 8 layers of width 256, three mapping layers.
PI_GAN = GeneratorConfig(
    architecture="pi-gan",
    shape_style_dim=256,
    shape_mapping_layers=3,
    nerf_width=256,
    nerf_layers=8,
    view_direction=True,
)


@torch.no_grad()
def fill_with_fog(generator: Generator) -> None:
    """Makes the density the same low one everywhere."""
    generator.nerf.density.weight.zero_()
    generator.nerf.density.bias.fill_(0.1)


@torch.no_grad()
def visible_share(generator: Generator, side: int) -> float:
    """Of a picture's samples, how many are evaluated with features and gradients."""
    points: list[int] = []
    hook = generator.nerf.register_forward_hook(
        lambda _module, inputs, _output: points.append(inputs[0].shape[1])
    )
    generator.render(generator.sample_latents(1, 0), Camera.orbit(0.2), side)
    hook.remove()
    return sum(points) / (
        side**2 * (generator.config.coarse_samples + generator.config.fine_samples)
    )


def seconds(generator: Generator, side: int) -> float:
    """Of a forward and a backward pass."""
    began = time.perf_counter()
    out = generator(generator.sample_latents(1, 0), Camera.orbit(0.2), side)
    out.image.square().mean().backward()
    generator.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    keep_freed_memory()
    result = Result(
        "figure_9", "CIPS-3D has more parameters than pi-GAN and trains faster (Fig. 9a, 9b)"
    )
    torch.manual_seed(0)
    configs = {"cips-3d": GeneratorConfig(), "pi-gan": PI_GAN}
    generators = {name: build_generator(config) for name, config in configs.items()}
    for generator in generators.values():
        fill_with_fog(generator)
    shares = {name: visible_share(generator, SIDES[0]) for name, generator in generators.items()}
    parameters = {name: parameter_count(generator) for name, generator in generators.items()}
    kept = {
        name: [generator_cost(config, side).saved_bytes / 2**20 for side in SIDES]
        for name, config in configs.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in generators}
    for side in SIDES:
        taken: dict[str, list[float]] = {name: [] for name in generators}
        for _ in range(TURNS + 1):  # in turns; the first one warms up
            for name, generator in generators.items():
                taken[name].append(seconds(generator, side))
        for name, times in taken.items():
            rates[name].append(1 / statistics.median(times[1:]))
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(list(parameters), [count / 1e6 for count in parameters.values()])
    left.set_ylabel("million parameters")
    for name, values in rates.items():
        right.plot(SIDES, values, "o-", label=name)
    right.set(
        xlabel="side of the picture, pixels", ylabel="pictures a second", xscale="log", yscale="log"
    )
    right.set_xticks(SIDES, [str(side) for side in SIDES])
    right.set_yticks((0.5, 1, 2, 5, 10), ("0.5", "1", "2", "5", "10"))
    right.minorticks_off()
    right.legend()
    holds = parameters["cips-3d"] > parameters["pi-gan"] and all(
        ours > theirs for ours, theirs in zip(rates["cips-3d"], rates["pi-gan"], strict=True)
    )
    values = {
        "parameters": parameters, "sides": SIDES, "pictures_per_second": rates, "kept_mebibytes": kept, "visible_share": shares,
    }  # fmt: skip
    result.write(values, holds, figure, seeds=(0,))


if __name__ == "__main__":
    main()
