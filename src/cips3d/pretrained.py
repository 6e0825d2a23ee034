"""Models by name: bundled, a file, a folder or a Hugging Face hub id.

A model is one safetensors file: the generator's weights, the discriminators it was trained against
under the prefix "discriminators.", and the configurations of both in the header, with a record of
the training. A folder in the hub's form has that file as model.safetensors, the generator's
configuration as config.json, and the model card as README.md.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from cips3d.configuration import from_dict, to_dict, validated
from cips3d.errors import UserError, first_line
from cips3d.files import atomic_path
from cips3d.model_paths import BUNDLED, CARD_FILE, MODEL_FILE, SUFFIX, local_file
from cips3d.models.card import MARK, Figures, card
from cips3d.models.config import GeneratorConfig
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.protocol import ImageGenerator
from cips3d.models.registry import build_generator
from cips3d.provenance import TrainingRecord
from cips3d.storage import load_weights, read_tensors, write_tensors

__all__ = ["BUNDLED", "MODEL_FILE", "Generator", "load", "load_discriminators", "save"]

_KEY, _PREFIX = "cips3d", "discriminators."


def save(
    generator: ImageGenerator,
    path: str | Path,
    discriminators: nn.ModuleDict | None = None,
    *,
    figures: str | Path | None = None,
    license: str | None = None,
) -> None:
    """Writes a model to one safetensors file, or to a folder in the hub's form.

    Args:
        path: a .safetensors file; any other name is a folder, which gets model.safetensors,
            config.json and a model card, README.md. A README.md that somebody else wrote stays.
        discriminators: `ProgressiveDiscriminator`s by name.
        figures: for the card: a file that `cips3d eval MODEL --json-file FILE` wrote.
        license: for the card: that of the weights, as the hub abbreviates it, such as "mit".

    Raises:
        UserError: if it cannot be written, or the figures not be read; nothing half-written stays
            behind.
    """
    _save(generator, Path(path), discriminators, Path(path).absolute().name, figures, license)


def _save(
    generator: ImageGenerator,
    path: Path,
    discriminators: nn.ModuleDict | None,
    name: str,
    figures: str | Path | None,
    license: str | None,
) -> None:
    """`save` with the model's name for the card."""
    found = None if figures is None else Figures.read(figures)
    entry = generator.header()
    tensors: dict[str, Tensor] = dict(generator.state_dict())
    if discriminators is not None:
        entry["discriminators"] = {key: to_dict(d.config) for key, d in discriminators.items()}
        tensors |= {f"{_PREFIX}{key}": value for key, value in discriminators.state_dict().items()}
    if path.suffix.lower() == SUFFIX:
        write_tensors(path, tensors, _KEY, entry)
        return
    write_tensors(path / MODEL_FILE, tensors, _KEY, entry)
    with atomic_path(path / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(entry["generator"], indent=2) + "\n", encoding="utf-8")
    readme = path / CARD_FILE
    if not readme.exists() or MARK in readme.read_text(encoding="utf-8", errors="replace"):
        judged = discriminators is not None
        write_card(generator, readme, name, discriminators=judged, figures=found, license=license)


def write_card(generator: ImageGenerator, path: Path, name: str, **options: Any) -> None:
    """Writes `cips3d.models.card.card` to a file; raises UserError if it cannot be written."""
    text = card(generator, name, **options)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def push_to_hub(
    generator: ImageGenerator,
    repo_id: str,
    discriminators: nn.ModuleDict | None = None,
    *,
    figures: str | Path | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> None:
    """Uploads a model, with its discriminators, to the hub's repository `repo_id` (user/model).

    Its model card, README.md, replaces that of the repository, whose history keeps the old one.

    Args:
        figures, license: for the card, see `save`.

    Raises:
        UserError: if the hub refuses it, or the figures cannot be read.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        _save(generator, Path(folder), discriminators, repo_id, figures, license)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
        except (HfHubHTTPError, OSError, ValueError) as error:
            line = f"hub {repo_id}: {first_line(error)}; check the name and the token"
            raise UserError(line) from None


def load(name: str | Path) -> ImageGenerator:
    """A generator in evaluation mode, its parameters without gradients.

    Args:
        name: "heads", the model that comes with the package; a .safetensors file; a folder in the
            hub's form; or a hub id (`user/model`). "./heads" is a folder, never the bundled model.

    Raises:
        UserError: if there is no such model, or the file is damaged or of another kind.
    """
    path = model_file(name)
    entry, weights = _read(path, without=_PREFIX)
    generator = build_generator(from_dict(GeneratorConfig, entry.get("generator"), str(path)))
    # not in 16 bits, in which the samples of a ray would coincide
    if "shape_mean" in weights and weights["shape_mean"].dtype == torch.float64:
        generator = generator.double()
    load_weights(generator, weights, str(path))
    if (record := entry.get("training")) is not None:
        generator.record = from_dict(TrainingRecord, record, f"{path}: training")
    return generator.eval().requires_grad_(False)


ImageGenerator.find = load


def load_discriminators(name: str | Path) -> nn.ModuleDict | None:
    """The discriminators "main" and "aux" of a model (see `load`); None if it came without them.

    Raises:
        UserError: if there is no such model, or the file is damaged.
    """
    path = model_file(name)
    entry, weights = _read(path, prefix=_PREFIX)
    if entry.get("discriminators") is None:
        return None
    kind = dict[str, DiscriminatorConfig]
    configs = validated(kind, entry["discriminators"], f"{path}: discriminators")
    found = nn.ModuleDict({key: ProgressiveDiscriminator(c) for key, c in configs.items()})
    load_weights(found, weights, str(path))
    return found.eval().requires_grad_(False)


def load_main_discriminator(name: str | Path) -> ProgressiveDiscriminator | None:
    """The one of `load_discriminators` that judged the main images."""
    found = load_discriminators(name)
    return None if found is None else cast(ProgressiveDiscriminator, found["main"])


def model_file(name: str | Path) -> Path:
    """The file of a model, downloaded if it is on the hub; raises UserError if there is none."""
    path = local_file(name)
    if path is not None:
        return path
    try:
        return Path(hf_hub_download(str(name), MODEL_FILE))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"model {name}: is neither a file, a folder nor a model on the Hugging Face hub "
            f"({first_line(error)}); check the name"
        ) from None


def _read(path: Path, **names: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    entry, tensors = read_tensors(path, _KEY, "a cips3d model", **names)
    if not isinstance(entry, dict):
        raise UserError(f"{path}: its header is damaged; copy or download it again")
    return entry, tensors
