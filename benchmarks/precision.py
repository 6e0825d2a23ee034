"""bfloat16 autocast against float32: speed of a forward and backward pass, and PSNR between images.

Sines of the radiance field and compositing are float32 in both, which run in turns. MODEL is a new
paper-size generator by default.

    python benchmarks/precision.py [MODEL]        (a minute or two)
"""

from __future__ import annotations

import math
import statistics
import sys
import time

import torch

from cips3d import pretrained
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.training.draws import StepDraws

TURNS, IMAGES, SIDE = 3, 2, 32


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    generator = pretrained.load(sys.argv[1]) if len(sys.argv) > 1 else Generator(GeneratorConfig())
    generator.to(device).requires_grad_(True)
    config, sampling = generator.config, generator.sampling
    draws = StepDraws(config, sampling, SIDE, 0.0, (0, 0), device, config.poses)
    fakes = draws.fakes(range(IMAGES), "G")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    images = {}
    for _ in range(TURNS + 1):
        for half, taken in seconds.items():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                out = generator(fakes.latents, fakes.camera, SIDE, fakes.rays, sampling)
                loss = out.image.float().square().sum() + out.aux_image.float().square().sum()
            loss.backward()
            loss.item()  # waits for the device
            taken.append(time.perf_counter() - start)
            images[half] = out.image.detach().float().clamp(-1, 1)
    single, half = (IMAGES / statistics.median(taken[1:]) for taken in seconds.values())
    error = (images[True] - images[False]).square().mean().item()
    rates = f"float32 {single:.2f} images/s, bfloat16 {half:.2f}, ratio {half / single:.2f}"
    print(f"{device.type}: {rates}")
    print(f"PSNR {10 * math.log10(4 / error):.1f} dB" if error else "equal images")


if __name__ == "__main__":
    main()
