"""Makes the pictures of the pages in docs/pictures/: those of the bundled model by commands, the drawings by drawings.py, that
of the viewer by screenshot.py.

python docs/pictures.py               # all, which takes minutes
python docs/pictures.py orbit.svg     # the named ones
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from commands import Command
from drawings import DRAWINGS

from cips3d import cli

HERE = Path(__file__).parent
#: The commands that make each picture; the last one writes it.
COMMANDS = {
    "views.png": [
        "cips3d render heads views.png --count 2 --seed 5 --views 5 --yaw 30 --resolution 96"
    ],
    "mixing.png": ["cips3d mix heads mixing.png --from-block 0"],
    "inversion.png": [
        "cips3d data heads faces --count 1 --resolution 64 --seed 7",
        "cips3d invert faces/00000/img00000000.png heads found",
    ],
}
#: Where a command writes the picture, if not under its own name.
WRITTEN_AS = {"inversion.png": "found/report.png"}
#: Made in a browser.
SCREENSHOTS = {"viewer.png"}
#: Pictures in docs/ that `make demo` has made, which README.md shows.
OF_RUNS = {"heads.png"}


def make(name: str, folder: Path, small: bool = False) -> Path:
    """Makes one picture in a folder; with `small` as fast as it goes, to see that it can be made."""
    out = folder.resolve() / name
    if name in DRAWINGS:
        DRAWINGS[name](out)
        return out
    if name in SCREENSHOTS:
        import screenshot  # needs playwright

        screenshot.viewer(out)
        return out
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            for text in COMMANDS[name]:
                command = Command("docs/pictures.py", 0, text)
                cli.main(command.small() if small else command.words)
            shutil.copyfile(WRITTEN_AS.get(name, name), out)
        finally:
            os.chdir(before)
    return out


if __name__ == "__main__":
    for name in sys.argv[1:] or [*DRAWINGS, *COMMANDS, *SCREENSHOTS]:
        print(make(name, HERE / "pictures"))
