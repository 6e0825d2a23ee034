"""The 3D-aware generator (paper Fig. 2): latents -> styles -> rays -> pixels. A pixel sees its ray and the styles only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from cips3d.camera import WHOLE, Camera, Rays, Window
from cips3d.configuration import from_dict
from cips3d.errors import UserError
from cips3d.models import volume
from cips3d.models.config import Architecture, GeneratorConfig
from cips3d.models.inr import ImplicitNetwork, rgb_head
from cips3d.models.layers import MappingNetwork, without_autocast
from cips3d.models.nerf import RadianceField
from cips3d.models.types import Latents, RayDraws, RayOutput, RenderOutput, Sampling, Styles

#: Bytes of hidden activations that one chunk of rays may need when `render` chooses the chunk size: on other devices, where
#: many small chunks would be all waiting, and on CPUs.
CHUNK_BYTES = (2**30, 64 * 2**20)


class Generator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cips3d",
    tags=["3d-aware-gan", "nerf", "image-generation"],
):
    """CIPS-3D: mapping networks, radiance field, implicit network and auxiliary colour head.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are the Hugging Face hub's (a folder with config.json and
    model.safetensors); `cips3d.load` reads those as well as one-file models.

    Args:
        config: the architecture; the hub's mixin gives it as it stands in config.json, as a dictionary.

    Raises:
        UserError: if a dictionary does not fit the configuration, or the configuration is of another class.
    """

    #: The configurations that this class is for.
    architecture: ClassVar[Architecture] = "cips-3d"
    #: The networks that it is made of; "background" is there only where the configuration has a plain one.
    parts: ClassVar[tuple[str, ...]] = (
        "shape_mapping",
        "appearance_mapping",
        "nerf",
        "inr",
        "aux_head",
        "background",
    )

    def __init__(self, config: GeneratorConfig | dict[str, Any]) -> None:
        super().__init__()
        c = (
            config
            if isinstance(config, GeneratorConfig)
            else from_dict(GeneratorConfig, config, "config.json")
        )
        if c.architecture != self.architecture:
            raise UserError(
                f"generator configuration: architecture {c.architecture} is not what {type(self).__name__} makes; "
                "use cips3d.load for a model, cips3d.models.baselines.build_generator for a new one"
            )
        self.config = c
        self._make_parts(c)
        self.shape_mean: Tensor
        self.appearance_mean: Tensor
        shape_width, appearance_width = self._style_widths(c)
        self.register_buffer("shape_mean", torch.zeros(shape_width))
        self.register_buffer("appearance_mean", torch.zeros(appearance_width))

    def _save_pretrained(self, save_directory: Path) -> None:
        self._hub_mixin_config = (
            self.config
        )  # the mixin, which writes it after this, has the constructor's
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> Generator:
        """The mixin's, which would leave weights that the file lacks random."""
        return super()._from_pretrained(strict=strict, **arguments)

    def _make_parts(self, c: GeneratorConfig) -> None:
        """Makes what `parts` names."""
        self.shape_mapping = MappingNetwork(
            c.shape_dim, c.shape_style_dim, c.shape_mapping_layers, norm=False
        )
        self.appearance_mapping = MappingNetwork(
            c.appearance_dim,
            c.appearance_style_dim,
            c.appearance_mapping_layers,
            c.appearance_mapping_norm,
        )
        self.nerf = RadianceField(c)
        self.inr = ImplicitNetwork(c)
        self.aux_head = rgb_head(c.feature_dim, 25)
        self.background = (
            nn.Linear(c.shape_style_dim, c.feature_dim) if c.background == "plain" else None
        )

    @staticmethod
    def _style_widths(c: GeneratorConfig) -> tuple[int, int]:
        """Widths of w_s and w_a."""
        return c.shape_style_dim, c.appearance_style_dim

    @property
    def sampling(self) -> Sampling:
        """The sampling that the configuration asks for."""
        return Sampling(self.config.coarse_samples, self.config.fine_samples)

    # ---------------------------------------------------------------- latents and styles
    def sample_latents(self, count: int, seed: int | torch.Generator) -> Latents:
        """`count` random latents on the parameters' device; the same for the same seed, whatever the device."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        shape = torch.randn(count, self.config.shape_dim, generator=generator)
        appearance = torch.randn(count, self.config.appearance_dim, generator=generator)
        return Latents(shape, appearance).to(self.shape_mean)

    def map(self, latents: Latents, psi: float | tuple[float, float] = 1.0) -> Styles:
        """Mapped codes, truncated towards the stored means: w̄ + ψ (w − w̄).

        Args:
            psi: one ψ, or one each for shape and appearance; 1 leaves w as it is.
        """
        shape, appearance = self._mapped(latents)
        return self.truncate(Styles(shape, appearance), psi)

    def truncate(self, styles: Styles, psi: float | tuple[float, float]) -> Styles:
        """Styles drawn towards the stored means, w̄ + ψ (w − w̄); those of an inversion too. `psi` as in `map`."""
        psi_shape, psi_appearance = (psi, psi) if isinstance(psi, int | float) else psi
        shape, appearance = styles.shape, styles.appearance
        # not lerp at ψ = 1: training must neither round through the mean nor depend on it
        if psi_shape != 1:
            shape = torch.lerp(self.shape_mean, shape, psi_shape)
        if psi_appearance != 1:
            if isinstance(appearance, Tensor):
                appearance = torch.lerp(self.appearance_mean, appearance, psi_appearance)
            else:
                appearance = [
                    torch.lerp(self.appearance_mean, w, psi_appearance) for w in appearance
                ]
        return Styles(shape, appearance)

    def _mapped(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "batch ws"], Float[Tensor, "batch wa"]]:
        """w_s and w_a, not truncated."""
        return self.shape_mapping(latents.shape), self.appearance_mapping(latents.appearance)

    @torch.no_grad()
    def update_style_means(
        self, count: int = 10_000, seed: int = 0, *, of_shapes: bool = True
    ) -> None:
        """Stores the mean mapped codes of `count` latents, for truncation. Trainer and importer call it, rendering never.

        Args:
            of_shapes: False leaves the mean shape as it is, to the bit, where another machine would round it otherwise.
        """
        styles = self.map(self.sample_latents(count, seed))
        if of_shapes:
            self.shape_mean.copy_(styles.shape.mean(dim=0))
        assert isinstance(styles.appearance, Tensor)
        self.appearance_mean.copy_(styles.appearance.mean(dim=0))

    # ---------------------------------------------------------------- rays
    def render_rays(
        self, styles: Styles, rays: Rays, sampling: Sampling, draws: RayDraws | None = None
    ) -> RayOutput:
        """Renders any rays, in any number and order: the one primitive, pure in its arguments.

        Args:
            styles: one per batch entry of `rays`.
            rays: (B, N) rays.
            sampling: samples per ray.
            draws: this rendering's random numbers; None: no jitter, no noise, evenly spread importance samples.
        """
        feature, depth, opacity, last_weight = self.render_features(
            styles.shape, rays, sampling, draws
        )
        return RayOutput(
            rgb=self.inr(feature, styles.appearance),
            aux_rgb=torch.tanh(self.aux_head(feature)),
            depth=depth,
            opacity=opacity,
            last_weight=last_weight,
            feature=feature,
        )

    def render_features(
        self,
        shape_style: Float[Tensor, "batch ws"],
        rays: Rays,
        sampling: Sampling,
        draws: RayDraws | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The NeRF half of `render_rays` (Eq. 4): rendered features V_r, depth, opacity and the deepest sample's weight.

        Densities of all samples are found first, without gradients; then the samples that can be seen are evaluated again,
        with features and gradients. The depths of the samples are constants to the gradient.
        """
        shape_style = shape_style.to(
            rays.origins.dtype
        )  # autocast has made the mapping network's 16 bits wide
        with without_autocast(rays.origins.device):
            with torch.no_grad():
                # not `norm`, which takes ten times as long on CPUs
                distance = rays.origins.square().sum(dim=-1, keepdim=True).sqrt()
                near, far = distance - self.config.extent, distance + self.config.extent
                end = volume.ENDLESS if self.config.background == "endless" else far
                t, sigma = self._sampled_density(shape_style, rays, near, far, end, sampling, draws)
                noise = 0.0 if draws is None or draws.noise is None else draws.noise
                index = volume.visible_samples(self._weights(t, sigma + noise, end))
            ray = index // t.shape[-1]
            points = rays.at(t).flatten(1, 2).gather(1, _channels(index, 3))
            directions = (
                rays.directions.gather(1, _channels(ray, 3)) if self.nerf.view_direction else None
            )
            seen_sigma, hidden = self.nerf(points, directions, shape_style)
            sigma = sigma.flatten(1).scatter(1, index, seen_sigma).view_as(t)
            weights = self._weights(t, sigma + noise, end)
            weighted = hidden * weights.flatten(1).gather(1, index)[..., None]
            opacity = weights.sum(dim=-1)
            depth = (weights * t).sum(dim=-1) + (1 - opacity) * far[..., 0]
            feature = self.nerf.project(volume.sum_by_ray(weighted, ray, rays.count), opacity)
            if self.config.background == "white":
                feature = feature + (1 - opacity)[..., None]
            elif self.background is not None:
                feature = feature + (1 - opacity)[..., None] * self.background(shape_style)[:, None]
        return feature, depth, opacity, weights[..., -1]

    def _sampled_density(
        self,
        shape_style: Tensor,
        rays: Rays,
        near: Tensor,
        far: Tensor,
        end: Tensor | float,
        sampling: Sampling,
        draws: RayDraws | None,
    ) -> tuple[Float[Tensor, "batch rays samples"], Float[Tensor, "batch rays samples"]]:
        """Depths of all samples of each ray, sorted, and the raw densities there."""
        t = volume.stratified_depths(
            near, far, sampling.coarse, None if draws is None else draws.jitter
        )
        sigma = self.nerf.density_along(rays, t, shape_style)
        if not sampling.fine:
            return t, sigma
        noisy = sigma if draws is None or draws.coarse_noise is None else sigma + draws.coarse_noise
        coarse_weights = volume.compositing_weights(t, noisy, end)
        if draws is None:
            even = (
                torch.arange(sampling.fine, dtype=t.dtype, device=t.device) + 0.5
            ) / sampling.fine
            importance = even.expand(*t.shape[:-1], -1)
        else:
            importance = draws.importance
        fine_t = volume.importance_depths(t, coarse_weights, importance)
        fine_sigma = self.nerf.density_along(rays, fine_t, shape_style)
        t, order = torch.cat([t, fine_t], dim=-1).sort(dim=-1)
        return t, torch.cat([sigma, fine_sigma], dim=-1).gather(-1, order)

    def _weights(
        self, t: Tensor, sigma: Tensor, end: Tensor | float
    ) -> Float[Tensor, "batch rays samples"]:
        """Compositing weights of sorted samples; with the background "last", the last one takes what transmittance is left."""
        weights = volume.compositing_weights(t, sigma, end)
        if self.config.background != "last":
            return weights
        last = weights[..., -1:] + 1 - weights.sum(dim=-1, keepdim=True)
        return torch.cat([weights[..., :-1], last], dim=-1)

    # ---------------------------------------------------------------- pictures
    def forward(
        self,
        latents: Latents,
        camera: Camera,
        resolution: int | tuple[int, int],
        draws: RayDraws | None = None,
        sampling: Sampling | None = None,
    ) -> RenderOutput:
        """Whole pictures in one go, as training needs them. See `render` for the arguments and everything else."""
        return self.render(latents, camera, resolution, draws=draws, sampling=sampling, chunk=2**62)

    def render(
        self,
        codes: Latents | Styles,
        camera: Camera,
        resolution: int | tuple[int, int] | None = None,
        *,
        psi: float | tuple[float, float] = 1.0,
        sampling: Sampling | None = None,
        draws: RayDraws | None = None,
        chunk: int | None = None,
        window: Window = WHOLE,
    ) -> RenderOutput:
        """Pictures of any size from any cameras, or a part of them.

        Args:
            codes: latents, or styles that are used as they are. One code goes with all cameras, and one camera with all codes.
            camera: the batch of cameras.
            resolution: side of a square picture, or (height, width), in pixels; by default the training resolution.
            psi: truncation of latents (see `map`).
            sampling: samples per ray; the configuration's by default.
            draws: random numbers of all rays that are rendered (see `render_rays`).
            chunk: rays rendered at a time; changes memory, not pixels. Default: as many as fit `CHUNK_BYTES`.
            window: rows and columns, such as `numpy.s_[:64, 100:200]`: only that part of the picture of the given resolution.

        Raises:
            UserError: if the resolution or chunk is below 1, no pixel lies in the window, or the numbers of codes and cameras
                do not go together.
        """
        resolution = self.config.resolution if resolution is None else resolution
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        if chunk is not None and chunk < 1:
            raise UserError(f"chunk: {chunk} rays; take at least 1")
        styles = codes if isinstance(codes, Styles) else self.map(codes, psi)
        rays = camera.to(self.shape_mean).rays(height, width, self.config.corner_aligned, window)
        height, width = len(range(height)[window[0]]), len(range(width)[window[1]])
        styles, rays = _paired(styles, rays)
        sampling = sampling or self.sampling
        chunk = chunk or self.default_chunk(len(styles), sampling)
        parts = []
        for start in range(0, rays.count, chunk):
            part = slice(start, start + chunk)
            parts.append(
                self.render_rays(
                    styles, rays[part], sampling, None if draws is None else draws[part]
                ).stacked()
            )
        return as_picture(parts, height, width)

    def default_chunk(self, batch: int, sampling: Sampling) -> int:
        """Rays per batch entry whose hidden activations fill about `CHUNK_BYTES`."""
        size = CHUNK_BYTES[self.shape_mean.device.type == "cpu"]
        return max(1, size // (4 * self._hidden_per_ray(sampling) * batch))

    def _hidden_per_ray(self, sampling: Sampling) -> int:
        """Hidden activations that a ray needs at one time."""
        return max(
            (sampling.coarse + sampling.fine) * self.config.nerf_width * 2,
            self.config.inr_width * 4,
        )


def as_picture(
    parts: list[Tensor], height: int, width: int, order: Int[Tensor, " all"] | None = None
) -> RenderOutput:
    """Pictures from the stacked outputs of all their rays.

    Args:
        parts: (B, n, 9) each, from `RayOutput.stacked`, for any division of the rays.
        order: position of each pixel's ray, row by row, in the joined parts; None: they are in order.
    """
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if order is not None:
        joined = joined[:, order]
    picture = joined.transpose(1, 2).unflatten(2, (height, width))
    return RenderOutput(*picture.split([3, 3, 1, 1, 1], dim=1))


def _channels(index: Int[Tensor, "batch n"], count: int) -> Int[Tensor, "batch n count"]:
    """The index, repeated for every channel, as `gather` wants it."""
    return index[..., None].expand(-1, -1, count)


def _paired(styles: Styles, rays: Rays) -> tuple[Styles, Rays]:
    """Styles and rays of one batch size, a single one of either repeated for the other."""
    codes, cameras = len(styles), rays.origins.shape[0]
    if codes == cameras:
        return styles, rays
    if codes == 1:
        return styles.map(lambda x: x.expand(cameras, -1)), rays
    if cameras == 1:
        return styles, Rays(
            rays.origins.expand(codes, -1, -1), rays.directions.expand(codes, -1, -1)
        )
    raise UserError(
        f"cameras: {cameras} cameras for {codes} codes; give one of either, or as many of both"
    )
