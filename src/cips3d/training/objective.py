"""The objective as a set of terms (paper Section 4.1): adversarial loss, penalties, regularisers.

A term is a small configuration with a weight and the losses that it adds: for the discriminators,
for the generator through the discriminators, or on the rendering itself. A new term is a class here
and a field of `Objective`.

Logits of the main and the auxiliary discriminator are concatenated and share one loss, as in the
authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.configuration import Configuration, Count, Positive, Share
from cips3d.models.layers import without_autocast
from cips3d.models.types import Latents, RenderOutput, Styles
from cips3d.training.draws import FakeDraws


@dataclass(frozen=True)
class Judged:
    """A batch and what the discriminators say about it, for the terms.

    Attributes:
        real_images, fake_images: what each discriminator saw before augmentation, main first;
            leaves that require a gradient where a term asks for it.
        real_logits, fake_logits: (discriminators·B, 1), the main one's first; real ones are empty
            in the generator's step unless the adversarial loss compares.
        poses: (B, 2) yaw and pitch that each discriminator with a `pose_head` predicts for the
            generated images, radians.
        codes: (B, n) numbers of a code that a network predicts for the generated images, by the
            network's name: "main", the discriminator, or "geometry".
        drawn: what the generated images are made from.
        styles: maps latents.
        loss_scale: factor of gradients on the way back to the images, in 16 bits.
    """

    real_images: list[Tensor]
    fake_images: list[Tensor]
    real_logits: Tensor
    fake_logits: Tensor
    poses: list[Tensor]
    codes: dict[str, Tensor]
    drawn: FakeDraws
    styles: Callable[[Latents], Styles]
    loss_scale: float = 1.0


# ---------------------------------------------------------------- adversarial losses
def logistic_discriminator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Average of softplus(D(fake)) + softplus(−D(real))."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def logistic_generator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Average of softplus(−D(fake)), the non-saturating loss."""
    return F.softplus(-fake).mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Average of softplus(D(fake) − D(real)) over pairs (Jolicoeur-Martineau 2019; R3GAN 2024)."""
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Average of softplus(D(real) − D(fake)) over pairs."""
    return F.softplus(real - fake).mean()


class Adversarial(NamedTuple):
    """Both sides' losses of real and generated logits; does the generator's need real ones?"""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    compares: bool


ADVERSARIAL = {
    "logistic": Adversarial(logistic_discriminator, logistic_generator, compares=False),
    "relativistic": Adversarial(relativistic_discriminator, relativistic_generator, compares=True),
}


# ---------------------------------------------------------------- terms
class Term(Configuration):
    """Base of the terms; a loss that a term does not add is None."""

    #: Whether its loss differentiates logits with respect to real or to generated images.
    needs_real_gradient: ClassVar[bool] = False
    needs_fake_gradient: ClassVar[bool] = False

    def is_due(self, step: int) -> bool:
        """Whether it takes part in this step."""
        return True

    def discriminator_loss(self, judged: Judged) -> Tensor | None:
        """What it adds to the discriminators' loss."""

    def generator_loss(self, judged: Judged) -> Tensor | None:
        """What it adds to the generator's loss through the discriminators."""

    def rendering_loss(self, fake: RenderOutput) -> Tensor | None:
        """What it adds to the generator's loss on the rendering itself."""


@dataclass(frozen=True)
class R1(Term):
    """½γ|∂D/∂x|² at real images (Mescheder et al. 2018)."""

    label: ClassVar[str] = "objective.r1"
    needs_real_gradient: ClassVar[bool] = True

    weight: Positive
    """γ"""
    every: Count = 1
    """lazy: every Nth step, N times as strong (StyleGAN2)"""

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def discriminator_loss(self, judged: Judged) -> Tensor | None:
        return self._penalty(judged.real_logits, judged.real_images, judged.loss_scale)

    def _penalty(self, logits: Tensor, images: list[Tensor], scale: float) -> Tensor:
        return (0.5 * self.every) * self.weight * mean_squared_gradient(logits, images, scale)


@dataclass(frozen=True)
class R2(R1):
    """R1 at generated images, for the relativistic loss."""

    label: ClassVar[str] = "objective.r2"
    needs_real_gradient: ClassVar[bool] = False
    needs_fake_gradient: ClassVar[bool] = True

    def discriminator_loss(self, judged: Judged) -> Tensor | None:
        return self._penalty(judged.fake_logits, judged.fake_images, judged.loss_scale)


