"""A plain training step, as one would first write it from the paper or the authors' code.

Eager float32, nothing folded or skipped. It computes on the parameters of our modules, so both can
start from the same weights. tests/test_baseline.py shows that images, losses and gradients equal
ours; training_speed.py and rendering_speed.py measure what the different form is worth. Importing
this file runs nothing. The differences, none of which changes a result:

- FiLM-SIREN layers scale and shift the linear layer's output. Ours folds the gain into the weights.
- The feature head is applied to every sample, and the features of all samples are concatenated,
  sorted and gathered. Ours sorts depths and densities only and applies the head once per ray.
- cumprod and searchsorted. Ours: a cumulative sum of logarithms, and counting.
- Discriminators in the default memory layout; bias, LeakyReLU, √2 and 1/√2 as separate operations;
  a blur of every pixel before each stride of 2.
- torch's default Adam, a Python loop for the average of the weights, the default allocator.
- A new batch of fakes for each of the two steps. Ours can share one (`TrainConfig.share_fakes`).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cips3d.camera import Rays
from cips3d.models.config import GeneratorConfig, Sampling
from cips3d.models.discriminator import (
    EqualConv,
    EqualLinear,
    ProgressiveDiscriminator,
    ResidualBlock,
)
from cips3d.models.generator import Generator
from cips3d.models.inr import ImplicitNetwork
from cips3d.models.layers import FilmSiren, ModulatedLinear
from cips3d.models.nerf import ShallowNerf
from cips3d.models.types import Latents, RayDraws
from cips3d.training.draws import FakeDraws
from cips3d.training.recipe import Stage, TrainConfig


# -------------------------------------------------------------------- radiance field
def film_siren(layer: FilmSiren, x: Tensor, w: Tensor) -> Tensor:
    gain, phase = 15 * layer.gain(w) + 30, layer.phase(w)
    return torch.sin(gain[:, None] * layer.linear(x) + phase[:, None])


def sampled_field(nerf: ShallowNerf, rays: Rays, t: Tensor, w: Tensor) -> Tensor:
    """Features and, last, raw densities (B, N, S, feature_dim + 1) at depths t (B, N, S)."""
    c = nerf.config
    points = rays.origins[:, :, None] + t[..., None] * rays.directions[:, :, None]
    x = points.flatten(1, 2) / c.extent
    for layer in nerf.layers:
        x = film_siren(layer, x, w)
    sigma = c.density_gain * nerf.density(x)
    if c.density_blob:
        radius = points.flatten(1, 2).norm(dim=-1, keepdim=True) / (c.extent / 2)
        sigma = sigma + c.density_blob * (1 - radius**2)
    feature = nerf.feature(film_siren(nerf.feature_layer, x, w))
    return torch.cat([feature, sigma], dim=-1).unflatten(1, t.shape[1:])


# -------------------------------------------------------------------- volume rendering
def compositing_weights(t: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
    """α_i T_i of samples sorted by depth."""
    last = (end - t[..., -1:]).clamp(min=0)
    delta = torch.cat([t[..., 1:] - t[..., :-1], last], dim=-1)
    alpha = 1 - torch.exp(-delta * torch.relu(sigma))
    shifted = torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1)
    return alpha * torch.cumprod(shifted, dim=-1)[..., :-1]


def importance_depths(t: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF of the coarse weights over the midpoints of the coarse depths."""
    edges = (t[..., 1:] + t[..., :-1]) / 2
    # in the authors' code, once by the caller and once inside
    weights = weights[..., 1:-1] + 1e-5 + 1e-5
    pdf = weights / weights.sum(dim=-1, keepdim=True)
    cdf = torch.cumsum(pdf, dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)
    indices = torch.searchsorted(cdf, u.contiguous())
    below, above = (indices - 1).clamp(min=0), indices.clamp(max=edges.shape[-1] - 1)
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    edge_below, edge_above = edges.gather(-1, below), edges.gather(-1, above)
    width = cdf_above - cdf_below
    width[width < 1e-5] = 1
    return edge_below + (u - cdf_below) / width * (edge_above - edge_below)


