"""Every random number of a training step, replayable from (seed, step, position in the global batch).

Each picture has a generator of its own, so a step draws the same numbers on one process or on many, and a resumed run draws
what the interrupted one would have drawn; no random state needs to be stored.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cips3d.camera import Camera
from cips3d.models.config import GeneratorConfig
from cips3d.models.types import Latents, RayDraws, Sampling
from cips3d.training.cameras import CameraSource


@dataclass(frozen=True)
class FakeDraws:
    """What one batch of generated pictures is made from.

    Attributes:
        latents: shape and appearance codes.
        camera: drawn from where the run's cameras come from.
        rays: jitter, importance draws and density noise of all rays.
    """

    latents: Latents
    camera: Camera
    rays: RayDraws


def picture_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fake_draws(
    config: GeneratorConfig,
    sampling: Sampling,
    resolution: int,
    noise_std: float,
    key: Sequence[int | str],
    positions: Sequence[int],
    device: torch.device,
    cameras: CameraSource | None = None,
) -> FakeDraws:
    """Draws for the pictures at `positions` of the global batch.

    Args:
        config: of the generator.
        sampling: samples per ray.
        resolution: side of the pictures in pixels.
        noise_std: density noise, per world unit.
        key: seed, step and purpose.
        positions: which pictures of the global batch this process makes.
        device: where the ray draws are made (they are large); latents and cameras are drawn on the CPU and moved.
        cameras: where cameras come from; the generator's camera prior by default.
    """
    cameras = cameras or config.poses
    on_cpu, on_device = torch.Generator(), torch.Generator(device)
    shape, appearance, angles, rays = [], [], [], []
    for position in positions:
        seed = picture_seed(*key, position)
        on_cpu.manual_seed(seed)
        shape.append(torch.randn(config.shape_dim, generator=on_cpu))
        appearance.append(torch.randn(config.appearance_dim, generator=on_cpu))
        angles.append(cameras.draw(1, on_cpu))
        on_device.manual_seed(seed)
        rays.append(RayDraws.sample(1, resolution * resolution, sampling, noise_std, on_device))
    return FakeDraws(
        Latents(torch.stack(shape), torch.stack(appearance)).to(device),
        cameras.camera(torch.cat(angles)).to(device),
        RayDraws.cat(rays),
    )


def mirrored(key: Sequence[int | str], positions: Sequence[int]) -> Bool[Tensor, " batch"]:
    """Which real pictures of this step are shown mirrored: an independent half of them."""
    return torch.tensor([picture_seed(*key, "mirror", position) % 2 == 1 for position in positions])


def real_order(
    size: int, seed: int, start: int, batch: int, positions: Sequence[int]
) -> Iterator[list[int]]:
    """Batches of dataset indices from the `start`-th real picture of a run on, without end: a fresh permutation every epoch.

    Args:
        size: pictures in the dataset.
        seed: of the permutations.
        start: real pictures already shown.
        batch: global batch size.
        positions: which pictures of each global batch this process reads.
    """
    permutations: dict[int, Int[Tensor, " size"]] = {}
    for shown in itertools.count(start, batch):
        indices = []
        for position in positions:
            epoch, offset = divmod(shown + position, size)
            if epoch not in permutations:
                generator = torch.Generator().manual_seed(picture_seed(seed, "order", epoch))
                permutations = {e: p for e, p in permutations.items() if e >= epoch - 1}
                permutations[epoch] = torch.randperm(size, generator=generator)
            indices.append(int(permutations[epoch][offset]))
        yield indices
