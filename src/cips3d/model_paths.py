"""Where a model's file is, by its name. Light: imports neither torch nor the hub's client."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cips3d.errors import UserError

#: Models that come with the package, by name.
BUNDLED = {"heads": "heads-64.safetensors"}
#: Suffix of a model, and the names of its files in a folder (of a run, or in the hub's form).
SUFFIX, MODEL_FILE, CONFIG_FILE = ".safetensors", "model.safetensors", "config.json"
CARD_FILE = "README.md"
_BUNDLED_FOLDER = Path(__file__).parent / "bundled"
#: user/model. A name may end in a version such as .5 or .v2, but not in a file's suffix.
_HUB_ID = re.compile(r"[\w-][\w.-]*/(?![^/]*\.(?!v\d)[A-Za-z]\w+$)[\w.-]+")


def local_file(name: str | Path) -> Path | None:
    """The file of a model on this machine; None where the name is a hub id.

    Raises:
        UserError: if there is no such model.
    """
    if is_bundled(name):
        return _BUNDLED_FOLDER / BUNDLED[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if _is_run(path):
            raise UserError(
                f"model {name}: is the folder of a run; give the model in it, {name}/{MODEL_FILE}"
            )
        if not (path / MODEL_FILE).is_file():
            raise UserError(f"model {name}: is not a model folder (it has no {MODEL_FILE})")
        return path / MODEL_FILE
    # without asking the hub, which takes half a minute without a network
    if not _HUB_ID.fullmatch(str(name)) or path.parent.is_dir():
        where = f" in the folder {path.parent}" if path.parent.is_dir() else ""
        raise UserError(
            f"model {name}: no such file or folder{where}; check the path (a model on the hub is "
            f"named user/model, a bundled one {' or '.join(BUNDLED)})"
        )
    return None


def good_seeds(name: str | Path) -> list[int]:
    """Seeds of a bundled model's best subjects, chosen by the rule in docs/rendering.md."""
    if not is_bundled(name):
        return []
    return json.loads((_BUNDLED_FOLDER / "good_seeds.json").read_text(encoding="utf-8"))[str(name)]


def is_bundled(name: str | Path) -> bool:
    """Whether a name is that of a model that comes with the package."""
    return isinstance(name, str) and name in BUNDLED


def check_replaces_nothing(path: Path, *inputs: str | Path | None) -> None:
    """Raises UserError for an output file that is an input, or the model of a run or folder."""
    given = {Path(name).resolve() for name in inputs if name is not None and not is_bundled(name)}
    if path.resolve() in given:
        raise UserError(f"{path}: is an input, which would be replaced; give another name")
    if path.name == MODEL_FILE and (path.parent / CONFIG_FILE).exists():
        raise UserError(
            f"{path}: is the model of a run or of a model folder, which would be replaced; "
            "give another place"
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder's config.json is a training run's."""
    try:
        return "stages" in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, TypeError):
        return False
