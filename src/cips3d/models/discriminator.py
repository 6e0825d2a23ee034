"""The progressive residual discriminator (paper Section 4.1): StyleGAN2's, enterable at any resolution with fade-in.

Main and auxiliary discriminator are two instances with different widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.configuration import Configuration
from cips3d.errors import UserError
from cips3d.models.layers import LEAKY_SLOPE


@dataclass(frozen=True)
class DiscriminatorConfig(Configuration):
    """Everything that fixes a discriminator's architecture. The defaults are the authors' main discriminator."""

    channels: Mapping[int, int] = field(
        default_factory=lambda: {
            4: 512,
            8: 512,
            16: 512,
            32: 512,
            64: 256,
            128: 128,
            256: 64,
            512: 32,
            1024: 16,
        }
    )
    """width at each resolution: powers of two from 4 up to the largest that can be entered"""
    downsample_first: bool = False
    """downsample in a block's first convolution (the authors' auxiliary discriminator) instead of its second"""
    stddev_group: int = 0
    """group size of the minibatch standard deviation; 0 for none"""
    camera_label: bool = False
    """judge a picture together with its camera, by projection (Miyato & Koyama 2018)"""
    pose_head: bool = False
    """also tell a picture's yaw and pitch (as pi-GAN's released code does; see `TrainConfig.pose_weight`)"""

    def __post_init__(self) -> None:
        expected = [4 * 2**i for i in range(len(self.channels))]
        if sorted(self.channels) != expected or not expected or min(self.channels.values()) < 1:
            raise UserError(
                f"discriminator configuration: channels are given for {sorted(self.channels)}; "
                "give a width of at least 1 for every power of two from 4 up to the training resolution"
            )


def _blur_kernel() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


class EqualConv(nn.Module):
    """Convolution with equalised learning rate (weights times 1/√fan_in), optional blur and stride 2, then activation.

    The activation √2·LeakyReLU(0.2)(x + bias) is scaled by `gain`; being positively homogeneous, it lets all constants fold
    into weights and bias, so that only the convolution and an in-place LeakyReLU touch the pictures.

    Args:
        activate: with bias and activation, or (the skip connection) with neither.
        gain: constant factor of the result.
    """

    kernel: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: int,
        downsample: bool = False,
        activate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, size, size))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if activate else None
        self.downsample = downsample
        self.scale = gain * (math.sqrt(2) if activate else 1.0)
        self.register_buffer("kernel", _blur_kernel() if downsample else None, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch in height width"]
    ) -> Float[Tensor, "batch out height2 width2"]:
        size = self.weight.shape[-1]
        weight = self.weight * (self.scale / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * self.scale
        if not self.downsample:
            x = F.conv2d(x, weight, bias, padding=size // 2)
        else:
            # a 1×1 convolution commutes with taking every second pixel, so the blur need not compute the others
            stride = 2 if size == 1 else 1
            x = Blur.apply(x, self.kernel, size // 2 + 1, stride)
            x = F.conv2d(x, weight, bias, stride=2 // stride)
        return x if self.bias is None else F.leaky_relu(x, LEAKY_SLOPE, inplace=True)


class Blur(torch.autograd.Function):
    """A convolution of every channel with one constant kernel.

    torch's own, with a group for each channel, would find the kernel's gradient in R1's backward pass whether anybody wants it
    or not, by a convolution for each channel: thousands of tiny ones in a step of the large presets.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch channels height width"],
        kernel: Float[Tensor, "k k"],
        padding: int,
        stride: int,
    ) -> Float[Tensor, "batch channels height2 width2"]:
        ctx.save_for_backward(kernel)
        ctx.geometry = padding, stride, x.shape[2:]
        return F.conv2d(x, _grouped(kernel, x), padding=padding, stride=stride, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return BlurAdjoint.apply(gradient, *ctx.saved_tensors, *ctx.geometry), None, None, None


class BlurAdjoint(torch.autograd.Function):
    """The adjoint of `Blur`, for its backward pass, whose own is `Blur` again."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, kernel: Tensor, padding: int, stride: int, size: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.geometry = padding, stride
        missing = [
            a - ((b - 1) * stride - 2 * padding + len(kernel))
            for a, b in zip(size, y.shape[2:], strict=True)
        ]
        return F.conv_transpose2d(
            y, _grouped(kernel, y), None, stride, padding, missing, groups=y.shape[1]
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return Blur.apply(gradient, *ctx.saved_tensors, *ctx.geometry), None, None, None, None


def _grouped(
    kernel: Float[Tensor, "k k"], x: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, "channels 1 k k"]:
    return kernel.to(x).expand(x.shape[1], 1, -1, -1)


class ResidualBlock(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / √2 at half the resolution."""

    def __init__(self, in_dim: int, out_dim: int, downsample_first: bool) -> None:
        super().__init__()
        self.conv1 = EqualConv(in_dim, in_dim, 3, downsample=downsample_first)
        self.conv2 = EqualConv(
            in_dim, out_dim, 3, downsample=not downsample_first, gain=math.sqrt(0.5)
        )
        self.skip = EqualConv(
            in_dim, out_dim, 1, downsample=True, activate=False, gain=math.sqrt(0.5)
        )

    def forward(
        self, x: Float[Tensor, "batch in height width"]
    ) -> Float[Tensor, "batch out height2 width2"]:
        return self.conv2(self.conv1(x)) + self.skip(x)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate; with `activate`, √2·LeakyReLU(0.2) follows."""

    def __init__(self, in_dim: int, out_dim: int, activate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.activate = activate

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        x = F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)
        return math.sqrt(2) * F.leaky_relu(x, LEAKY_SLOPE) if self.activate else x


class CameraEmbedding(nn.Module):
    """Camera labels as vectors of mean square 1, which a picture's features are projected on (in StyleGAN2-ADA's form)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = (
            EqualLinear(25, dim, activate=True),
            EqualLinear(dim, dim, activate=False),
        )

    def forward(self, labels: Float[Tensor, "batch 25"]) -> Float[Tensor, "batch dim"]:
        x = self.second(self.first(labels))
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class ProgressiveDiscriminator(nn.Module):
    """From-RGB at the picture's resolution, residual blocks down to 4×4, a convolution and two linear layers.

    Args:
        config: the architecture.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.from_rgb = nn.ModuleDict({str(r): EqualConv(3, c, 1) for r, c in channels.items()})
        self.blocks = nn.ModuleDict(
            {
                str(r): ResidualBlock(c, channels[r // 2], config.downsample_first)
                for r, c in channels.items()
                if r > 4
            }
        )
        self.final_conv = EqualConv(channels[4] + (1 if config.stddev_group else 0), channels[4], 3)
        self.hidden = EqualLinear(channels[4] * 16, channels[4], activate=True)
        self.logit = EqualLinear(
            channels[4], channels[4] if config.camera_label else 1, activate=False
        )
        self.label = CameraEmbedding(channels[4]) if config.camera_label else None
        self.pose = EqualLinear(channels[4], 2, activate=False) if config.pose_head else None

    def forward(
        self,
        images: Float[Tensor, "batch 3 res res"],
        alpha: float = 1.0,
        cameras: Float[Tensor, "batch 25"] | None = None,
    ) -> Float[Tensor, "batch 1"]:
        """The logits of `judge`."""
        return self.judge(images, alpha, cameras)[0]

    def judge(
        self,
        images: Float[Tensor, "batch 3 res res"],
        alpha: float = 1.0,
        cameras: Float[Tensor, "batch 25"] | None = None,
    ) -> tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch 2"] | None]:
        """Logits, higher is more real; and, with a `pose_head`, yaw and pitch in radians.

        Args:
            images: square pictures in [-1, 1] at any resolution of the configuration.
            alpha: fade-in of the block at this resolution, in [0, 1]: 0 uses only the halved picture, 1 only the block.
            cameras: labels (see `Camera.to_label`), which a discriminator with `camera_label` needs and others pass over.

        Raises:
            UserError: if the resolution has no block.
        """
        x = self._hidden(images, alpha)
        logit = self.logit(x)
        if self.label is not None:
            assert cameras is not None
            logit = (logit * self.label(cameras)).sum(dim=1, keepdim=True) / math.sqrt(
                logit.shape[1]
            )
        return logit, None if self.pose is None else self.pose(x)

    def predicted_poses(
        self, images: Float[Tensor, "batch 3 res res"]
    ) -> Float[Tensor, "batch 2"] | None:
        """Yaw and pitch in radians of pictures whose cameras nobody knows; None without a `pose_head`.

        Pictures larger than the discriminator takes are reduced first.

        Raises:
            UserError: if the resolution has no block.
        """
        return None if self.pose is None else self.pose(self._hidden(self.reduced(images), 1.0))

    def reduced(
        self, images: Float[Tensor, "batch 3 res res"]
    ) -> Float[Tensor, "batch 3 res2 res2"]:
        """Pictures of another precision in the network's, and those larger than any resolution it has at the largest one."""
        largest = max(self.config.channels)
        images = images.to(self.hidden.weight.dtype)
        return (
            images
            if images.shape[-1] <= largest
            else F.interpolate(images, (largest, largest), mode="area")
        )

    def _hidden(
        self, images: Float[Tensor, "batch 3 res res"], alpha: float
    ) -> Float[Tensor, "batch channels"]:
        x = self.features(images, alpha)[-1]
        if self.config.stddev_group:
            x = torch.cat([x, _minibatch_stddev(x, self.config.stddev_group)], dim=1)
        return self.hidden(self.final_conv(x).flatten(1))

    def features(
        self, images: Float[Tensor, "batch 3 res res"], alpha: float = 1.0
    ) -> list[Float[Tensor, "batch channels height width"]]:
        """Activations after from-RGB and after each block, down to 4×4, for the arguments of `forward`.

        Raises:
            UserError: if the resolution has no block.
        """
        resolution = images.shape[-1]
        if resolution not in self.config.channels or images.shape[-2] != resolution:
            raise UserError(
                f"discriminator: no entry for {images.shape[-2]}x{resolution} pictures; it has {sorted(self.config.channels)}"
            )
        images = images.contiguous(
            memory_format=torch.channels_last
        )  # faster convolutions on CPUs and tensor cores
        activations = [self.from_rgb[str(resolution)](images)]
        while resolution > 4:
            x = self.blocks[str(resolution)](activations[-1])
            resolution //= 2
            if alpha < 1 and resolution * 2 == images.shape[-1]:
                halved = F.interpolate(
                    images, scale_factor=0.5, mode="bilinear", align_corners=False
                )
                x = torch.lerp(self.from_rgb[str(resolution)](halved), x, alpha)
            activations.append(x)
        return activations


def _minibatch_stddev(x: Float[Tensor, "batch c h w"], group: int) -> Float[Tensor, "batch 1 h w"]:
    """StyleGAN2's minibatch standard deviation: one number per group of pictures, as a constant map."""
    batch, _, height, width = x.shape
    group = math.gcd(batch, group)
    deviation = x.reshape(group, -1, *x.shape[1:]).var(dim=0, unbiased=False).add(1e-8).sqrt()
    return (
        deviation.mean(dim=(1, 2, 3))
        .repeat(group)
        .view(batch, 1, 1, 1)
        .expand(-1, 1, height, width)
    )
