"""Trains the HeadNetwork on the embedded heads and writes it into the package: python experiments/head_network.py.

Pictures of both styles, from cameras of a wider prior than a generator's, are resized down and up, blurred, made noisy and
shifted in colour, since the generated pictures that the network reads later are none of the dataset's. Takes about 20 minutes
on one core. At its end results/head_network.json says how well it reads pictures of heads that it has never seen; --measure
does that alone, for the network in the package.
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
#: Wider than the prior of the training pictures (0.3 and 0.155), so that no generated view lies outside.
POSES = PoseDistribution(yaw_std=0.45, pitch_std=0.2)
TRAINING_SEED, TEST_SEED = 11, 12
OUT = Path(cips3d.heads.__file__).parent / "network.safetensors"


def damaged(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures in [-1, 1] as a generator might spoil them, and how much each was blurred and made noisy (see HeadReading)."""
    count = len(images)
    blur = torch.rand(count) ** 2 * 1.5
    noise = torch.rand(count) ** 2 * 0.15
    taps = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-0.5 * (taps / blur[:, None].clamp(min=0.05)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, None, :], groups=3 * count)
    x = F.conv2d(x, kernel[:, None, :, None], groups=3 * count)[0].view_as(images)
    if random.random() < 0.3:  # as a picture of half the size looks
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    gain, shift = 1 + 0.15 * torch.randn(count, 1, 1, 1), 0.08 * torch.randn(count, 3, 1, 1)
    x = x * gain + shift + noise[:, None, None, None] * torch.randn_like(x)
    return x.clamp(-1, 1), torch.stack([blur, 10 * noise], dim=1)


def kind_targets(batch: HeadBatch, cartoon: bool) -> dict[str, Tensor]:
    """The number of the right option, for each kind."""
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
    total = (
        total
        + 2 * (F.smooth_l1_loss(reading.depth / 0.01, depth / 0.01, reduction="none") * mask).mean()
    )
    return total + 2 * F.binary_cross_entropy(reading.mask, mask)


@torch.no_grad()
def measured(network: HeadNetwork) -> dict[str, dict[str, float]]:
    """Of each style: mean errors, degrees and world units, and shares of kinds that it sees rightly, on heads of another seed,
    undamaged, from the generators' own prior.
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
    parser.add_argument("--measure", action="store_true", help="train none")
    measure = parser.parse_args().measure
    result = Result(
        "head_network",
        "Our network for the embedded heads reads heads that it has never seen (ours)",
    )
    network = load_head_network() if measure else trained()
    values = measured(network)
    print(values)
    result.write(values, None, seeds=(TEST_SEED,))


def trained() -> HeadNetwork:
    """A network, which is also written to `OUT`."""
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
    with torch.no_grad():
        found.set_identity_mean(
            SyntheticHeads(2000, SIDE, TEST_SEED).render(range(1000, 2000)).images.float() / 127.5
            - 1
        )
    # half precision: the file is half as large, and its readings change by far less than their errors
    save_file(
        {name: tensor.half().contiguous() for name, tensor in found.state_dict().items()}, OUT
    )
    found.load_state_dict(
        {name: tensor.half().float() for name, tensor in found.state_dict().items()}
    )
    print(f"{STEPS * BATCH:,} pictures in {(time.perf_counter() - began) / 60:.1f} minutes; {OUT}")
    return found


if __name__ == "__main__":
    main()
