"""The adversarial objective (paper Section 4.1): non-saturating logistic loss with R1.

Logits of the main and the auxiliary discriminator share one loss, as in the authors' code: concatenated before the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generator_loss(fake_logits: Float[Tensor, "logits 1"]) -> Float[Tensor, ""]:
    """Mean of softplus(−D(fake))."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(
    real_logits: Float[Tensor, "logits 1"], fake_logits: Float[Tensor, "logits 1"]
) -> Float[Tensor, ""]:
    """Mean of softplus(D(fake)) + softplus(−D(real))."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def relativistic_loss(
    better: Float[Tensor, "logits 1"], worse: Float[Tensor, "logits 1"]
) -> Float[Tensor, ""]:
    """Mean of softplus(worse − better): each picture against its partner (Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024).

    The discriminator's loss with real pictures as the better ones, the generator's with its own.
    """
    return F.softplus(worse - better).mean()


def squared_gradient(
    logits: Float[Tensor, "batch 1"], images: Float[Tensor, "batch c h w"]
) -> Float[Tensor, "batch 1"]:
    """|∂D/∂x|² of each picture, differentiable; ½γ times its mean is R1 at real, R2 at generated ones (Mescheder et al. 2018).

    Args:
        logits: of `images`, which must require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))[:, None]


def pose_loss(
    told: Sequence[Float[Tensor, "batch 2"]], true: Float[Tensor, "batch 2"]
) -> Float[Tensor, ""]:
    """Mean squared error of the yaw and pitch (radians) that discriminators tell generated pictures by.

    Discriminators learn to see the pose and the generator to show it, so that a turn of the camera cannot fade from the
    pictures (pi-GAN's released code, weight 15; InfoGAN, Chen et al. 2016, is the principle). No label of a real picture is
    needed.
    """
    return (torch.stack([*told]) - true).square().mean()


def transmittance_loss(opacity: Float[Tensor, "batch 1 h w"], target: float) -> Float[Tensor, ""]:
    """−min(τ, mean T) of each picture, meaned, with transmittance T = 1 − opacity (Dream Fields, Jain et al. 2022, Eq. 4).

    Asks for empty space until a share τ of the light passes: without it a generator may fill the background with fog.

    Args:
        target: τ in [0, 1].
    """
    return -(1 - opacity).mean(dim=(1, 2, 3)).clamp(max=target).mean()
