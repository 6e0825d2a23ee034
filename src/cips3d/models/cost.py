"""What a configuration costs: parameters, floating-point operations and memory, counted on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cips3d.camera import Rays
from cips3d.models.baselines import build_generator
from cips3d.models.config import GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.types import Styles


@dataclass(frozen=True)
class Cost:
    """Cost of one picture, or of one call on it.

    Attributes:
        parameters: trainable numbers.
        flops: operations of matrix products and convolutions (2 per multiply-add) of a forward pass, per picture.
        saved_bytes: float32 activations that a forward pass keeps for its backward pass, for each picture.

    A generator's figures are the most there can be: every sample lies in density and is seen (see `volume.visible_samples`).
    """

    parameters: int
    flops: int
    saved_bytes: int


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def generator_cost(config: GeneratorConfig, resolution: int) -> Cost:
    """Cost of rendering one picture of `resolution`² pixels, all rays with gradients."""
    with torch.device("meta"):
        generator = build_generator(config)
    styles = Styles(generator.shape_mean[None], generator.appearance_mean[None])
    rays = Rays(*(torch.empty(1, resolution**2, 3, device="meta") for _ in range(2)))
    saved = _SavedBytes()
    with torch.enable_grad(), saved.hooks(), FlopCounterMode(display=False) as flops:
        generator.render_rays(styles, rays, generator.sampling)
    return Cost(parameter_count(generator), flops.get_total_flops(), saved.total)


def discriminator_cost(config: DiscriminatorConfig, resolution: int) -> Cost:
    """Cost of judging one picture of `resolution`² pixels; what is kept once for all pictures of a batch is not in it."""
    with torch.device("meta"):
        discriminator = ProgressiveDiscriminator(config)
        images, labels = torch.empty(2, 3, resolution, resolution), torch.empty(2, 25)
    kept = []
    for count in (1, 2):
        saved = _SavedBytes()
        with torch.enable_grad(), saved.hooks(), FlopCounterMode(display=False) as flops:
            discriminator(images[:count], cameras=labels[:count] if config.camera_label else None)
        kept.append(saved.total)
    return Cost(parameter_count(discriminator), flops.get_total_flops() // 2, kept[1] - kept[0])


class _SavedBytes:
    """Adds up the storages that autograd keeps, each once; parameters are not counted."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context in which to count."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            self._seen[tensor.untyped_storage()._cdata] = (
                tensor  # holding it keeps its address from being used again
            )
        return tensor

    @property
    def total(self) -> int:
        """Bytes kept so far."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._seen.values())
