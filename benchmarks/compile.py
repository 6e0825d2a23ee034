"""torch.compile: forward and backward pass with the implicit network compiled, and without.

Only the implicit network can be compiled once, since the radiance field evaluates a number of
samples that depends on the image. One thread, in turns; medians of five in seconds of the process's
own time.

    python benchmarks/compile.py        (two minutes)
"""

from __future__ import annotations

import statistics
import time

import torch

from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.training.presets import preset

SIDE, TURNS = 32, 5


def main() -> None:
    torch.set_num_threads(1)
    cases = (("paper size", GeneratorConfig(), 2), ("heads-32", preset("heads-32").generator, 8))
    for name, config, batch in cases:
        eager, compiled = Generator(config), Generator(config)
        compiled.load_state_dict(eager.state_dict())
        compiled.inr.compile(dynamic=True)
        latents = eager.sample_latents(batch, 0)
        cameras = config.poses.sample(batch, torch.Generator().manual_seed(0))

        def seconds(generator: Generator, latents=latents, cameras=cameras) -> float:
            start = time.process_time()
            generator.render(latents, cameras, SIDE, psi=1.0).image.square().mean().backward()
            return time.process_time() - start

        first = seconds(compiled)
        seconds(eager)
        turns = [(seconds(eager), seconds(compiled)) for _ in range(TURNS)]
        ours, theirs = (statistics.median(times) for times in zip(*turns, strict=True))
        print(
            f"{name}, {batch} images of {SIDE}²: eager {ours:.3f} s, compiled {theirs:.3f} s "
            f"({ours / theirs:.2f} times as fast)"
        )
        print(f"  first pass, with compilation: {first:.1f} s")


if __name__ == "__main__":
    main()
