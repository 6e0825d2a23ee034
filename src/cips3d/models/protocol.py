"""What the rest of the package asks of a generator, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.camera import WHOLE, Camera, Rays, Window
from cips3d.configuration import from_dict, to_dict, validated
from cips3d.errors import UserError
from cips3d.model_paths import MODEL_FILE
from cips3d.models import rays as ray_choices
from cips3d.models.adaptive import adaptive
from cips3d.models.card import TAGS, card
from cips3d.models.config import GeneratorConfig, NetworkConfig, Sampling
from cips3d.models.layers import widened
from cips3d.models.ops.precision import Precision, computing
from cips3d.models.types import (
    DEFAULT_PSI,
    Latents,
    Points,
    Psi,
    RayDraws,
    RayOutput,
    RenderOutput,
    Samples,
    Styles,
)
from cips3d.provenance import TrainingRecord
from cips3d.storage import write_tensors

#: Bytes of hidden activations that `render` allows a chunk of rays by default: on other devices,
#: where many small chunks would be slow, and on CPUs.
CHUNK_BYTES = (2**30, 64 * 2**20)


class Prepared(ABC):
    """A subject of one generator, made ready for many views; `Generator.prepare` makes it."""

    generator: ImageGenerator
    styles: Styles

    def __len__(self) -> int:
        return 1

    @abstractmethod
    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """`RayGenerator.render_rays` of this subject, without gradients; `styles` are ignored."""


class ImageGenerator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cips3d",
    tags=[*TAGS],
):
    """Base of all generators: codes, mean styles and storage.

    The configuration may be the dictionary of a config.json. One that does not fit, or is of
    another architecture, is a UserError.
    """

    #: The configuration of this architecture's networks.
    Networks: ClassVar[type[NetworkConfig]]
    #: Its networks by attribute name. A training stage can freeze them.
    parts: ClassVar[tuple[str, ...]]
    #: Those that decide shape and pose. A model without any can be neither transferred, blended nor
    #: inverted.
    geometry_parts: ClassVar[tuple[str, ...]] = ()
    #: Whether there is a 3D density, so that `density` works and views from all sides differ.
    has_density: ClassVar[bool] = False
    #: Whether `aux_image` is an image of its own.
    has_aux_image: ClassVar[bool] = False
    #: Finds a model by name. `cips3d.pretrained` sets it.
    find: ClassVar[Callable[[str | Path], ImageGenerator] | None] = None

    #: How it was trained; None if that is unknown, as after a change of the weights.
    record: TrainingRecord | None = None

    shape_mean: Tensor
    appearance_mean: Tensor

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, GeneratorConfig):
            config = from_dict(GeneratorConfig, config, "config.json")
        self._check_architecture(config)
        self.config = config
        self.networks = config.networks

    @classmethod
    def _check_architecture(cls, config: GeneratorConfig) -> None:
        if not isinstance(config.networks, getattr(cls, "Networks", NetworkConfig)):
            raise UserError(
                f"generator configuration: architecture {config.networks.architecture} is not "
                f"{cls.__name__}'s; use cips3d.load for a model, "
                "cips3d.models.registry.build_generator for a new one"
            )

    def _register_means(self, shape_dim: int, appearance_dim: int) -> None:
        """Adds the mean styles, of these widths, to the state."""
        self.register_buffer("shape_mean", torch.zeros(shape_dim))
        self.register_buffer("appearance_mean", torch.zeros(appearance_dim))

    # ---------------------------------------------------------------- by architecture
    @abstractmethod
    def mapped(self, latents: Latents) -> Styles:
        """Styles without truncation."""

    @abstractmethod
    def render(
        self,
        codes: Latents | Styles | Prepared,
        camera: Camera,
        resolution: int | tuple[int, int] | None = None,
        *,
        psi: Psi = DEFAULT_PSI,
        sampling: Sampling | None = None,
        draws: RayDraws | None = None,
        chunk: int | None = None,
        window: Window = WHOLE,
        precision: Precision = "float32",
        tolerance: float = 0.0,
    ) -> RenderOutput:
        """Images of the codes from the cameras; see `RayGenerator.render`."""

    def density(self, points: Points, styles: Styles) -> Float[Tensor, "batch points"]:
        """Raw density σ at world points, per world unit, where `has_density`; empty where ≤ 0."""
        raise NotImplementedError

    @torch.no_grad()
    def density_along(self, rays: Rays, t: Samples, styles: Styles) -> Samples:
        """`density` at depths t of each ray, without gradients."""
        return self.density(rays.at(t).flatten(1, 2), styles).view_as(t)

    def prepare_for(
        self, styles: Styles, samples: float, precision: Precision = "auto"
    ) -> Styles | Prepared:
        """One subject made ready for many views if that pays for this many samples, else as is."""
        return styles

    @property
    def style_blocks(self) -> int:
        """Blocks that take an appearance style each; 0 if styles cannot be mixed."""
        return 0

    # ---------------------------------------------------------------- codes
    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.shape_mean.device

    @property
    def like(self) -> Tensor:
        """An empty tensor of the device and type of codes, rays and images, for `to`.

        The type is that of the parameters. Those of 16 bits compute in 32: `half` and `bfloat16`
        change how a model is stored, autocast changes how it computes.
        """
        return self.shape_mean.new_empty(0, dtype=widened(self.shape_mean.dtype))

    @property
    def sampling(self) -> Sampling:
        """The samples per ray of the configuration."""
        return self.config.sampling

    def sample_latents(self, count: int, seed: int | np.integer | torch.Generator) -> Latents:
        """`count` random latents on the parameters' device; the seed alone decides their values."""
        if isinstance(seed, torch.Generator):
            generator = seed
        else:
            generator = torch.Generator("cpu").manual_seed(int(seed))
        like: dict[str, Any] = {"generator": generator, "device": generator.device}
        like["dtype"] = torch.float32  # equal seeds, equal codes, whatever torch's defaults are
        shape = torch.randn(count, self.networks.shape_dim, **like)
        appearance = torch.randn(count, self.networks.appearance_dim, **like)
        return Latents(shape, appearance).to(self.like)

    def map(self, latents: Latents, psi: Psi = 1.0) -> Styles:
        """Mapped codes, truncated towards the stored means: w̄ + ψ (w − w̄).

        Raises:
            UserError: if these are not latents, or another model's.
        """
        if not isinstance(latents, Latents):
            raise UserError(
                f"latents: {type(latents).__name__} given; pass what sample_latents returns, or to "
                "render what map returns"
            )
        expected = self.networks.shape_dim, self.networks.appearance_dim
        given = latents.shape.shape[-1], latents.appearance.shape[-1]
        if given != expected:
            raise UserError(
                f"latents: shape and appearance codes have {given} numbers, but this model's have "
                f"{expected}; sample them from this model"
            )
        return self.truncate(self.mapped(latents.to(self.like)), psi)

    def truncate(self, styles: Styles, psi: Psi) -> Styles:
        """Styles moved towards the stored means, see `map`."""
        psi_shape, psi_appearance = map(float, psi if isinstance(psi, tuple) else (psi, psi))

        def towards(mean: Tensor, w: Tensor, amount: float) -> Tensor:
            # not lerp at ψ = 1: training must neither round through the mean nor depend on it
            return w if amount == 1 else torch.lerp(mean.to(w.dtype), w, amount)

        shape = towards(self.shape_mean, styles.shape, psi_shape)
        if isinstance(styles.appearance, Tensor):
            appearance = towards(self.appearance_mean, styles.appearance, psi_appearance)
            return Styles(shape, appearance)
        blocks = [towards(self.appearance_mean, w, psi_appearance) for w in styles.appearance]
        return Styles(shape, blocks)

    @torch.no_grad()
    def update_style_means(
        self, count: int = 10_000, seed: int = 0, *, include_shape: bool = True
    ) -> None:
        """Stores the mean styles of `count` latents, for truncation; rendering never calls it.

        Args:
            include_shape: False keeps the mean shape style bit-exactly, where another machine would
                round it differently.
        """
        styles = self.map(self.sample_latents(count, seed))
        if include_shape:
            self.shape_mean.copy_(styles.shape.mean(dim=0))
        assert isinstance(styles.appearance, Tensor)
        self.appearance_mean.copy_(styles.appearance.mean(dim=0))

    # ---------------------------------------------------------------- the hub's form
    @classmethod
    def from_pretrained(cls, name: str | Path, **_: Any) -> ImageGenerator:  # pyright: ignore
        """`cips3d.load`: a bundled name, a file, a folder or a hub id.

        Raises:
            UserError: also if the model is of another class than this.
        """
        assert ImageGenerator.find is not None, "import cips3d.pretrained first"
        found = ImageGenerator.find(name)
        cls._check_architecture(found.config)
        return found

    def _save_pretrained(self, save_directory: Path) -> None:
        self._hub_mixin_config = self.config  # which the mixin writes as config.json afterwards
        write_tensors(save_directory / MODEL_FILE, self.state_dict(), "cips3d", self.header())

    def generate_model_card(self, *_: Any, **options: Any) -> ModelCard:
        """The card that the mixin writes; the options are those of `cips3d.models.card.card`."""
        return ModelCard(card(self, **options))

    def header(self) -> dict[str, Any]:
        """What a model file says of the generator besides its weights, JSON-ready."""
        trained = {} if self.record is None else {"training": to_dict(self.record)}
        return {"generator": to_dict(self.config)} | trained


