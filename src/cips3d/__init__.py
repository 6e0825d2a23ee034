"""cips3d: a 3D-aware image generator that learns from ordinary single-view pictures (CIPS-3D, Zhou et al. 2021)."""

from cips3d import trajectories
from cips3d.camera import Camera, PoseDistribution, Rays
from cips3d.errors import UserError
from cips3d.export.video import save_video
from cips3d.models.generator import Generator, GeneratorConfig
from cips3d.models.records import Latents, RayDraws, RenderOutput, Sampling, Styles
from cips3d.pretrained import load, save

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
    "load",
    "save",
    "save_video",
    "trajectories",
]
