"""`cips3d data`: datasets of the embedded heads as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.extras import SubcommandApp

from cips3d.cli.options import at_least, check_seed
from cips3d.data import SyntheticHeads
from cips3d.data.archive import write_heads

app = SubcommandApp()


@app.command
def heads(
    out: Path,
    /,
    count: int = 1000,
    resolution: int = 64,
    seed: int = 0,
    style: Literal["natural", "cartoon"] = "natural",
) -> None:
    """Write pictures of the embedded heads, with their camera labels and attributes, in StyleGAN's layout.

    Args:
        out: the .zip to write, or a folder; must not exist.
        count: number of pictures.
        resolution: side of a picture in pixels.
        seed: other seeds give other heads.
        style: "natural" light, or the same heads as "cartoon" drawings.
    """
    at_least(1, count=count, resolution=resolution)
    check_seed(seed)
    write_heads(out, SyntheticHeads(count, resolution, seed, style))
    print(f"{count} pictures of {resolution}² in {out}")
