"""Conversion of the authors' released checkpoints: names of tensors, sizes, pixel grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cips3d.camera import PoseDistribution
from cips3d.errors import UserError
from cips3d.models.config import Cips3dNetworks, GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.storage import load_weights, read_pickle


def read(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in one of the authors' `.pth` files; raises UserError for anything else."""
    content = read_pickle(path, "give the authors' *.pth file")
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise UserError(
            f"{path} is not a state_dict of tensors; give the authors' G_ema_*.pth or D_*.pth file"
        )
    return content


def import_generator(official: dict[str, Tensor], source: str, resolution: int = 256) -> Generator:
    """A generator from the authors' state_dict; the tensors' shapes give its sizes.

    Args:
        source: the state_dict's name in an error line.
        resolution: the resolution it was trained at, which the tensors do not contain.

    Raises:
        UserError: if a tensor is missing, unknown or has an unexpected shape.
    """
    try:
        config = _config(official, resolution)
    except LookupError as error:
        raise UserError(
            f"{source}: no tensor {error}; this is not the authors' generator checkpoint"
        ) from None
    generator = Generator(config).to(next(iter(official.values())).dtype)
    renamed = {"shape_mean": generator.shape_mean, "appearance_mean": generator.appearance_mean}
    for key, tensor in official.items():
        try:
            name = generator_name(key, generator.networks)
        except (KeyError, ValueError):
            raise UserError(
                f"{source}: unknown tensor {key}; this is not the authors' generator checkpoint"
            ) from None
        if name is not None:
            renamed[name] = tensor[0] if key.endswith(("mod1.weight", "mod2.weight")) else tensor
    load_weights(generator, renamed, source)
    generator.update_style_means()
    return generator


def _config(official: dict[str, Tensor], resolution: int) -> GeneratorConfig:
    def count(prefix: str, suffix: str = ".weight", dims: int = 2) -> int:
        return sum(
            key.startswith(prefix) and key.endswith(suffix) and tensor.dim() == dims
            for key, tensor in official.items()
        )

    networks = Cips3dNetworks(
        shape_dim=official["mapping_network_nerf.base_net.0.weight"].shape[1],
        appearance_dim=official["mapping_network_inr.base_net.0.weight"].shape[1],
        shape_style_dim=official["siren.network.0.gain_fc.weight"].shape[1],
        appearance_style_dim=official["inr_net.network.4.mod1.modulation.weight"].shape[1],
        shape_mapping_layers=count("mapping_network_nerf.base_net."),
        appearance_mapping_layers=count("mapping_network_inr.base_net."),
        appearance_mapping_norm="mapping_network_inr.base_net.1.weight" in official,
        nerf_width=official["siren.network.0.linear.weight"].shape[0],
        nerf_layers=count("siren.network.", ".linear.weight"),
        feature_dim=official["siren.color_layer_linear.0.weight"].shape[0],
        inr_width=official["inr_net.network.4.mod1.weight"].shape[2],
        inr_blocks=count("inr_net.network.", ".mod1.weight", dims=3),
        background="endless",
    )
    poses = PoseDistribution()
    # theirs start rays at pixel corners; wider cameras have the same rays at pixel centres
    fov = poses.at(0.0).to(torch.float64).from_corner_grid(resolution).fov
    return GeneratorConfig(networks, resolution=resolution, poses=replace(poses, fov=float(fov)))


_NERF_PARTS = {"linear": "linear", "gain_fc": "gain", "bias_fc": "phase"}


