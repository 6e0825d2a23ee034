"""bfloat16 autocast against float32: speed of a generator's forward and backward pass, and how far the pictures differ.

Sines of the radiance field and compositing are float32 in both, which take turns. Without MODEL: a new paper-size generator.

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
from cips3d.training import gradients
from cips3d.training.draws import fake_draws

TURNS, PICTURES, SIDE = 3, 2, 32


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    generator = pretrained.load(sys.argv[1]) if len(sys.argv) > 1 else Generator(GeneratorConfig())
    generator.to(device).requires_grad_(True)
    draws = fake_draws(
        generator.config, generator.sampling, SIDE, 0.0, (0,), range(PICTURES), device
    )
    arguments = (generator, draws.latents, draws.camera, SIDE, draws.rays, generator.sampling)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    pictures = {}
    for _ in range(TURNS + 1):
        for half, found in seconds.items():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                out = gradients.full(*arguments)
                loss = out.image.float().square().sum() + out.aux_image.float().square().sum()
            loss.backward()
            loss.item()  # waits for the device
            found.append(time.perf_counter() - start)
            pictures[half] = out.image.detach().float().clamp(-1, 1)
    single, half = (PICTURES / statistics.median(found[1:]) for found in seconds.values())
    error = (pictures[True] - pictures[False]).square().mean().item()
    print(
        f"{device.type}: float32 {single:.2f} images/s, bfloat16 {half:.2f}, ratio {half / single:.2f}"
    )
    print(
        f"PSNR of the pictures {10 * math.log10(4 / error):.1f} dB" if error else "equal pictures"
    )


if __name__ == "__main__":
    main()