@dataclass(frozen=True)
class Pose(Term):
    """Discriminators predict the pose of generated images; both sides are trained to agree.

    So a turn of the camera cannot fade from the images (pi-GAN's released code, weight 15; the
    principle is InfoGAN's, Chen et al. 2016). No real image needs a label.
    """

    label: ClassVar[str] = "objective.pose"

    weight: Positive = 15.0
    """of the mean squared error, radians"""

    def discriminator_loss(self, judged: Judged) -> Tensor | None:
        true = torch.stack(judged.drawn.camera.yaw_pitch(), dim=-1).detach()
        return self.weight * pose_error(judged.poses, true.to(judged.fake_logits.device))

    def generator_loss(self, judged: Judged) -> Tensor | None:
        return self.discriminator_loss(judged)


@dataclass(frozen=True)
class CodeTerm(Term):
    """A network predicts numbers of a code from what is generated, and both learn to agree.

    So a code cannot fade from the images (InfoGAN, Chen et al. 2016). Real images take no part.
    """

    #: Which code, and which network predicts it.
    part: ClassVar[Literal["shape", "appearance"]]
    judge: ClassVar[str]

    weight: Positive = 0.5
    """of the error, which is 1 where nothing of the code is predicted"""
    numbers: Count = 16
    """how many numbers of the code are predicted, from its first on"""
    of: Literal["z", "w"] = "z"
    """the code as drawn; or mapped, each number with mean 0 and variance 1 over the batch"""
    error: Literal["square", "cosine"] = "square"
    """mean squared error, or 1 − cosine"""

    def discriminator_loss(self, judged: Judged) -> Tensor:
        predicted, latents = judged.codes[self.judge], judged.drawn.latents
        with torch.no_grad():
            codes = latents if self.of == "z" else judged.styles(latents)
            true = getattr(codes, self.part)[:, : self.numbers].to(predicted.device)
            true = standardised(true) if self.of == "w" else true
        return self.weight * code_error(predicted, true, self.error)

    def generator_loss(self, judged: Judged) -> Tensor:
        return self.discriminator_loss(judged)


@dataclass(frozen=True)
class AppearanceCode(CodeTerm):
    """The main discriminator predicts z_a from the image."""

    label: ClassVar[str] = "objective.appearance_code"
    part: ClassVar[Literal["shape", "appearance"]] = "appearance"
    judge: ClassVar[str] = "main"


@dataclass(frozen=True)
class ShapeCode(CodeTerm):
    """A network of its own predicts z_s from depth and opacity, so that no colour can answer."""

    label: ClassVar[str] = "objective.shape_code"
    part: ClassVar[Literal["shape", "appearance"]] = "shape"
    judge: ClassVar[str] = "geometry"


@dataclass(frozen=True)
class Transmittance(Term):
    """Rewards empty space around the subject (Dream Fields, Jain et al. 2022, Eq. 4).

    Without it a generator may fill the background with fog.
    """

    label: ClassVar[str] = "objective.transmittance"

    weight: Positive = 0.5
    target: Share = 0.4
    """share of the light that should pass an image, at which the reward ends"""

    def rendering_loss(self, fake: RenderOutput) -> Tensor | None:
        return self.weight * transmittance_loss(fake.opacity, self.target)


@dataclass(frozen=True)
class Opacity(Term):
    """Asks for a solid subject: rays that it blocks or lets pass, and a share that it blocks.

    Mask losses of layered generators (Bielski & Favaro 2019, GIRAFFE HD 2022), for the subject
    without the deepest sample. For the background "field", in front of which a generator may leave
    a thin subject, or none.
    """

    label: ClassVar[str] = "objective.opacity"

    weight: Positive = 0.5
    covered: Share = 0.4
    """share of an image that the subject should at least block"""

    def rendering_loss(self, fake: RenderOutput) -> Tensor | None:
        return self.weight * opacity_loss(fake.subject_opacity, self.covered)


@dataclass(frozen=True)
class Convexity(Term):
    """Asks for a subject that bulges towards the camera, against hollow faces.

    Images without pose labels look alike from a face and from its hollow mould that turns the other
    way, so which of the two is learned is decided in the first minutes.
    """

    label: ClassVar[str] = "objective.convexity"

    weight: Positive = 0.5
    least: Positive = 0.006
    """bulge, in world units, from which nothing is asked for"""

    def rendering_loss(self, fake: RenderOutput) -> Tensor | None:
        lacking = 1 - bulge(fake.depth, fake.subject_opacity) / self.least
        return self.weight * F.relu(lacking).mean()


