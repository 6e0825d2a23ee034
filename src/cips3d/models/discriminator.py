"""StyleGAN2's residual discriminator with an entry at every resolution (paper Section 4.1).

The main and the auxiliary discriminator are two instances with different widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from cips3d.configuration import Configuration, Count
from cips3d.errors import UserError
from cips3d.models.layers import LEAKY_SLOPE

Images = Float[Tensor, "batch 3 res res"]
Labels = Float[Tensor, "batch 25"]
Maps = Float[Tensor, "batch c height width"]
Maps2 = Float[Tensor, "batch c2 height2 width2"]


@dataclass(frozen=True)
class DiscriminatorConfig(Configuration):
    """What fixes a discriminator. The defaults are the authors' main discriminator."""

    label: ClassVar[str] = "discriminator configuration"

    channels: Mapping[int, Count] = field(
        default_factory=lambda: {4 * 2**i: min(512, 2**12 // 2**i) for i in range(9)}
    )
    """width at each resolution: powers of two from 4 up to the largest entry"""
    downsample_first: bool = False
    """downsample in a block's first convolution (the authors' auxiliary one), not its second"""
    stddev_group: Annotated[int, Ge(0)] = 0
    """group size of the minibatch standard deviation; 0 for none"""
    camera_label: bool = False
    """judge an image together with its camera, by projection (Miyato & Koyama 2018)"""
    pose_head: bool = False
    """predict an image's yaw and pitch as well, as pi-GAN's released code does"""
    code_numbers: Annotated[int, Ge(0)] = 0
    """how many numbers of a code it predicts as well; in training, set by the code terms"""

    def check(self) -> None:
        expected = [4 * 2**i for i in range(len(self.channels))]
        if sorted(self.channels) != expected or not expected:
            raise UserError(
                f"{self.label}: channels are given for {sorted(self.channels)}; give a width for "
                "every power of two from 4 up to the training resolution"
            )


class Judgement(NamedTuple):
    """What a discriminator predicts for each image."""

    logits: Float[Tensor, "batch 1"]
    """higher is more real"""
    pose: Float[Tensor, "batch 2"] | None
    """yaw and pitch in radians; None without a pose head"""
    code: Float[Tensor, "batch numbers"] | None = None
    """the first numbers of a code; None without a code head"""


class EqualConv(nn.Module):
    """Convolution with equalised learning rate (weights times 1/√fan_in), then activation.

    `downsample` blurs and halves the resolution. The activation, gain·√2·LeakyReLU(0.2)(x + bias),
    is positively homogeneous, so its constants are folded into the weights and the bias. Without
    `activate` there is no bias either.
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
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        kernel = torch.outer(taps, taps) if downsample else None
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Maps) -> Maps2:
        size = self.weight.shape[-1]
        weight = self.weight * (self.scale / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * self.scale
        if not self.downsample:
            x = F.conv2d(x, weight, bias, padding=size // 2)
        else:
            # a 1×1 convolution commutes with taking every second pixel: the blur skips the others
            stride = 2 if size == 1 else 1
            x = Blur.apply(x, self.kernel, 1, size // 2 + 1, stride)
            x = F.conv2d(x, weight, bias, stride=2 // stride)
        return x if self.bias is None else F.leaky_relu(x, LEAKY_SLOPE, inplace=True)


class Blur(torch.autograd.Function):
    """Every channel convolved with one constant kernel, as in StyleGAN2's upfirdn2d.

    `up` − 1 zeros between pixels and `padding` around them, the kernel, every `down`th pixel. The
    adjoint has the same form, and so have derivatives of all orders. torch's own compute the
    kernel's gradient in R1's backward pass, by thousands of convolutions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Maps,
        kernel: Float[Tensor, "k k"],
        up: int,
        padding: int,
        down: int,
        size: torch.Size | None = None,
    ) -> Maps2:
        """`size` is the result's height and width, where zeros below and right make it larger."""
        ctx.save_for_backward(kernel)
        ctx.adjoint = down, len(kernel) - 1 - padding, up, x.shape[2:]
        return _blurred(x, kernel, up, padding, down, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        return Blur.apply(*gradients, kernel.flip(0, 1), *ctx.adjoint), *[None] * 5


def _blurred(
    x: Maps, kernel: Tensor, up: int, padding: int, down: int, size: torch.Size | None
) -> Maps2:
    channels, taps = x.shape[1], len(kernel)
    held = [up * (side - 1) + 1 + 2 * padding - taps for side in x.shape[2:]]
    missing = [0, 0] if size is None else [a - 1 - b for a, b in zip(size, held, strict=True)]
    if up > 1 and x.is_cpu:  # faster there than on zeros, and much slower on GPUs
        weight = kernel.flip(0, 1).to(x).expand(channels, 1, -1, -1)
        return F.conv_transpose2d(x, weight, None, up, taps - 1 - padding, missing, channels)
    if up > 1:
        height, width = (up * (side - 1) + 1 for side in x.shape[2:])
        stuffed = x.new_zeros(len(x), height, width, channels).permute(0, 3, 1, 2)
        stuffed[:, :, ::up, ::up] = x
        x = stuffed
    if down == 1 and any(missing):
        x = F.pad(x, (0, missing[1], 0, missing[0]))
    weight = kernel.to(x).expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, padding=padding, stride=down, groups=channels)


class ResidualBlock(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / √2 at half the resolution."""

    def __init__(self, in_dim: int, out_dim: int, downsample_first: bool) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.conv1 = EqualConv(in_dim, in_dim, 3, downsample=downsample_first)
        self.conv2 = EqualConv(in_dim, out_dim, 3, downsample=not downsample_first, gain=half)
        self.skip = EqualConv(in_dim, out_dim, 1, downsample=True, activate=False, gain=half)

    def forward(self, x: Maps) -> Maps2:
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
    """Camera labels as vectors of mean square 1, as in StyleGAN2-ADA."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = EqualLinear(25, dim, activate=True)
        self.second = EqualLinear(dim, dim, activate=False)

    def forward(self, labels: Labels) -> Float[Tensor, "batch dim"]:
        x = self.second(self.first(labels))
        return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class ProgressiveDiscriminator(nn.Module):
    """From-RGB at the image's resolution, residual blocks to 4×4, a convolution, linear layers.

    Methods raise UserError for images at a resolution without an entry.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels, config.channels[4]
        self.from_rgb = nn.ModuleDict({str(r): EqualConv(3, c, 1) for r, c in channels.items()})
        self.blocks = nn.ModuleDict(
            {
                str(r): ResidualBlock(c, channels[r // 2], config.downsample_first)
                for r, c in channels.items()
                if r > 4
            }
        )
        self.final_conv = EqualConv(width + (1 if config.stddev_group else 0), width, 3)
        self.hidden = EqualLinear(width * 16, width, activate=True)
        self.logit = EqualLinear(width, width if config.camera_label else 1, activate=False)
        self.label = CameraEmbedding(width) if config.camera_label else None
        self.pose = EqualLinear(width, 2, activate=False) if config.pose_head else None
        numbers = config.code_numbers
        self.code = EqualLinear(width, numbers, activate=False) if numbers else None

    def forward(
        self, images: Images, alpha: float = 1.0, cameras: Labels | None = None
    ) -> Float[Tensor, "batch 1"]:
        """The logits of `judge`."""
        return self.judge(images, alpha, cameras).logits

    def judge(self, images: Images, alpha: float = 1.0, cameras: Labels | None = None) -> Judgement:
        """Logits and, with their heads, poses and codes of images in [-1, 1].

        Args:
            alpha: fade-in: 0 uses only the halved image, 1 only the block at this resolution.
            cameras: labels (see `Camera.to_label`); needed with `camera_label`, else ignored.
        """
        x = self._hidden(images, alpha)
        logit = self.logit(x)
        if self.label is not None:
            assert cameras is not None
            projection = (logit * self.label(cameras)).sum(dim=1, keepdim=True)
            logit = projection / math.sqrt(logit.shape[1])
        pose, code = (None if head is None else head(x) for head in (self.pose, self.code))
        return Judgement(logit, pose, code)

    def predicted_poses(self, images: Images) -> Float[Tensor, "batch 2"] | None:
        """Yaw and pitch in radians of `reduced` images; None without a pose head."""
        return None if self.pose is None else self.pose(self._hidden(self.reduced(images), 1.0))

    def reduced(self, images: Images) -> Float[Tensor, "batch 3 res2 res2"]:
        """Images in the network's precision, no larger than its largest entry."""
        largest = max(self.config.channels)
        images = images.to(self.hidden.weight.dtype)
        if images.shape[-1] <= largest:
            return images
        return F.interpolate(images, (largest, largest), mode="area")

    def _hidden(self, images: Images, alpha: float) -> Float[Tensor, "batch channels"]:
        x = self.features(images, alpha)[-1]
        if self.config.stddev_group:
            x = torch.cat([x, _minibatch_stddev(x, self.config.stddev_group)], dim=1)
        return self.hidden(self.final_conv(x).flatten(1))

    def features(self, images: Images, alpha: float = 1.0) -> list[Tensor]:
        """Activations (B, C, H, W) after from-RGB and after each block, down to 4×4."""
        height, resolution = images.shape[-2:]
        if resolution not in self.config.channels or height != resolution:
            raise UserError(
                f"discriminator: no entry for {height}x{resolution} images; "
                f"it has {sorted(self.config.channels)}"
            )
        # faster convolutions on CPUs and tensor cores
        images = images.contiguous(memory_format=torch.channels_last)
        activations = [self.from_rgb[str(resolution)](images)]
        while resolution > 4:
            x = self.blocks[str(resolution)](activations[-1])
            resolution //= 2
            if alpha < 1 and len(activations) == 1:
                halved = F.interpolate(
                    images, scale_factor=0.5, mode="bilinear", align_corners=False
                )
                x = torch.lerp(self.from_rgb[str(resolution)](halved), x, alpha)
            activations.append(x)
        return activations


def _minibatch_stddev(x: Maps, group: int) -> Float[Tensor, "batch 1 height width"]:
    """StyleGAN2's minibatch standard deviation: one number per group of images, as a map."""
    batch, _, height, width = x.shape
    group = math.gcd(batch, group)
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # 1e-8 is 0 in float16
    deviation = x.reshape(group, -1, *x.shape[1:]).var(dim=0, unbiased=False).add(1e-8).sqrt()
    by_image = deviation.mean(dim=(1, 2, 3)).repeat(group)
    return by_image.view(batch, 1, 1, 1).expand(-1, 1, height, width)
