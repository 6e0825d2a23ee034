"""Tensors and a JSON entry in one safetensors file: written whole or not at all, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cips3d.errors import UserError, first_line
from cips3d.files import atomic_path


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], key: str, entry: dict[str, Any]
) -> None:
    """Writes a safetensors file with `entry` as JSON under `key` in its header.

    Raises:
        UserError: if the file cannot be written.
    """
    # one key only: several come in random order, but equal models should be equal files
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, {key: json.dumps(entry)})
        except SafetensorError as error:
            raise OSError(str(error)) from None


def read_tensors(
    path: Path,
    key: str,
    what: str,
    remedy: str = "it may be truncated: copy or download it again",
    *,
    prefix: str = "",
    without: str | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """The JSON under `key` in the header of a safetensors file, and its tensors.

    Args:
        what: what the file should be, for an error line.
        remedy: what to do about a damaged file, for an error line.
        prefix: read only tensors whose names start with this, and remove it.
        without: leave out tensors whose names start with this.

    Raises:
        UserError: if the file cannot be read, or its header has no such key.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if key not in metadata:
                raise UserError(
                    f"{path} is a safetensors file but not {what}; its header has no entry {key}"
                )
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            if without is not None:
                names = [name for name in names if not name.startswith(without)]
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
            return json.loads(metadata[key]), tensors
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not readable as {what} ({error}); {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """`load_state_dict` that raises UserError for the first name or shape that does not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if missing := sorted(expected.keys() - found.keys()):
        fault = f"{missing[0]} is missing"
    elif surplus := sorted(found.keys() - expected.keys()):
        fault = f"{surplus[0]} has no place"
    elif wrong := [name for name, shape in expected.items() if found[name] != shape]:
        fault = f"{wrong[0]} has shape {found[wrong[0]]}, expected {expected[wrong[0]]}"
    else:
        module.load_state_dict(weights)
        return
    raise UserError(
        f"{source}: weights of another configuration: {fault}; "
        "use the configuration it was made with"
    )


def weights_digest(weights: Mapping[str, Tensor], start: str = "", size: int = 8) -> str:
    """A hash, `size` bytes long, of `start` and then all names and values."""
    hashed = hashlib.blake2b(start.encode(), digest_size=size)
    for name, tensor in sorted(weights.items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def read_pickle(path: str | Path, remedy: str) -> Any:
    """The contents of a `torch.save` file; nothing but tensors and numbers is unpickled.

    Raises:
        UserError: if the file cannot be read, or contains anything else; ends with `remedy`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}; {remedy}") from None
    except Exception as error:  # the reader of pickles fails in any way on other files
        line = f"{path} is not a checkpoint of plain tensors ({first_line(error)}); {remedy}"
        raise UserError(line) from None
