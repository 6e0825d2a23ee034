"""Fig. 9: CIPS-3D has more parameters than pi-GAN and trains faster; ModFC by bmm is faster than by grouped convolution.

Paper-size generators, forward and backward pass of one picture at a time: two minutes on two cores. benchmarks/modfc.py
measures Fig. 9c, on its own, since its largest case takes 16 GiB.
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
from cips3d.models.generator import Generator
from cips3d.training.allocator import keep_freed_memory

SIDES, TURNS = (16, 32, 64), 3
#: The published pi-GAN: 8 layers of width 256, three mapping layers.
PI_GAN = GeneratorConfig(
    architecture="pi-gan", shape_style_dim=256, shape_mapping_layers=3, nerf_width=256, nerf_layers=8, view_direction=True
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
    result = Result("figure_9", "CIPS-3D has more parameters than pi-GAN and trains faster (Fig. 9a, 9b)")
    torch.manual_seed(0)
    generators = {"cips-3d": build_generator(GeneratorConfig()), "pi-gan": build_generator(PI_GAN)}
    parameters = {name: sum(p.numel() for p in generator.parameters()) for name, generator in generators.items()}
    rates: dict[str, list[float]] = {name: [] for name in generators}
    for side in SIDES:
        taken: dict[str, list[float]] = {name: [] for name in generators}
        for _ in range(TURNS + 1):  # in turns; the first one warms up
            for name, generator in generators.items():
                taken[name].append(seconds(generator, side))
        for name, times in taken.items():
            rates[name].append(1 / statistics.median(times[1:]))
    figure = Figure(figsize=(7, 3))
    left, right = figure.subplots(1, 2)
    left.bar(list(parameters), [count / 1e6 for count in parameters.values()])
    left.set_ylabel("million parameters")
    for name, values in rates.items():
        right.plot(SIDES, values, "o-", label=name)
    right.set(xlabel="side of the picture", ylabel="pictures a second", xscale="log", yscale="log")
    right.legend()
    holds = parameters["cips-3d"] > parameters["pi-gan"] and all(
        ours > theirs for ours, theirs in zip(rates["cips-3d"], rates["pi-gan"], strict=True)
    )
    result.write({"parameters": parameters, "sides": SIDES, "pictures_per_second": rates}, holds, figure)


if __name__ == "__main__":
    main()
