"""cips3d: a 3D-aware image generator that learns from ordinary single-view pictures (CIPS-3D, Zhou et al. 2021)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.models.generator import Generator, GeneratorConfig
from cips3d.models.records import Latents, RayDraws, RenderOutput, Sampling, Styles
from cips3d.pretrained import load, save

if TYPE_CHECKING:
    from cips3d.export.mesh import extract_mesh, save_mesh

__all__ = [
    "Camera",
    "Generator",
    "GeneratorConfig",
    "Latents",
    "PoseDistribution",
    "RayDraws",
    "Rays",
    "RenderOutput",
    "Sampling",
    "Styles",
    "UserError",
    "extract_mesh",
    "load",
    "save",
    "save_mesh",
]


def __getattr__(name: str) -> Any:
    if name in ("extract_mesh", "save_mesh"):  # not above: its libraries take a second to import, which else nothing waits for
        return getattr(import_module("cips3d.export.mesh"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
