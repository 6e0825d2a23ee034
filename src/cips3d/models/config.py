"""What fixes a generator: its networks' sizes, the volume and how it is sampled, the cameras that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cips3d.camera import PoseDistribution
from cips3d.configuration import Configuration, check_range
from cips3d.errors import UserError
from cips3d.models.types import Sampling

#: More layers or octaves than anybody has trained: a slip of the finger.
MOST_LAYERS = 100

Architecture = Literal["cips-3d", "pi-gan", "cips-2d"]

#: Fields of a configuration that say where rays go and are sampled; whether networks are alike does not depend on them.
RENDERING_FIELDS = ("poses", "resolution", "corner_aligned", "coarse_samples", "fine_samples")


@dataclass(frozen=True)
class GeneratorConfig(Configuration):
    """Everything that fixes a generator's architecture. The defaults are the paper's size with the authors' settings."""

    architecture: Architecture = "cips-3d"
    """"cips-3d"; or one of the paper's comparisons (cips3d.models.baselines), which pass over the fields of parts that they
    lack: "pi-gan", a radiance field alone; "cips-2d", an implicit network alone"""
    shape_dim: int = 256
    """width of the shape code z_s"""
    appearance_dim: int = 512
    """width of the appearance code z_a"""
    shape_style_dim: int = 128
    """width of the mapped shape code w_s"""
    appearance_style_dim: int = 512
    """width of the mapped appearance code w_a"""
    shape_mapping_layers: int = 4
    appearance_mapping_layers: int = 8
    appearance_mapping_norm: bool = True
    """LayerNorms in the appearance mapping network"""
    embedding: Literal["film", "learned", "fixed"] = "film"
    """coordinate embedding: the first FiLM-SIREN layer itself, an FC + sine layer of its own, or positional encoding"""
    embedding_octaves: int = 10
    """L of the positional encoding (Eq. 5)"""
    view_direction: bool = False
    """feed the ray direction to the feature layer (Table 2)"""
    nerf_width: int = 128
    nerf_layers: int = 2
    """FiLM-SIREN layers before the density; one more, of half width, makes the feature (of full width, the colour of pi-gan)"""
    density_gain: float = 1.0
    """the raw density is the density head's output times this, per world unit; with 1 (the authors') a head has to grow weights
    near 50 before a surface is opaque, which takes thousands of steps"""
    density_blob: float = 0.0
    """added to the raw density at the centre, per world unit, falling as 1 − (r/r₀)² with r₀ half the extent: training then
    starts from a round body before nothing instead of fog everywhere"""
    feature_dim: int = 32
    """width of the rendered feature V_r; of cips-2d's embedding of the pixel"""
    inr_width: int = 512
    inr_blocks: int = 9
    rgb_from_block: int = 3
    """first INR block index with a tRGB layer (the paper's text: 0)"""
    residual_from_block: int = 4
    """first INR block index with a residual addition; inr_blocks for none (the paper's text)"""
    rgb_tanh: bool = True
    """squash the sum of the tRGB layers (the paper's text: no)"""
    background: Literal["endless", "last", "white", "plain"] = "endless"
    """what lies behind the samples: "endless", the last interval has no end, so any density there is opaque (the authors');
    "last", the last sample takes what transmittance is left; "white", a feature of ones; "plain", one feature per shape code"""
    extent: float = 0.12
    """half depth of the sampled volume around the origin, world units; coordinates span [-1, 1] in it"""
    coarse_samples: int = 12
    """stratified samples per ray"""
    fine_samples: int = 12
    """importance samples per ray"""
    corner_aligned: bool = False
    """the authors' pixel grid instead of pixel centres (see Camera.rays)"""
    resolution: int = 256
    """side in pixels of the pictures it was last trained on, and of those it renders unless told otherwise"""
    poses: PoseDistribution = field(default_factory=PoseDistribution)
    """the camera prior it was trained with"""

    def __post_init__(self) -> None:
        kind = "generator configuration"
        widths = "shape_dim appearance_dim shape_style_dim appearance_style_dim feature_dim inr_width resolution"
        layers = "shape_mapping_layers appearance_mapping_layers nerf_layers inr_blocks"
        check_range(self, kind, widths, least=1)
        check_range(self, kind, layers, least=1, most=MOST_LAYERS)
        check_range(self, kind, "embedding_octaves", least=0, most=MOST_LAYERS)
        check_range(self, kind, "nerf_width", least=2)
        check_range(self, kind, "extent", above=0)
        check_range(self, kind, "density_gain density_blob")
        if not 0 <= self.rgb_from_block < self.inr_blocks:
            raise UserError(
                f"{kind}: rgb_from_block must lie in 0 to {self.inr_blocks - 1} (inr_blocks - 1)"
            )
        if (
            self.residual_from_block < 1
        ):  # the first block's input is a feature, not as wide as its output
            raise UserError(
                f"{kind}: residual_from_block is {self.residual_from_block}; give at least 1"
            )
        if self.extent >= self.poses.radius:
            raise UserError(
                f"{kind}: extent is {self.extent:g}, half the depth of the volume; it must be less than the "
                f"cameras' distance, poses.radius, {self.poses.radius:g}"
            )
        Sampling(self.coarse_samples, self.fine_samples)  # which checks them
