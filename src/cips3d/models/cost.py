"""What a configuration costs: parameters, floating-point operations and memory, on shapes only.

Everything is counted by running the code itself on torch's meta device.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from cips3d.camera import Rays
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.protocol import RayGenerator
from cips3d.models.registry import build_generator
from cips3d.models.types import Styles


class Account(TorchDispatchMode):
    """Counts operations, and adds up the storages that they make for as long as these live.

    torch's FlopCounterMode does the first, but its hooks refuse the second derivative that R1
    takes; its formulas serve here.

    Attributes:
        flops: operations of matrix products and convolutions so far (2 per multiply-add).
        live: bytes of the storages that are alive.
        peak: the largest `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Attributes:
        parameters: trainable numbers.
        flops: operations of matrix products and convolutions (2 per multiply-add) of a forward
            pass, per image.
        saved_bytes: float32 activations that a forward pass keeps for its backward pass, per image.

    A generator's figures are upper bounds: every sample counts as visible.
    """

    parameters: int
    flops: int
    saved_bytes: int


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def generator_cost(config: GeneratorConfig, resolution: int) -> Cost:
    """Cost of rendering one image of `resolution`² pixels, all rays with gradients."""
    with torch.device("meta"):
        generator = build_generator(config)
    assert isinstance(generator, RayGenerator)
    styles = Styles(generator.shape_mean[None], generator.appearance_mean[None])
    rays = Rays(*(torch.empty(1, resolution**2, 3, device="meta") for _ in range(2)))
    with torch.enable_grad(), Account() as account:
        kept = generator.render_rays(styles, rays, generator.sampling)
    return Cost(parameter_count(generator), account.flops, account.live if kept else 0)


def discriminator_cost(config: DiscriminatorConfig, resolution: int) -> Cost:
    """Cost of judging one image of `resolution`² pixels.

    Weights that a forward pass scales once for the whole batch are not counted.
    """
    with torch.device("meta"):
        discriminator = ProgressiveDiscriminator(config)
        images, labels = torch.empty(2, 3, resolution, resolution), torch.empty(2, 25)
    accounts = []
    for count in (1, 2):
        with torch.enable_grad(), Account() as account:
            cameras = labels[:count] if config.camera_label else None
            kept = discriminator(images[:count], cameras=cameras)
        accounts.append((account.flops, account.live if len(kept) else 0))
    (_, one), (flops, two) = accounts
    return Cost(parameter_count(discriminator), flops // 2, two - one)


def automatic_chunk(config: GeneratorConfig, batch: int, sampling: Sampling, memory: int) -> int:
    """Rays of each of `batch` images whose activations fill a quarter of `memory` bytes at most."""
    per_ray = _bytes_per_ray(replace(config, sampling=sampling))
    return max(1, int(memory / 4 / (per_ray * batch)))


@lru_cache
def _bytes_per_ray(config: GeneratorConfig) -> float:
    side = 8
    return generator_cost(config, side).saved_bytes / side**2


def device_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes of memory of a GPU, or of each of `processes` that share this machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // processes
