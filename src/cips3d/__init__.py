# ruff: noqa: F401
"""cips3d: a 3D-aware image generator that learns from single-view images (CIPS-3D, Zhou 2021)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cips3d import trajectories
    from cips3d.camera import Camera, PoseDistribution, Rays
    from cips3d.editing.blending import interpolate, mix_styles, swap_layers
    from cips3d.editing.inversion import Inversion, invert
    from cips3d.errors import UserError
    from cips3d.export.meshes import extract_mesh, save_mesh
    from cips3d.export.video import save_video
    from cips3d.models.config import GeneratorConfig, Sampling
    from cips3d.models.types import Latents, RayDraws, RenderOutput, Styles
    from cips3d.pretrained import Generator, load, push_to_hub, save

#: The public names by module. Each is imported at its first use: torch alone takes a second, which
#: `cips3d --help` should not wait for.
_MODULES = {
    "camera": ("Camera", "PoseDistribution", "Rays"),
    "editing.blending": ("interpolate", "mix_styles", "swap_layers"),
    "editing.inversion": ("Inversion", "invert"),
    "errors": ("UserError",),
    "export.meshes": ("extract_mesh", "save_mesh"),
    "export.video": ("save_video",),
    "models.config": ("GeneratorConfig", "Sampling"),
    "models.types": ("Latents", "RayDraws", "RenderOutput", "Styles"),
    "pretrained": ("Generator", "load", "push_to_hub", "save"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__version__ = version("cips3d")
__all__ = [*_HOMES, "__version__", "trajectories"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "trajectories":
        return import_module("cips3d.trajectories")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"cips3d.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
