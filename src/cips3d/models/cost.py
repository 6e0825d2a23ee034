"""Parameters, operations and memory of a configuration, counted on torch's meta device."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from cips3d.camera import Rays
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.protocol import RayGenerator
from cips3d.models.registry import build_generator
from cips3d.models.types import Styles

#: Operations that only describe or reserve memory, besides views.
_WITHOUT_KERNEL = {
    torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty, torch.ops.aten.new_empty_strided, torch.ops.aten._unsafe_view,
    torch.ops.aten._reshape_alias, torch.ops.aten.lift_fresh, torch.ops.aten.set_,
    torch.ops.aten.resize_,
}  # fmt: skip


class Account(TorchDispatchMode):
    """Counts operations and the bytes of the storages that they allocate, until these are freed.

    torch's FlopCounterMode has hooks that refuse R1's second derivatives, so only its formulas are
    used.
    """

    flops: int
    """operations of matrix products and convolutions so far (2 per multiply-add)"""
    launches: int
    """calls that compute something: on a GPU, at least one kernel each"""
    passed_bytes: int
    """bytes that all other calls than those products and convolutions read and write"""
    live: int
    """bytes of the storages that are alive"""
    peak: int
    """largest `live` so far"""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.launches = self.passed_bytes = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        if not (func.is_view or func._overloadpacket in _WITHOUT_KERNEL):
            self.launches += 1
            if formula is None:
                touched = tree_leaves((args, kwargs, result))
                self.passed_bytes += sum(_bytes(x) for x in touched if isinstance(x, Tensor))
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


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; an expanded dimension is read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride or not size)


@dataclass(frozen=True)
class Cost:
    """Cost of one image. A generator's is an upper bound: every sample counts as visible."""

    parameters: int
    flops: int
    """operations of matrix products and convolutions of a forward pass (2 per multiply-add)"""
    saved_bytes: int
    """float32 activations that a forward pass keeps for its backward pass"""


def parameter_count(module: nn.Module) -> int:
    """Number of parameters."""
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
    """Cost of judging one image of `resolution`² pixels."""
    with torch.device("meta"):
        discriminator = ProgressiveDiscriminator(config)
        images, labels = torch.empty(2, 3, resolution, resolution), torch.empty(2, 25)
    accounts = []
    # the difference of two batch sizes leaves out weights that are scaled once per forward pass
    for count in (1, 2):
        with torch.enable_grad(), Account() as account:
            kept = discriminator(images[:count], cameras=labels[:count])
        accounts.append((account.flops, account.live if len(kept) else 0))
    (_, one), (flops, two) = accounts
    return Cost(parameter_count(discriminator), flops // 2, two - one)


def automatic_chunk(config: GeneratorConfig, batch: int, sampling: Sampling, memory: int) -> int:
    """Rays per image of a batch whose activations fill at most a quarter of `memory` bytes."""
    per_ray = _bytes_per_ray(replace(config, sampling=sampling))
    return max(1, int(memory / 4 / (per_ray * batch)))


@lru_cache
def _bytes_per_ray(config: GeneratorConfig) -> float:
    side = 8
    return generator_cost(config, side).saved_bytes / side**2


def device_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes of a GPU's memory, or of this machine's for each of `processes` that share it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total // processes
