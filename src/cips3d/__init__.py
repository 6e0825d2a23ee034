"""cips3d: a 3D-aware image generator that learns from ordinary single-view pictures (CIPS-3D, Zhou et al. 2021)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cips3d import trajectories
from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.export.video import save_video
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.models.types import Latents, RayDraws, RenderOutput, Sampling, Styles
from cips3d.pretrained import load, save

if TYPE_CHECKING:
    from cips3d.editing.blending import interpolate, mix_styles, swap_layers
    from cips3d.editing.inversion import Inversion, invert
    from cips3d.export.meshes import extract_mesh, save_mesh

__all__ = [
    "Camera",
    "Generator",
    "GeneratorConfig",
    "Inversion",
    "Latents",
    "PoseDistribution",
    "RayDraws",
    "Rays",
    "RenderOutput",
    "Sampling",
    "Styles",
    "UserError",
    "extract_mesh",
    "interpolate",
    "invert",
    "load",
    "mix_styles",
    "save",
    "save_mesh",
    "save_video",
    "swap_layers",
    "trajectories",
]

#: Where the names are that are imported when they are used: their libraries take a second, which else nothing waits for.
_LATER = {
    "Inversion": "cips3d.editing.inversion",
    "extract_mesh": "cips3d.export.meshes",
    "interpolate": "cips3d.editing.blending",
    "invert": "cips3d.editing.inversion",
    "mix_styles": "cips3d.editing.blending",
    "save_mesh": "cips3d.export.meshes",
    "swap_layers": "cips3d.editing.blending",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
