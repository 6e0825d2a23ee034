"""`cips3d view`: shows a model in the browser."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from cips3d.cli.options import Derived, Device, InputFile, Model, RandomSubjects
from cips3d.errors import UserError


def view(
    model: Model,
    /,
    blend: Derived[Model] = None,
    subject: Derived[InputFile] = None,
    open: bool = False,
    host: str = "127.0.0.1",
    port: Annotated[int, Ge(0), Le(65535)] = 8080,
    device: Device = "auto",
) -> None:
    """Explore a model in the browser.

    Turn subjects with the mouse, change them with sliders and save images, meshes and subjects.

    Args:
        blend: Second model to blend with, made from the first by `cips3d finetune`.
        subject: First subject, a file written by `cips3d invert`. Default: that of `cips3d sample`.
        open: Start the browser.
        host: Address to listen on. With 0.0.0.0, everyone on the network can use the viewer.
        port: Port to listen on; 0 for any free one.

    Examples:
        cips3d view heads --open
        cips3d view heads --blend runs/cartoon/model.safetensors
    """
    try:
        from cips3d.viewer.server import Viewer
    except ModuleNotFoundError as error:
        if error.name != "viser":
            raise
        raise UserError("the viewer needs viser: pip install 'cips3d[viewer]'") from None
    from cips3d.cli.loading import load_model
    from cips3d.editing.subject import Subject
    from cips3d.models.protocol import RayGenerator
    from cips3d.pretrained import load_main_discriminator
    from cips3d.training.allocator import keep_freed_memory

    keep_freed_memory()

    def load(name: str) -> RayGenerator:
        generator = load_model(name, device)
        if not isinstance(generator, RayGenerator):
            architecture = generator.config.networks.architecture
            raise UserError(f"{name}: the viewer cannot show the architecture {architecture}")
        return generator

    generator = load(model)
    other = None if blend is None else load(blend)
    (seed,) = RandomSubjects().seeds(model, 1)
    first = seed if subject is None else Subject.load(subject, generator)
    discriminator = load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(generator.device)
    name = Path(model).name
    with Viewer(generator, other, discriminator, host, port, name, first) as viewer:
        print(f"{model}: {viewer.url}   (stop with Ctrl-C)", flush=True)
        if open and not webbrowser.open(viewer.url):
            print("No browser found; open the address yourself.", flush=True)
        while True:
            time.sleep(3600)