def rendered_features(
    generator: Generator, w: Tensor, rays: Rays, sampling: Sampling, draws: RayDraws
) -> Tensor:
    """V_r (B, N, feature_dim): coarse pass, fine pass, merge, composite."""
    c = generator.networks
    distance = rays.origins.norm(dim=-1, keepdim=True)
    near, far = distance - c.extent, distance + c.extent
    end = torch.full_like(far, 1e10) if c.background == "endless" else far
    even = torch.linspace(0, 1, sampling.coarse, dtype=near.dtype, device=near.device)
    t = near + (far - near) * even
    t = t + (draws.jitter - 0.5) * (far - near) / (sampling.coarse - 1)
    coarse = sampled_field(generator.nerf, rays, t, w)
    with torch.no_grad():
        weights = compositing_weights(t, with_noise(coarse[..., -1], draws.coarse_noise), end)
        fine_t = importance_depths(t, weights, draws.importance)
    fine = sampled_field(generator.nerf, rays, fine_t, w)

    t, order = torch.sort(torch.cat([t, fine_t], dim=-1), dim=-1)
    samples = torch.cat([coarse, fine], dim=2)
    samples = samples.gather(2, order[..., None].expand_as(samples))
    features, sigma = samples[..., :-1], samples[..., -1]
    weights = compositing_weights(t, with_noise(sigma, draws.noise), end)
    feature = (weights[..., None] * features).sum(dim=2)
    if generator.background is not None:
        transmittance = 1 - weights.sum(dim=-1, keepdim=True)
        feature = feature + transmittance * generator.background(w)[:, None]
    return feature


def with_noise(sigma: Tensor, noise: Tensor | None) -> Tensor:
    return sigma if noise is None else sigma + noise


# -------------------------------------------------------------------- implicit network and images
def modulated_linear(layer: ModulatedLinear, x: Tensor, w: Tensor) -> Tensor:
    style = layer.affine(w) + 1
    weight = layer.weight[None] * style[:, :, None]
    demodulation = torch.rsqrt(weight.pow(2).sum(dim=1, keepdim=True) + 1e-8)
    return torch.bmm(x, weight * demodulation)


def implicit_network(inr: ImplicitNetwork, x: Tensor, w: Tensor) -> Tensor:
    rgb = 0
    for i, block in enumerate(inr.blocks):
        y = F.leaky_relu(modulated_linear(block.first, x, w), 0.2, inplace=True)
        y = F.leaky_relu(modulated_linear(block.second, y, w), 0.2, inplace=True)
        x = x + y if i >= inr.config.residual_from_block else y
        if i >= inr.config.rgb_from_block:
            rgb = rgb + inr.to_rgb[i - inr.config.rgb_from_block](x)
    return torch.tanh(rgb) if inr.config.rgb_tanh else rgb