class RayGenerator(ImageGenerator):
    """A generator whose pixels are independent: any number of rays, any subset, any order."""

    @abstractmethod
    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """Renders any rays: the one primitive, pure in its arguments.

        Each batch entry of the rays has a style. Without draws, see `RayDraws.even`.
        """

    @abstractmethod
    def activations_per_ray(self, sampling: Sampling) -> int:
        """Hidden activations of a ray's samples, or of its pixel if these are more."""

    def forward(
        self,
        latents: Latents,
        camera: Camera,
        resolution: int | tuple[int, int],
        draws: RayDraws | None = None,
        sampling: Sampling | None = None,
    ) -> RenderOutput:
        """`render` in one chunk and without truncation, as training does."""
        return self.render(
            latents, camera, resolution, psi=1.0, draws=draws, sampling=sampling, chunk=2**62
        )

    def render(
        self,
        codes: Latents | Styles | Prepared,
        camera: Camera,
        resolution: int | tuple[int, int] | None = None,
        *,
        psi: Psi = DEFAULT_PSI,
        sampling: Sampling | None = None,
        draws: RayDraws | None = None,
        chunk: int | None = None,
        window: Window = WHOLE,
        precision: Precision = "float32",
        tolerance: float = 0.0,
    ) -> RenderOutput:
        """Images of any size from any cameras, or a part of them.

        Args:
            codes: latents, styles that are used as they are, or what `prepare` returns. A single
                code goes with all cameras.
            camera: the cameras. A single one goes with all codes.
            resolution: side of a square image, or (height, width), in pixels; by default the
                training resolution.
            psi: truncation of latents, see `map`.
            sampling: samples per ray; the configuration's by default.
            draws: random numbers of all rays that are rendered; none by default.
            chunk: rays rendered at a time; changes memory, not pixels. Chosen by default.
            window: rows and columns to render, such as `numpy.s_[:64, 100:200]`.
            precision: see `cips3d.models.ops.precision`; a prepared subject has its own.
            tolerance: above 0, pixels between others that differ by no more are interpolated, see
                `cips3d.models.adaptive`.

        Raises:
            UserError: if an argument is of another type, the resolution or chunk is below 1, no
                pixel lies in the window, or the numbers of codes and cameras do not go together.
        """
        if not isinstance(camera, Camera):
            raise UserError(
                f"camera: {type(camera).__name__} given; make one with Camera.orbit or "
                "Camera.look_at"
            )
        size = self.config.resolution if resolution is None else resolution
        sides = size if isinstance(size, (tuple, list)) else (size, size)
        height, width = validated(tuple[int, int], sides, "resolution")
        if chunk is not None and chunk < 1:
            raise UserError(f"chunk: {chunk} rays; take at least 1")
        if not isinstance(codes, Styles | Prepared):
            codes = self.map(codes, psi)
        render_rays, styles = self.renderer(codes)
        rays = camera.to(self.like).rays(height, width, window)
        height, width = len(range(height)[window[0]]), len(range(width)[window[1]])
        styles, rays = ray_choices.paired(styles, rays)
        sampling = sampling or self.sampling
        chunk = chunk or self.default_chunk(len(styles), sampling)
        rendering = render_rays, styles, rays, sampling, draws, chunk
        with computing("float32" if isinstance(codes, Prepared) else precision, self.device):
            if tolerance > 0:
                shape, extent = (height, width), self.networks.extent
                stacked = adaptive(*rendering, shape, tolerance, extent)
            else:
                stacked = ray_choices.in_chunks(*rendering)
        return ray_choices.as_images(stacked, height, width)

    def renderer(self, codes: Styles | Prepared) -> tuple[ray_choices.RenderRays, Styles]:
        """`render_rays` of the codes, and the styles to call it with.

        Raises:
            UserError: if another model prepared them.
        """
        if not isinstance(codes, Prepared):
            return self.render_rays, codes
        if codes.generator is not self:
            raise UserError("codes: the subject was prepared by another model; prepare it here")
        return codes.render_rays, codes.styles

    def default_chunk(self, batch: int, sampling: Sampling) -> int:
        """Rays per batch entry whose hidden activations fill about `CHUNK_BYTES`."""
        size = CHUNK_BYTES[self.device.type == "cpu"]
        return max(1, size // (4 * self.activations_per_ray(sampling) * max(1, batch)))