def generator_name(key: str, config: Cips3dNetworks) -> str | None:
    """Our name for one of the authors' generator keys; None for entries their code never uses."""
    parts = key.split(".")
    match parts:
        case ["siren", "network", index, part, leaf]:
            return f"nerf.layers.{index}.{_NERF_PARTS[part]}.{leaf}"
        case ["siren", "color_layer_sine", part, leaf]:
            return f"nerf.feature_layer.{_NERF_PARTS[part]}.{leaf}"
        case ["siren", "final_layer", leaf]:
            return f"nerf.density.{leaf}"
        case ["siren", "color_layer_linear", "0", leaf]:
            return f"nerf.feature.{leaf}"
        case ["mapping_network_nerf", "base_net", index, leaf]:
            return f"shape_mapping.linears.{int(index) // 2}.{leaf}"
        case ["mapping_network_inr", "base_net", index, leaf]:
            if not config.appearance_mapping_norm:
                return f"appearance_mapping.linears.{int(index) // 2}.{leaf}"
            kind = "norms" if int(index) % 3 else "linears"
            return f"appearance_mapping.{kind}.{int(index) // 3}.{leaf}"
        case ["inr_net", "network", size, modulated, "modulation", leaf]:
            return f"inr.blocks.{_block_index(size)}.{_MODULATED[modulated]}.affine.{leaf}"
        case ["inr_net", "network", size, modulated, "weight"]:
            return f"inr.blocks.{_block_index(size)}.{_MODULATED[modulated]}.weight"
        case ["inr_net", "to_rgbs", size, "linear", leaf] if (
            _block_index(size) >= config.rgb_from_block
        ):
            return f"inr.to_rgb.{_block_index(size) - config.rgb_from_block}.{leaf}"
        case ["aux_to_rbg", "0", leaf]:
            return f"aux_head.{leaf}"
        case ["inr_net", "network", _, _, "norm", _] | ["inr_net", "to_rgbs", *_]:
            return None
    return key


_MODULATED = {"mod1": "first", "mod2": "second"}


def _block_index(size: str) -> int:
    """The authors name INR blocks by powers of two from 4 on."""
    return int(size).bit_length() - 3


def import_discriminator(official: dict[str, Tensor], source: str) -> ProgressiveDiscriminator:
    """One discriminator from the authors' state_dict, without its key prefix.

    Raises:
        UserError: if a tensor is missing or has an unexpected shape.
    """
    channels = {
        int(key.split(".")[1]): t.shape[0]
        for key, t in official.items()
        if key.startswith("conv_in.") and t.dim() == 4
    }
    try:
        extra = official["final_conv.equal_conv.weight"].shape[1] - channels[4]
        dtype = official["out_linear.weight"].dtype
    except LookupError as error:
        raise UserError(
            f"{source}: no tensor {error}; this is not the authors' discriminator checkpoint"
        ) from None
    config = DiscriminatorConfig(
        dict(sorted(channels.items())),
        downsample_first=any(".conv1.down_blur" in key for key in official),
        stddev_group=4 * extra,
    )
    discriminator = ProgressiveDiscriminator(config).to(dtype)
    renamed = {discriminator_name(k): t for k, t in official.items() if "down_blur" not in k}
    load_weights(discriminator, renamed, source)
    return discriminator


def import_discriminators(path: str | Path) -> torch.nn.ModuleDict:
    """Both discriminators, "main" and "aux", from one of the authors' `D_*.pth` files.

    Raises:
        UserError: if the file cannot be read, a tensor is missing or has an unexpected shape.
    """
    official = read(path)
    found = torch.nn.ModuleDict()
    for name in ("main", "aux"):
        prefix = f"{name}_disc."
        own = {key.removeprefix(prefix): x for key, x in official.items() if key.startswith(prefix)}
        found[name] = import_discriminator(own, f"{path} ({prefix}*)")
    return found


_DISCRIMINATOR_PARTS = {
    "conv_in.": "from_rgb.",
    "convs.": "blocks.",
    "space_linear.": "hidden.",
    "out_linear.": "logit.",
    ".equal_conv.": ".",
    ".flrelu.": ".",
}


def discriminator_name(key: str) -> str:
    """Our name for one of the authors' discriminator keys."""
    for theirs, ours in _DISCRIMINATOR_PARTS.items():
        key = key.replace(theirs, ours)
    return key
