"""Makes the images of the pages, in docs/images/, from commands, drawings and the viewer.

python docs/images.py               # all, in a few minutes
python docs/images.py orbit.svg     # the named ones
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import turning
from commands import Command
from drawings import DRAWINGS

HERE = Path(__file__).parent
#: The commands that make each image; the last one writes it.
COMMANDS = {
    "samples.png": ["cips3d sample heads samples.png --resolution 96"],
    "views.png": [
        "cips3d render heads views.png --count 1 --seed 32 --views 5 --yaw 30 --resolution 96"
    ],
    "bundled.jpg": ["cips3d render heads bundled.jpg --count 6 --seed 0 --resolution 88"],
    "morph.gif": [
        "cips3d render heads morph.gif --seeds 32 97 38 --yaw 0 --show image --resolution 128 "
        "--seconds 4 --fps 12"
    ],
    "mixing.jpg": ["cips3d mix heads mixing.jpg --from-block 0"],
    "inversion.png": [
        "cips3d data heads faces --count 1 --resolution 64 --seed 7",
        "cips3d invert faces/00000/img00000000.png heads found",
    ],
}
#: Where a command writes the image, if not under its own name.
WRITTEN_AS = {"inversion.png": "found/report.png"}
#: Drawn by functions.
DRAWN = DRAWINGS | {"mesh.png": turning.mesh_views}
#: Made in a browser.
SCREENSHOTS = {"viewer.png"}
#: Images in docs/ with a command of their own: `make demo`, `python docs/turning.py`.
OTHERS = {"heads.png", "turning.webp"}


def make(name: str, folder: Path, small: bool = False) -> Path:
    """Makes one image in a folder.

    Args:
        small: use small settings, to see that the image can be made.
    """
    out = folder.resolve() / name
    if name in DRAWN:
        DRAWN[name](out)
        return out
    if name in SCREENSHOTS:
        import screenshot  # needs playwright

        screenshot.viewer(out)
        return out
    from cips3d import cli

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            for text in COMMANDS[name]:
                command = Command("docs/images.py", 0, text)
                cli.main(command.small() if small else command.words)
            shutil.copyfile(WRITTEN_AS.get(name, name), out)
        finally:
            os.chdir(before)
    return out


if __name__ == "__main__":
    for name in sys.argv[1:] or [*DRAWN, *COMMANDS, *SCREENSHOTS]:
        print(make(name, HERE / "images"))