def generate(
    generator: Generator, draws: FakeDraws, resolution: int, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Images of the implicit network and of the auxiliary head, (B, 3, H, W)."""
    c = generator.networks
    assert c.background in ("plain", "endless") and c.embedding == "film"
    rays = draws.camera.to(generator.shape_mean).rays(resolution, resolution)
    w_shape = generator.shape_mapping(draws.latents.shape)
    w_appearance = generator.appearance_mapping(draws.latents.appearance)
    feature = rendered_features(generator, w_shape, rays, sampling, draws.rays)
    rgb = implicit_network(generator.inr, feature, w_appearance)
    aux_rgb = torch.tanh(generator.aux_head(feature))
    size = (resolution, resolution)
    image, aux_image = (x.transpose(1, 2).unflatten(2, size) for x in (rgb, aux_rgb))
    return image, aux_image


def random_draws(
    config: GeneratorConfig, sampling: Sampling, resolution: int, batch: int, noise_std: float
) -> FakeDraws:
    rays, networks = resolution * resolution, config.networks
    noise = [None, None]
    if noise_std > 0:
        counts = sampling.coarse, sampling.coarse + sampling.fine
        noise = [torch.randn(batch, rays, count) * noise_std for count in counts]
    shape = torch.randn(batch, networks.shape_dim)
    appearance = torch.randn(batch, networks.appearance_dim)
    jitter = torch.rand(batch, rays, sampling.coarse)
    importance = torch.rand(batch, rays, sampling.fine)
    return FakeDraws(
        Latents(shape, appearance),
        config.poses.sample(batch),
        RayDraws(jitter, importance, *noise),
    )


# -------------------------------------------------------------------- discriminators
def equal_conv(layer: EqualConv, x: Tensor) -> Tensor:
    size = layer.weight.shape[-1]
    weight = layer.weight / math.sqrt(layer.weight[0].numel())
    if layer.downsample:
        blur = layer.kernel.expand(x.shape[1], 1, -1, -1)
        x = F.conv2d(x, blur, padding=size // 2 + 1, groups=x.shape[1])
        x = F.conv2d(x, weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=size // 2)
    if layer.bias is None:
        return x
    return F.leaky_relu(x + layer.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


def residual_block(block: ResidualBlock, x: Tensor) -> Tensor:
    y = equal_conv(block.conv2, equal_conv(block.conv1, x))
    return (y + equal_conv(block.skip, x)) / math.sqrt(2)


def equal_linear(layer: EqualLinear, x: Tensor) -> Tensor:
    x = F.linear(x, layer.weight / math.sqrt(layer.weight.shape[1]), layer.bias)
    return F.leaky_relu(x, 0.2) * math.sqrt(2) if layer.activate else x


def discriminate(discriminator: ProgressiveDiscriminator, images: Tensor) -> Tensor:
    """Logits at alpha = 1."""
    assert discriminator.config.stddev_group == 0
    resolution = images.shape[-1]
    x = equal_conv(discriminator.from_rgb[str(resolution)], images)
    while resolution > 4:
        x = residual_block(discriminator.blocks[str(resolution)], x)
        resolution //= 2
    x = equal_conv(discriminator.final_conv, x)
    return equal_linear(discriminator.logit, equal_linear(discriminator.hidden, x.flatten(1)))


def logits(discriminators: nn.ModuleDict, image: Tensor, aux_image: Tensor) -> Tensor:
    pairs = ((discriminators["main"], image), (discriminators["aux"], aux_image))
    return torch.cat([discriminate(discriminator, seen) for discriminator, seen in pairs])


# -------------------------------------------------------------------- losses and the step
def discriminator_loss(
    discriminators: nn.ModuleDict, real: Tensor, image: Tensor, aux_image: Tensor, r1_weight: float
) -> Tensor:
    fake_logits = logits(discriminators, image, aux_image)
    real_image, real_aux = (real.clone().requires_grad_(r1_weight > 0) for _ in range(2))
    real_logits = logits(discriminators, real_image, real_aux)
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    if r1_weight > 0:
        images = [real_image, real_aux]
        gradients = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
        loss = loss + r1_weight * torch.cat([g.pow(2).sum(dim=(1, 2, 3)) for g in gradients]).mean()
    return loss


def generator_loss(discriminators: nn.ModuleDict, image: Tensor, aux_image: Tensor) -> Tensor:
    return F.softplus(-logits(discriminators, image, aux_image)).mean()


class Baseline:
    """Networks, optimisers and a step, for a stage with auxiliary discriminator and no fade-in."""

    def __init__(
        self, config: TrainConfig, stage: Stage, generator: Generator, discriminators: nn.ModuleDict
    ) -> None:
        self.config, self.stage, self.steps = config, stage, 0
        self.sampling = config.sampling or generator.sampling
        self.generator, self.discriminators = generator, discriminators
        self.average = copy.deepcopy(generator).requires_grad_(False)
        betas = (0.0, config.adam_beta2)
        adam, rates = torch.optim.Adam, (stage.generator_lr, stage.discriminator_lr)
        self.generator_optimizer = adam(generator.parameters(), lr=rates[0], betas=betas)
        self.discriminator_optimizer = adam(discriminators.parameters(), lr=rates[1], betas=betas)

    def step(self, real: Tensor) -> None:
        """One iteration on a batch of uint8 images."""
        real = real.float() / 127.5 - 1
        r1 = self.config.objective.r1
        assert r1 is not None
        r1_weight = 0.5 * r1.weight * r1.every if r1.is_due(self.steps) else 0.0
        with torch.no_grad():
            image, aux_image = self.generate(self.draws())
        self.discriminator_optimizer.zero_grad()
        discriminator_loss(self.discriminators, real, image, aux_image, r1_weight).backward()
        self.discriminator_optimizer.step()

        self.generator_optimizer.zero_grad()
        self.discriminators.requires_grad_(False)
        generator_loss(self.discriminators, *self.generate(self.draws())).backward()
        self.discriminators.requires_grad_(True)
        self.generator_optimizer.step()
        self.update_average()
        self.steps += 1

    def draws(self) -> FakeDraws:
        stage, noise_std = self.stage, self.config.density_noise  # its decay costs no time
        generator = self.config.generator
        return random_draws(generator, self.sampling, stage.resolution, stage.batch, noise_std)

    def generate(self, draws: FakeDraws) -> tuple[Tensor, Tensor]:
        return generate(self.generator, draws, self.stage.resolution, self.sampling)

    @torch.no_grad()
    def update_average(self) -> None:
        decay = self.config.ema_decay
        for mean, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.mul_(decay).add_(value, alpha=1 - decay)
