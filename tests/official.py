"""Reads the recorded numbers: tensors by prefix, the recorded networks as ours."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cips3d.models.generator import Generator
from cips3d.official import import_discriminator, import_generator

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> dict[str, Tensor]:
    """All tensors of a recorded file."""
    return load_file(DATA / f"{name}.safetensors")


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def generator(tensors: dict[str, Tensor], prefix: str) -> Generator:
    """The recorded generator."""
    return import_generator(below(tensors, prefix), "recorded", resolution=16)


def discriminators(tensors: dict[str, Tensor], main: str, aux: str) -> nn.ModuleDict:
    """The recorded discriminators, from the prefixes of their state_dicts."""
    return nn.ModuleDict(
        {
            "main": import_discriminator(below(tensors, main), "recorded"),
            "aux": import_discriminator(below(tensors, aux), "recorded"),
        }
    )


def worst(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of b."""
    return float(
        torch.linalg.vector_norm((a - b).detach()) / torch.linalg.vector_norm(b).clamp(min=1e-30)
    )
