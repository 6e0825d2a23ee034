"""One-file models: a safetensors file with the configuration in its header. Also hub folders and the authors' checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cips3d.configuration import from_dict, read_json, to_dict
from cips3d.errors import UserError, first_line
from cips3d.files import atomic_path
from cips3d.models.baselines import build_generator
from cips3d.models.config import GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator

#: Models that come with the package, by name.
BUNDLED = {"heads": "heads-64.safetensors"}
#: File of a model in a folder of its own: a run's, an inversion's, the hub's form.
MODEL_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.safetensors)")


def save(generator: Generator, path: str | Path) -> None:
    """Writes a generator to one safetensors file: weights, and the configuration as JSON in the header.

    Raises:
        UserError: if the file cannot be written; nothing half-written stays behind.
    """
    write_tensors(path, generator.state_dict(), "cips3d", to_dict(generator.config))


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], key: str, entry: dict[str, Any]
) -> None:
    """Writes a safetensors file, whole or not at all, with `entry` as JSON under `key` in its header.

    There is one key only, because several come in random order, and equal models shall be equal files.

    Raises:
        UserError: if it cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, {key: json.dumps(entry)})
        except SafetensorError as error:
            raise OSError(str(error)) from None


def load(name: str | Path) -> Generator:
    """A generator in evaluation mode, its parameters without gradients.

    Args:
        name: "heads", the model that comes with the package; a one-file model; a folder in the hub's form; or a hub id
            (`user/model`). A folder of a bundled model's name is meant by "./heads", or by a Path.

    Raises:
        UserError: if there is no such model, or the file is damaged or of another kind.
    """
    path = _path(name)
    if path.is_file():
        generator = _load_file(path)
    elif path.is_dir() or _HUB_ID.fullmatch(str(name)):
        generator = _load_hub_form(str(name), is_folder=path.is_dir())
    else:  # without asking the hub, which takes half a minute where there is no network
        raise UserError(
            f"model {name}: no such file or folder; check the path (a model on the hub is named user/model, a bundled one "
            f"{' or '.join(BUNDLED)})"
        )
    return generator.eval().requires_grad_(False)


def _is_bundled(name: str | Path) -> bool:
    return isinstance(name, str) and name in BUNDLED


def _path(name: str | Path) -> Path:
    return (
        Path(__file__).parent / "bundled" / BUNDLED[str(name)] if _is_bundled(name) else Path(name)
    )


def save_discriminators(discriminators: torch.nn.ModuleDict, model: str | Path) -> None:
    """Writes the discriminators that a model was trained against, by name, to a file beside the model's.

    Args:
        discriminators: `ProgressiveDiscriminator`s.
        model: file of the model, such as model.safetensors; theirs is then model.discriminators.safetensors.

    Raises:
        UserError: if the file cannot be written.
    """
    entries = {name: to_dict(part.config) for name, part in discriminators.items()}
    write_tensors(
        discriminators_file(Path(model)),
        discriminators.state_dict(),
        "cips3d-discriminators",
        entries,
    )


def copy_discriminators(name: str | Path, model: str | Path) -> None:
    """Puts a model's discriminators beside another model, in place of those that are there; none, if it came without them.

    Args:
        name: of the model, as for `load`.
        model: file of the other one.

    Raises:
        UserError: if the file cannot be written.
    """
    source, target = _discriminators_of(name), discriminators_file(Path(model))
    if source is None:
        target.unlink(missing_ok=True)
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def load_discriminators(name: str | Path) -> torch.nn.ModuleDict | None:
    """The discriminators that a model was trained against, "main" and "aux"; None where the model came without them.

    Args:
        name: of the model, as for `load`; they are looked for beside a file, not in the hub's form or on the hub.

    Raises:
        UserError: if their file is damaged.
    """
    path = _discriminators_of(name)
    if path is None:
        return None
    entries, weights = read_tensors(
        path, "cips3d-discriminators", "the discriminators of a cips3d model"
    )
    if not isinstance(entries, dict):
        raise UserError(
            f"{path}: its header holds no configurations of discriminators; copy or download it again"
        )
    configs = {
        key: from_dict(DiscriminatorConfig, entry, str(path)) for key, entry in entries.items()
    }
    discriminators = torch.nn.ModuleDict(
        {key: ProgressiveDiscriminator(config) for key, config in configs.items()}
    )
    load_weights(discriminators, weights, str(path))
    return discriminators.eval().requires_grad_(False)


def load_main_discriminator(name: str | Path) -> ProgressiveDiscriminator | None:
    """The one of `load_discriminators` that judged the model's pictures."""
    discriminators = load_discriminators(name)
    if discriminators is None:
        return None
    main = discriminators["main"]
    assert isinstance(main, ProgressiveDiscriminator)
    return main


def _discriminators_of(name: str | Path) -> Path | None:
    """The file of a model's discriminators; None where the model is no file, or came without them."""
    model = _path(name)
    if not model.is_file():  # also "." and "/", which have no name to put a suffix on
        return None
    path = discriminators_file(model)
    return path if path.is_file() else None


