"""Trains the HeadNetwork on the embedded heads and writes it into the package.

    python experiments/head_network.py              (20 minutes on one core)
    python experiments/head_network.py --measure    (measures the network in the package only)

Training images have both styles and a wider camera prior than a generator's. They are resized down
and up, blurred, made noisy and shifted in colour, since the network later reads generated images.
results/head_network.json says how well it reads heads that it was not trained on.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Result
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

import cips3d.heads
from cips3d.camera import PoseDistribution
from cips3d.heads import HeadBatch, SyntheticHeads
from cips3d.heads.network import COLORS, KINDS, SIDE, HeadNetwork, HeadReading, load_head_network
from cips3d.metrics.consistency import pooled_depth
from cips3d.metrics.views import angle_between
from cips3d.training.allocator import keep_freed_memory

BATCH, STEPS, RATE = 64, 2500, 2e-3
#: Wider than the dataset's prior (0.3 and 0.155), so that generated views lie within it.
POSES = PoseDistribution(yaw_std=0.45, pitch_std=0.2)
TRAINING_SEED, TEST_SEED = 11, 12
OUT = Path(cips3d.heads.__file__).parent / "network.safetensors"


def damaged(images: Tensor) -> tuple[Tensor, Tensor]:
    """Degraded images, and the amount of blur and noise of each (see HeadReading).

    Args:
        images: in [-1, 1].
    """
    count = len(images)
    blur = torch.rand(count) ** 2 * 1.5
    noise = torch.rand(count) ** 2 * 0.15
    taps = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-0.5 * (taps / blur[:, None].clamp(min=0.05)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, None, :], groups=3 * count)
    x = F.conv2d(x, kernel[:, None, :, None], groups=3 * count)[0].view_as(images)
    if random.random() < 0.3:  # like an image of half the size
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    gain, shift = 1 + 0.15 * torch.randn(count, 1, 1, 1), 0.08 * torch.randn(count, 3, 1, 1)
    x = x * gain + shift + noise[:, None, None, None] * torch.randn_like(x)
    return x.clamp(-1, 1), torch.stack([blur, 10 * noise], dim=1)


def kind_targets(batch: HeadBatch, cartoon: bool) -> dict[str, Tensor]:
    """The index of the true option, for each kind."""
    values = {name: batch.attributes[name].long() for name in KINDS if name != "cartoon"}
    for name in ("bangs_side", "earring_side"):
        values[name] = values[name] + 1
    return values | {"cartoon": torch.full((len(batch.images),), int(cartoon))}


def loss(reading: HeadReading, batch: HeadBatch, cartoon: bool, damage: Tensor) -> Tensor:
    angles = torch.stack(
        [reading.yaw - batch.attributes["yaw"], reading.pitch - batch.attributes["pitch"]]
    )
    total = 3 * F.smooth_l1_loss(angles / 0.1, torch.zeros_like(angles))
    for name, target in kind_targets(batch, cartoon).items():
        total = total + 0.3 * F.cross_entropy(reading.kinds[name], target)
    for name in COLORS:
        total = total + 3 * F.smooth_l1_loss(reading.colors[name], batch.attributes[name], beta=0.1)
    total = total + F.smooth_l1_loss(reading.damage, damage)
    depth, mask = pooled_depth(batch.depth, batch.mask)
    errors = F.smooth_l1_loss(reading.depth / 0.01, depth / 0.01, reduction="none")
    total = total + 2 * (errors * mask).mean()
    return total + 2 * F.binary_cross_entropy(reading.mask, mask)


@torch.no_grad()
def measured(network: HeadNetwork) -> dict[str, dict[str, float]]:
    """For each style: mean errors in degrees and world units, and the accuracy of each kind.

    Heads have another seed and the generators' own prior; images are not degraded.
    """
    found = {}
    for style in ("natural", "cartoon"):
        heads = SyntheticHeads(2000, SIDE, TEST_SEED, style)
        batch = heads.render(range(1000))
        reading = network(batch.images.float() / 127.5 - 1)
        depth, mask = pooled_depth(batch.depth, batch.mask)
        yaw, pitch = batch.attributes["yaw"], batch.attributes["pitch"]
        inside = mask > 0.5
        found[style] = {
            "camera_degrees": float(angle_between(reading.yaw, reading.pitch, yaw, pitch).mean()),
            "depth": float((reading.depth - depth)[inside].abs().mean()),
        } | {
            name: float((reading.kinds[name].argmax(dim=1) == target).float().mean())
            for name, target in kind_targets(batch, style == "cartoon").items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure only, do not train")
    measure = parser.parse_args().measure
    claim = "The head network reads embedded heads that it was not trained on (ours)"
    result = Result("head_network", claim)
    network = load_head_network() if measure else trained()
    values = measured(network)
    print(values)
    result.write(values, None, seeds=(TEST_SEED,))


def trained() -> HeadNetwork:
    """A newly trained network, also written to `OUT`."""
    keep_freed_memory()
    torch.manual_seed(0)
    random.seed(0)
    network = HeadNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    styles = {
        style: SyntheticHeads(10**6, SIDE, TRAINING_SEED, style, POSES)
        for style in ("natural", "cartoon")
    }
    began = time.perf_counter()
    for step in (bar := trange(STEPS)):
        style = "cartoon" if step % 3 == 2 else "natural"
        batch = styles[style].render(range(step * BATCH, (step + 1) * BATCH))
        images, damage = damaged(batch.images.float() / 127.5 - 1)
        value = loss(network(images), batch, style == "cartoon", damage)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        if step % 50 == 0:
            bar.set_postfix(loss=float(value.detach()))
    found = average.module
    assert isinstance(found, HeadNetwork)
    others = SyntheticHeads(2000, SIDE, TEST_SEED).render(range(1000, 2000)).images
    with torch.no_grad():
        found.set_identity_mean(others.float() / 127.5 - 1)
    # half precision halves the file and changes readings by far less than their errors
    half = {name: tensor.half().contiguous() for name, tensor in found.state_dict().items()}
    save_file(half, OUT)
    found.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    print(f"{STEPS * BATCH:,} images in {(time.perf_counter() - began) / 60:.1f} minutes; {OUT}")
    return found


if __name__ == "__main__":
    main()
