"""`cips3d view`: a model in the browser."""

from __future__ import annotations

import time
from pathlib import Path

from cips3d import pretrained
from cips3d.cli.loading import to_device
from cips3d.cli.options import Derived
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.training.allocator import keep_freed_memory


def view(
    model: str,
    /,
    blend: Derived[str] = None,
    subject: Derived[Path] = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
) -> None:
    """Show a model in the browser: turn its subjects with the mouse, change them with sliders, save what is seen.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        blend: a second model, made from the first one, to blend it with. Default: none.
        subject: to begin with: that of a picture, a file of `cips3d invert`. Default: a random one.
        host: the address to listen on. 0.0.0.0 lets other machines see the viewer too, and anybody who can reach it use it.
        port: to listen on; 0 takes any that is free.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    try:
        from cips3d.viewer.server import Viewer
    except ModuleNotFoundError as error:
        if error.name != "viser":
            raise
        raise UserError("the viewer needs viser: pip install 'cips3d[viewer]'") from None
    keep_freed_memory()
    generator = to_device(pretrained.load(model), device)
    other = None if blend is None else to_device(pretrained.load(blend), device)
    first = None if subject is None else Subject.load(subject, generator)
    discriminator = pretrained.load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(generator.shape_mean.device)
    with Viewer(
        generator, other, discriminator, host, port, name=Path(model).name, subject=first
    ) as viewer:
        print(f"{model}: {viewer.url}   (Ctrl-C ends the viewer)", flush=True)
        while True:
            time.sleep(3600)
