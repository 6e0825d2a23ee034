"""`cips3d view`: shows a model in the browser."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path

from cips3d.cli.options import Derived
from cips3d.errors import UserError


def view(
    model: str,
    /,
    blend: Derived[str] = None,
    subject: Derived[Path] = None,
    open: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
) -> None:
    """Show a model in the browser: turn subjects with the mouse, change them, save images.

    Args:
        model: "heads" (bundled), a .safetensors model, a folder in the hub's form, or a hub id.
        blend: second model to blend with, made from the first by finetune.
        subject: file of `cips3d invert` with the first subject. Default: a random subject.
        open: start the browser.
        host: address to listen on. With 0.0.0.0, everyone on the network can use the viewer.
        port: port to listen on; 0 for any free one.
        device: cpu, cuda, mps, …; auto chooses the fastest.
    """
    try:
        from cips3d.viewer.server import Viewer
    except ModuleNotFoundError as error:
        if error.name != "viser":
            raise
        raise UserError("the viewer needs viser: pip install 'cips3d[viewer]'") from None
    from cips3d import pretrained
    from cips3d.cli.options import to_device
    from cips3d.editing.subject import Subject
    from cips3d.models.protocol import RayGenerator
    from cips3d.training.allocator import keep_freed_memory

    keep_freed_memory()

    def load(name: str) -> RayGenerator:
        generator = to_device(pretrained.load(name), device)
        if not isinstance(generator, RayGenerator):
            architecture = generator.config.networks.architecture
            raise UserError(f"{name}: the viewer cannot show the architecture {architecture}")
        return generator

    generator = load(model)
    other = None if blend is None else load(blend)
    first = None if subject is None else Subject.load(subject, generator)
    discriminator = pretrained.load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(generator.device)
    name = Path(model).name
    with Viewer(generator, other, discriminator, host, port, name, subject=first) as viewer:
        print(f"{model}: {viewer.url}   (stop with Ctrl-C)", flush=True)
        if open and not webbrowser.open(viewer.url):
            print("No browser found; open the address yourself.", flush=True)
        while True:
            time.sleep(3600)
