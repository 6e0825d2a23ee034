"""A generator's configuration: its networks, the samples per ray and the camera prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import BeforeValidator, SerializeAsAny

from cips3d.camera import PoseDistribution
from cips3d.configuration import Configuration, Count, Finite, Layers, Octaves, Positive, from_dict
from cips3d.errors import UserError

Embedding = Literal["film", "learned", "fixed"]
VolumeBackground = Literal["endless", "last", "white", "plain"]
Background = Literal[VolumeBackground, "field"]


@dataclass(frozen=True)
class Sampling(Configuration):
    """Samples per ray."""

    label: ClassVar[str] = "sampling"

    coarse: int = 12
    """stratified samples; at least 3, or 2 without importance samples"""
    fine: int = 12
    """importance samples; 0 for none"""

    def check(self) -> None:
        if self.coarse < (3 if self.fine else 2) or self.fine < 0:
            raise UserError(
                f"samples: {self.coarse} coarse and {self.fine} fine; "
                "take at least 3 coarse and 0 fine ones"
            )


@dataclass(frozen=True)
class NetworkConfig(Configuration):
    """Base of the networks' configurations, one per architecture of the registry."""

    label: ClassVar[str] = "networks"

    architecture: str = ""
    shape_dim: int = 0
    """width of the shape code z_s; 0 for none"""
    appearance_dim: int = 0
    """width of the appearance code z_a; 0 for none"""
    extent: Positive = 0.12
    """half depth of the sampled volume around the origin, world units; coordinates span [-1, 1]"""
    background: str = "plain"
    """what lies behind the samples"""


@dataclass(frozen=True)
class FieldConfig(NetworkConfig):
    """A FiLM-SIREN radiance field and its mapping network: CIPS-3D's shallow NeRF, or pi-GAN."""

    shape_dim: Count = 256
    shape_style_dim: Count = 128
    """width of the mapped shape code w_s"""
    shape_mapping_layers: Layers = 4
    embedding: Embedding = "film"
    """coordinate embedding: the first FiLM-SIREN layer itself ("film"), a separate fully connected
    layer with a sine ("learned"), or positional encoding ("fixed")"""
    embedding_octaves: Octaves = 10
    """L of the positional encoding (Eq. 5)"""
    view_direction: bool = False
    """feed the viewing direction d to the layer behind the density (Table 2)"""
    nerf_width: Annotated[int, Ge(2)] = 128
    nerf_layers: Layers = 2
    """FiLM-SIREN layers before the density"""
    density_gain: Finite = 1.0
    """factor of the density head, per world unit. With the authors' 1, weights have to grow to near
    50 before a surface is opaque, which takes thousands of steps."""
    density_blob: Finite = 0.0
    """density added at the centre, per world unit. It falls as 1 − (r/r₀)² with r₀ half the extent,
    so training starts from a round body in empty space instead of fog."""
    background: Background = "endless"
    """"endless": the last interval has no end, so any density there is opaque (the authors');
    "last": the last sample takes the remaining transmittance; "white": a feature of ones; "plain":
    one feature per shape code; "field": a far sphere, coloured by the appearance code"""


@dataclass(frozen=True)
class InrConfig(NetworkConfig):
    """An implicit network and its mapping network."""

    appearance_dim: Count = 512
    appearance_style_dim: Count = 512
    """width of the mapped appearance code w_a"""
    appearance_mapping_layers: Layers = 8
    appearance_mapping_norm: bool = True
    """LayerNorms in the appearance mapping network"""
    feature_dim: Count = 32
    """width of the rendered feature V_r"""
    inr_width: Count = 512
    inr_blocks: Layers = 9
    rgb_from_block: int = 3
    """first INR block index with a tRGB layer (the paper's text: 0)"""
    residual_from_block: Annotated[int, Ge(1)] = 4
    """first INR block index with a residual addition, ≥ 1 since block 0 changes the width;
    inr_blocks for none (the paper's text)"""
    rgb_tanh: bool = True
    """squash the sum of the tRGB layers (the paper's text: no)"""

    def check(self) -> None:
        super().check()
        if not 0 <= self.rgb_from_block < self.inr_blocks:
            raise UserError(
                f"rgb_from_block is {self.rgb_from_block}; "
                f"it must lie between 0 and {self.inr_blocks - 1} (inr_blocks - 1)"
            )


@dataclass(frozen=True)
class Cips3dNetworks(InrConfig, FieldConfig):
    """CIPS-3D's networks. The defaults are the paper's size with the authors' settings."""

    architecture: Literal["cips-3d"] = "cips-3d"
    # InrConfig inherits other defaults of these two
    shape_dim: Count = 256
    background: Background = "endless"
    aux_palette: bool = False
    """the auxiliary head's weights depend on w_a, so that z_s need not decide on any colour"""


def _of_architecture(values: Any) -> Any:
    """Networks from a dictionary, of the registry's class for its architecture."""
    from cips3d.models.registry import GENERATORS, generator_class

    if not isinstance(values, dict):
        return values
    architecture = str(values.get("architecture", "cips-3d"))
    kind = generator_class(architecture).Networks
    known = {name for generator in GENERATORS.values() for name in vars(generator.Networks())}
    foreign = [name for name in values if name in known and not hasattr(kind, name)]
    if foreign:
        raise UserError(
            f"networks: {architecture} has no {foreign[0]}; to change the architecture, replace "
            f'networks as a whole, such as by {{"architecture": "{architecture}"}}'
        )
    return from_dict(kind, values, "networks")


@dataclass(frozen=True)
class GeneratorConfig(Configuration):
    """Everything that fixes a generator."""

    label: ClassVar[str] = "generator configuration"

    networks: Annotated[SerializeAsAny[NetworkConfig], BeforeValidator(_of_architecture)] = field(
        default_factory=Cips3dNetworks
    )
    """architecture and sizes"""
    sampling: Sampling = field(default_factory=Sampling)
    """samples per ray, unless a rendering asks for others"""
    aux_luminance: bool = False
    """the auxiliary head's image is gray, and so is what its discriminator sees"""
    resolution: Count = 256
    """side in pixels of the images that it was last trained on and renders by default"""
    poses: PoseDistribution = field(default_factory=PoseDistribution)
    """the camera prior it was trained with"""

    def check(self) -> None:
        if self.networks.extent >= self.poses.radius:
            raise UserError(
                f"{self.label}: networks.extent is {self.networks.extent:g}, half the depth of the "
                "volume; it must be less than the cameras' distance, poses.radius, "
                f"{self.poses.radius:g}"
            )