@dataclass(frozen=True)
class Objective(Configuration):
    """What is minimised: the adversarial loss and the terms that are not None."""

    label: ClassVar[str] = "objective"

    adversarial: Literal["logistic", "relativistic"] = "logistic"
    """the paper's non-saturating logistic loss, or generated images against real ones (R3GAN)"""
    pose: Pose | None = None
    """needs discriminators with a `pose_head`"""
    r1: R1 | None = field(default_factory=lambda: R1(10.0))
    r2: R2 | None = None
    transmittance: Transmittance | None = None
    opacity: Opacity | None = None
    convexity: Convexity | None = None
    appearance_code: AppearanceCode | None = None
    shape_code: ShapeCode | None = None

    @property
    def game(self) -> Adversarial:
        """Both sides of the adversarial loss."""
        return ADVERSARIAL[self.adversarial]

    def terms(self, step: int = 0) -> dict[str, Term]:
        """The terms that take part in a step, by name."""
        named = vars(self).items()
        return {name: t for name, t in named if isinstance(t, Term) and t.is_due(step)}


# ---------------------------------------------------------------- mathematics
def mean_squared_gradient(
    logits: Tensor, images: list[Tensor], scale: float = 1.0
) -> Float[Tensor, ""]:
    """Average of |∂D/∂x|² over the images of all discriminators, differentiable."""
    parts = zip(logits.split(len(images[0])), images, strict=True)
    with without_autocast(logits.device):
        return torch.cat([squared_gradient(part, image, scale) for part, image in parts]).mean()


def squared_gradient(
    logits: Float[Tensor, "batch 1"], images: Float[Tensor, "batch c h w"], scale: float = 1.0
) -> Float[Tensor, "batch 1"]:
    """|∂D/∂x|² of each image, differentiable; `scale` keeps ∂D/∂x in the range of 16 bits."""
    total = logits.to(images.dtype).sum() * scale
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return (gradient / scale).square().sum(dim=(1, 2, 3))[:, None]


def pose_error(
    predicted: Sequence[Float[Tensor, "batch 2"]], true: Float[Tensor, "batch 2"]
) -> Float[Tensor, ""]:
    """Mean squared error of yaw and pitch, radians, over all discriminators."""
    return (torch.stack([*predicted]) - true).square().mean()


def code_error(
    predicted: Float[Tensor, "batch n"],
    true: Float[Tensor, "batch n"],
    kind: Literal["square", "cosine"],
) -> Float[Tensor, ""]:
    """Mean squared error over images and numbers, or the mean of 1 − cosine over images."""
    if kind == "square":
        return (predicted - true).square().mean()  # in the codes' precision, under autocast too
    return 1 - F.cosine_similarity(predicted, true, dim=1).mean()


def standardised(x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    """Each number with mean 0 and variance 1 over the batch, which is this process's."""
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(variance + 1e-8)


def transmittance_loss(opacity: Float[Tensor, "batch 1 h w"], target: float) -> Float[Tensor, ""]:
    """−min(τ, average T) of each image, averaged, with T = 1 − opacity and τ = target in [0, 1]."""
    return -(1 - opacity).mean(dim=(1, 2, 3)).clamp(max=target).mean()


def opacity_loss(opacity: Float[Tensor, "batch 1 h w"], covered: float) -> Float[Tensor, ""]:
    """Average of min(α, 1 − α), and of max(0, covered − average α) of each image."""
    short = (covered - opacity.mean(dim=(1, 2, 3))).clamp(min=0)
    return torch.minimum(opacity, 1 - opacity).mean() + short.mean()


def bulge(
    depth: Float[Tensor, "batch 1 h w"], opacity: Float[Tensor, "batch 1 h w"]
) -> Float[Tensor, " batch"]:
    """How depth grows away from the middle of each subject, world units; below 0 for a hollow one.

    Covariance of depth with the squared distance r² from the subject's centroid in the image,
    divided by the standard deviation of r²; all weighted by the opacity. R/4.3 for a sphere of
    radius R, 0 for a plane that faces the camera.
    """
    height, width = depth.shape[2:]
    weights = opacity.detach().flatten(1)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)

    def mean(x: Tensor) -> Float[Tensor, "batch 1"]:
        return (weights * x).sum(dim=1, keepdim=True)

    rows, columns = (torch.arange(n).to(depth) / n for n in (height, width))
    y, x = rows.repeat_interleave(width), columns.repeat(height)
    r2 = (x - mean(x)).square() + (y - mean(y)).square()
    r2 = r2 - mean(r2)
    covariance = mean(r2 * depth.flatten(1))
    return (covariance * torch.rsqrt(mean(r2.square()) + 1e-8))[:, 0]