def weights_digest(weights: Mapping[str, Tensor], start: str = "", size: int = 8) -> str:
    """A hash of names and values.

    Args:
        start: hashed before them.
        size: of the hash, bytes.
    """
    hashed = hashlib.blake2b(start.encode(), digest_size=size)
    for name, tensor in sorted(weights.items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def discriminators_file(model: Path) -> Path:
    """Where the discriminators of a model of one file are."""
    return model.with_suffix(".discriminators.safetensors")


def read_tensors(
    path: Path,
    key: str | None,
    what: str,
    remedy: str = "it may be truncated: copy or download it again",
) -> tuple[Any, dict[str, Tensor]]:
    """The JSON under `key` in the header of a safetensors file, and the tensors.

    Args:
        key: None where the header does not matter; None is then returned for it.
        what: the file should be, for an error line.
        remedy: against a damaged file, for an error line.

    Raises:
        UserError: if the file cannot be read, or its header has no such key.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if key is not None and key not in metadata:
                raise UserError(
                    f"{path} is a safetensors file but not {what}; its header has no entry {key}"
                )
            entry = None if key is None else json.loads(metadata[key])
            return entry, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not readable as {what} ({error}); {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def check_replaces_nothing(path: Path, *inputs: str | Path | None) -> None:
    """Raises UserError for a file to be written that is an input, a run's model or that of a folder in the hub's form."""
    given = {Path(name).resolve() for name in inputs if name is not None and not _is_bundled(name)}
    if path.resolve() in given:
        raise UserError(f"{path}: is what is read, which would be replaced; give another name")
    if path.name == MODEL_FILE and (path.parent / CONFIG_NAME).exists():
        raise UserError(
            f"{path}: is the model of a run or of a model folder, which would be replaced; give another place"
        )


def _load_file(path: Path) -> Generator:
    entry, weights = read_tensors(path, "cips3d", "a cips3d model")
    return _built(from_dict(GeneratorConfig, entry, str(path)), weights, path)


def _load_hub_form(name: str, is_folder: bool) -> Generator:
    """A folder, or a repository on the hub, with config.json and model.safetensors."""
    if is_folder and not (Path(name) / CONFIG_NAME).is_file():
        raise UserError(f"model {name}: is not a model folder (it has no {CONFIG_NAME})")
    try:
        config, path = (
            Path(name) / file if is_folder else Path(hf_hub_download(name, file))
            for file in (CONFIG_NAME, MODEL_FILE)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"model {name}: is neither a file, a folder nor a model on the Hugging Face hub ({reason})"
        ) from None
    if is_folder and _is_of_run(config):
        raise UserError(
            f"model {name}: is the folder of a run; give the model in it, {name}/{MODEL_FILE}"
        )
    return _built(
        read_json(GeneratorConfig, config),
        read_tensors(path, None, "the weights of a cips3d model")[1],
        path,
    )


def _is_of_run(config: Path) -> bool:
    """Whether a config.json is a training run's."""
    try:
        return "stages" in json.loads(config.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _built(config: GeneratorConfig, weights: dict[str, Tensor], path: Path) -> Generator:
    """The generator of a configuration with these weights: in double precision, if they are, else in single.

    Not in 16 bits, in which the samples of a ray would fall together: of a file of such weights the values are taken.
    """
    generator = build_generator(config)
    if "shape_mean" in weights and weights["shape_mean"].dtype == torch.float64:
        generator = generator.double()
    load_weights(generator, weights, str(path))
    return generator


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """`load_state_dict` whose failure is one line.

    Raises:
        UserError: if names or shapes do not fit, naming the first one.
    """
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or surplus:
        name, fault = (missing[0], "is missing") if missing else (surplus[0], "has no place")
        raise UserError(
            f"{source}: weights of another configuration: {name} {fault}; use the configuration it was made with"
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise UserError(
                f"{source}: weights of another configuration: {name} has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(tensor.shape)}; use the configuration it was made with"
            )
    module.load_state_dict(weights)


def read_pickle(path: str | Path, remedy: str) -> Any:
    """What `torch.save` wrote, read without unpickling anything but tensors and plain values; error lines end in `remedy`.

    Raises:
        UserError: if the file cannot be read, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}; {remedy}") from None
    except Exception as error:  # on other files the reader of pickles fails in any way
        raise UserError(
            f"{path} is not a checkpoint of plain tensors ({first_line(error)}); {remedy}"
        ) from None


# ---------------------------------------------------------------- the authors' checkpoints
def read_official(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in one of the authors' `.pth` files, read without unpickling anything but tensors.

    Raises:
        UserError: if the file cannot be read, or holds anything else.
    """
    content = read_pickle(path, "give the authors' *.pth file")
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise UserError(
            f"{path} holds no state_dict of tensors; give the authors' G_ema_*.pth or D_*.pth file"
        )
    return content


def import_official_generator(
    official: dict[str, Tensor], source: str, resolution: int = 256
) -> Generator:
    """A generator from the authors' state_dict: architecture from the tensors' shapes, their pixel grid and background.

    Args:
        official: the state_dict with the authors' key names.
        source: what to call it in an error line.
        resolution: the resolution it was trained at (not recorded in the tensors).

    Raises:
        UserError: if a tensor is missing or has an unexpected shape.
    """
    try:
        config = _official_config(official, resolution)
    except LookupError as error:
        raise UserError(
            f"{source}: no tensor {error}; this is not the authors' generator checkpoint"
        ) from None
    generator = Generator(config).to(next(iter(official.values())).dtype)
    renamed = {"shape_mean": generator.shape_mean, "appearance_mean": generator.appearance_mean}
    for key, tensor in official.items():
        try:
            name = official_generator_name(key, config)
        except (KeyError, ValueError):
            raise UserError(
                f"{source}: unknown tensor {key}; this is not the authors' generator checkpoint"
            ) from None
        if name is not None:
            renamed[name] = tensor[0] if key.endswith(("mod1.weight", "mod2.weight")) else tensor
    load_weights(generator, renamed, source)
    generator.update_style_means()
    return generator


def _official_config(official: dict[str, Tensor], resolution: int) -> GeneratorConfig:
    def count(prefix: str) -> int:
        return sum(
            key.startswith(prefix) and key.endswith("weight") and official[key].dim() == 2
            for key in official
        )

    defaults = GeneratorConfig()
    return replace(
        defaults,
        shape_dim=official["mapping_network_nerf.base_net.0.weight"].shape[1],
        appearance_dim=official["mapping_network_inr.base_net.0.weight"].shape[1],
        shape_style_dim=official["siren.network.0.gain_fc.weight"].shape[1],
        appearance_style_dim=official["inr_net.network.4.mod1.modulation.weight"].shape[1],
        shape_mapping_layers=count("mapping_network_nerf.base_net."),
        appearance_mapping_layers=count("mapping_network_inr.base_net."),
        appearance_mapping_norm="mapping_network_inr.base_net.1.weight" in official,
        nerf_width=official["siren.network.0.linear.weight"].shape[0],
        nerf_layers=sum(
            key.startswith("siren.network.") and key.endswith(".linear.weight") for key in official
        ),
        feature_dim=official["siren.color_layer_linear.0.weight"].shape[0],
        inr_width=official["inr_net.network.4.mod1.weight"].shape[2],
        inr_blocks=sum(
            key.startswith("inr_net.network.") and key.endswith("mod1.weight") for key in official
        ),
        background="endless",
        corner_aligned=True,
        resolution=resolution,
    )


_NERF_PARTS = {"linear": "linear", "gain_fc": "gain", "bias_fc": "phase"}


def official_generator_name(key: str, config: GeneratorConfig) -> str | None:
    """Our name for one of the authors' generator keys; None for entries that their code never uses."""
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


def import_official_discriminator(
    official: dict[str, Tensor], source: str
) -> ProgressiveDiscriminator:
    """A discriminator from the authors' state_dict (one of the main or auxiliary ones, without the `main_disc.` prefix).

    Raises:
        UserError: if a tensor is missing or has an unexpected shape.
    """
    channels = {
        int(key.split(".")[1]): t.shape[0]
        for key, t in official.items()
        if key.startswith("conv_in.") and t.dim() == 4
    }
    first = any(".conv1.down_blur" in key for key in official)
    try:
        extra = official["final_conv.equal_conv.weight"].shape[1] - channels[4]
        dtype = official["out_linear.weight"].dtype
    except LookupError as error:
        raise UserError(
            f"{source}: no tensor {error}; this is not the authors' discriminator checkpoint"
        ) from None
    config = DiscriminatorConfig(
        dict(sorted(channels.items())), downsample_first=first, stddev_group=4 * extra
    )
    discriminator = ProgressiveDiscriminator(config).to(dtype)
    renamed = {
        official_discriminator_name(key): tensor
        for key, tensor in official.items()
        if "down_blur" not in key
    }
    load_weights(discriminator, renamed, source)
    return discriminator


def import_official_discriminators(path: str | Path) -> torch.nn.ModuleDict:
    """Both discriminators, "main" and "aux", from one of the authors' `D_*.pth` files.

    Raises:
        UserError: if the file cannot be read, a tensor is missing or has an unexpected shape.
    """
    official = read_official(path)
    parts = {"main": "main_disc.", "aux": "aux_disc."}
    of_each = {
        name: {
            key.removeprefix(prefix): tensor
            for key, tensor in official.items()
            if key.startswith(prefix)
        }
        for name, prefix in parts.items()
    }
    return torch.nn.ModuleDict(
        {
            name: import_official_discriminator(of_each[name], f"{path} ({prefix}*)")
            for name, prefix in parts.items()
        }
    )


def official_discriminator_name(key: str) -> str:
    """Our name for one of the authors' discriminator keys."""
    for theirs, ours in (
        ("conv_in.", "from_rgb."), ("convs.", "blocks."), ("space_linear.", "hidden."), ("out_linear.", "logit."),
        (".equal_conv.", "."), (".flrelu.", "."),
    ):  # fmt: skip
        key = key.replace(theirs, ours)
    return key
