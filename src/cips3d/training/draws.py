"""Every random number of a training step, replayable from (seed, step, position in the batch).

Each image has a random generator of its own. So a step draws the same numbers on one process or on
many, a resumed run draws what the interrupted one would have drawn, and no random state is stored.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cips3d.camera import Camera
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.types import Latents, RayDraws
from cips3d.training.augment import AugmentDraws
from cips3d.training.cameras import CameraSource

#: Images of the global batch, in order, that share the rays of partial gradients.
GROUP = 4


@dataclass(frozen=True)
class FakeDraws:
    """What a batch of generated images is made from: codes, one camera each, random rays."""

    latents: Latents
    camera: Camera
    rays: RayDraws
    positions: Sequence[int] = ()
    """in the global batch; they decide which rays carry partial gradients"""


@dataclass(frozen=True)
class StepDraws:
    """All random numbers of a step, drawn when they are asked for.

    Attributes:
        config: the generator's.
        noise_std: density noise, per world unit.
        key: the run's seed and the step.
        device: where the ray draws are made (they are large); the rest is drawn on the CPU.
        augment_probability: of DiffAugment, per image.
    """

    config: GeneratorConfig
    sampling: Sampling
    resolution: int
    noise_std: float
    key: tuple[int, int]
    device: torch.device
    cameras: CameraSource
    augment_probability: float = 0.0

    def fakes(self, positions: Sequence[int], purpose: str) -> FakeDraws:
        """Draws for generated images at `positions` of the global batch, for step "D" or "G"."""
        networks, count = self.config.networks, self.resolution**2
        on_cpu, on_device = torch.Generator("cpu"), torch.Generator(self.device)
        like: dict[str, Any] = {"generator": on_cpu, "dtype": torch.float32, "device": "cpu"}
        shape, appearance, angles, rays = [], [], [], []
        for position in positions:
            seed = image_seed(*self.key, purpose, position)
            on_cpu.manual_seed(seed)
            shape.append(torch.randn(networks.shape_dim, **like))
            appearance.append(torch.randn(networks.appearance_dim, **like))
            angles.append(self.cameras.draw(1, on_cpu))
            on_device.manual_seed(seed)
            drawn = RayDraws.sample(1, count, self.sampling, self.noise_std, on_device)
            if networks.background == "field":
                turn = 2 * math.pi * torch.rand(1, 1, 1, **like)
                drawn = replace(drawn, turn=turn.to(self.device).expand(1, count, 1))
            rays.append(drawn)
        return FakeDraws(
            Latents(torch.stack(shape), torch.stack(appearance)).map(self._sent),
            self.cameras.camera(torch.cat(angles)).map(self._sent),
            RayDraws.cat(rays).map(lambda x: x.unflatten(1, (-1, count))[0]),
            positions,
        )

    def augment(self, positions: Sequence[int]) -> AugmentDraws | None:
        """DiffAugment's draws for these images; None if none is changed."""
        if self.augment_probability <= 0:
            return None
        seeds = [image_seed(*self.key, "augment", position) for position in positions]
        return AugmentDraws.sample(seeds, self.augment_probability).map(self._sent)

    def gradient_rays(self, positions: Sequence[int], count: int) -> Int[Tensor, "batch rays"]:
        """`count` different ray indices of each image, for partial gradients.

        The same for the `GROUP` images that follow each other in the global batch: the authors draw
        one set per process, which has that many images.
        """
        groups = [position // GROUP for position in positions]
        subsets = {}
        for group in set(groups):
            generator = torch.Generator("cpu").manual_seed(image_seed(*self.key, "rays", group))
            order = torch.randperm(self.resolution**2, generator=generator, device="cpu")
            subsets[group] = order[:count]
        if not groups:
            return torch.zeros(0, count, dtype=torch.long, device=self.device)
        return self._sent(torch.stack([subsets[group] for group in groups]))

    def _sent(self, tensor: Tensor) -> Tensor:
        return sent(tensor, self.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for what a GPU still computes."""
    if tensor.is_cpu and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def image_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def mirrored(key: Sequence[int | str], positions: Sequence[int]) -> Bool[Tensor, " batch"]:
    """Which real images of a step are shown mirrored: an independent half."""
    flips = [image_seed(*key, "mirror", position) % 2 == 1 for position in positions]
    return torch.tensor(flips, device="cpu")


def real_order(
    size: int, seed: int, start: int, batch: int, positions: Sequence[int]
) -> Iterator[list[int]]:
    """Endless batches of indices of a dataset of `size` images: a new permutation every epoch.

    Args:
        start: real images already shown.
        positions: which images of each global `batch` this process reads.
    """
    permutations: dict[int, Int[Tensor, " size"]] = {}
    for shown in itertools.count(start, batch):
        indices = []
        for position in positions:
            epoch, offset = divmod(shown + position, size)
            if epoch not in permutations:
                generator = torch.Generator().manual_seed(image_seed(seed, "order", epoch))
                permutations = {e: p for e, p in permutations.items() if e >= epoch - 1}
                permutations[epoch] = torch.randperm(size, generator=generator, device="cpu")
            indices.append(int(permutations[epoch][offset]))
        yield indices
