"""Fig. 9a, 9b: CIPS-3D has more parameters than pi-GAN and trains faster.

Paper-size generators, forward and backward pass of one image at a time: a minute on two cores. Also
what each keeps for the backward pass, since Section 4.2 calls pi-GAN memory-intensive.

Both render thin fog, in which all samples count, as they do in the authors' programs. Ours skips
samples in empty space, and how many those are is chance in new networks. figure_9c.py measures
ModFC.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import Result
from matplotlib.figure import Figure

from cips3d.camera import Camera
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import generator_cost, parameter_count
from cips3d.models.generator import Generator
from cips3d.models.peers.pi_gan import PiGan, PiGanNetworks
from cips3d.models.registry import build_generator
from cips3d.training.allocator import keep_freed_memory

SIDES, TURNS = (16, 32, 64), 3
#: The paper's and the published sizes.
CONFIGS = {
    "cips-3d": GeneratorConfig(),
    "pi-gan": GeneratorConfig(PiGanNetworks(shape_style_dim=256)),
}


@torch.no_grad()
def fill_with_fog(generator: Generator | PiGan) -> None:
    """Makes the density the same low value everywhere."""
    generator.nerf.density.weight.zero_()
    generator.nerf.density.bias.fill_(0.1)


@torch.enable_grad()
def visible_share(generator: Generator | PiGan, side: int) -> float:
    """Share of an image's samples that are evaluated with features and gradients."""
    points: list[int] = []
    hook = generator.nerf.register_forward_hook(
        lambda _module, inputs, _output: points.append(inputs[0].shape[1])
    )
    generator.render(generator.sample_latents(1, 0), Camera.orbit(0.2), side)
    hook.remove()
    return sum(points) / (side**2 * (generator.sampling.coarse + generator.sampling.fine))


def seconds(generator: Generator | PiGan, side: int) -> float:
    """Time of a forward and a backward pass."""
    began = time.perf_counter()
    out = generator(generator.sample_latents(1, 0), Camera.orbit(0.2), side)
    out.image.square().mean().backward()
    generator.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    keep_freed_memory()
    claim = "CIPS-3D has more parameters than pi-GAN and trains faster (Fig. 9a, 9b)"
    result = Result("figure_9", claim)
    torch.manual_seed(0)
    generators = {name: build_generator(config) for name, config in CONFIGS.items()}
    for generator in generators.values():
        fill_with_fog(generator)
    parameters = {name: parameter_count(generator) for name, generator in generators.items()}
    rates: dict[str, list[float]] = {name: [] for name in generators}
    for side in SIDES:
        times: dict[str, list[float]] = {name: [] for name in generators}
        for _ in range(TURNS + 1):  # in turns; the first one warms up
            for name, generator in generators.items():
                times[name].append(seconds(generator, side))
        for name, taken in times.items():
            rates[name].append(1 / statistics.median(taken[1:]))
    faster = [ours > theirs for ours, theirs in zip(rates["cips-3d"], rates["pi-gan"], strict=True)]
    values = {
        "parameters": parameters,
        "sides": SIDES,
        "images_per_second": rates,
        "saved_mebibytes": {
            name: [generator_cost(config, side).saved_bytes / 2**20 for side in SIDES]
            for name, config in CONFIGS.items()
        },
        "visible_share": {name: visible_share(g, SIDES[0]) for name, g in generators.items()},
    }
    holds = parameters["cips-3d"] > parameters["pi-gan"] and all(faster)
    result.write(values, holds, drawn(parameters, rates), seeds=(0,))


def drawn(parameters: dict[str, int], rates: dict[str, list[float]]) -> Figure:
    """Parameters as bars, and speed over the side of the image."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(list(parameters), [count / 1e6 for count in parameters.values()])
    left.set_ylabel("million parameters")
    for name, values in rates.items():
        right.plot(SIDES, values, "o-", label=name)
    labels = {"xlabel": "side of the image, pixels", "ylabel": "images per second"}
    right.set(xscale="log", yscale="log", **labels)
    right.set_xticks(SIDES, [str(side) for side in SIDES])
    right.set_yticks((0.5, 1, 2, 5, 10), ("0.5", "1", "2", "5", "10"))
    right.minorticks_off()
    right.legend()
    return figure


if __name__ == "__main__":
    main()
