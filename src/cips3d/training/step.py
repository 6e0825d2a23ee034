"""One training step: discriminators, then generator (paper Section 4.1).

`training_step` is all there is. The training loop runs it on images; `planning` runs it on shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.models import rays as ray_choices
from cips3d.models.cost import automatic_chunk
from cips3d.models.layers import without_autocast
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import RenderOutput
from cips3d.training.augment import AugmentDraws, diff_augment
from cips3d.training.draws import FakeDraws, StepDraws
from cips3d.training.networks import Networks
from cips3d.training.objective import Judged, Objective, Term
from cips3d.training.recipe import Stage


@dataclass(frozen=True)
class Batch:
    """This process's real images of a step.

    Attributes:
        positions: their positions in the global batch.
        images: (B, 3, R, R) in [-1, 1], mirrored where that was drawn.
        cameras: (B, 25) their labels, for discriminators that see them; else None.
    """

    positions: range
    images: Float[Tensor, "batch 3 res res"]
    cameras: Float[Tensor, "batch 25"] | None = None

    def pieces(self, count: int) -> list[Batch]:
        """The batch in `count` equal pieces, whose gradients add up to one step."""
        size = len(self.positions) // count
        return [
            Batch(
                self.positions[start : start + size],
                self.images[start : start + size],
                None if self.cameras is None else self.cameras[start : start + size],
            )
            for start in range(0, len(self.positions), size)
        ]


@dataclass(frozen=True)
class StepContext:
    """How a step runs, apart from its data and its objective.

    Attributes:
        stage: resolution, pieces, gradients, auxiliary discriminator.
        step: index of the step, for lazy terms.
        alpha: fade-in of the resolution.
        warming_up: only the discriminators train.
        share_fakes: one set of generated images serves both sides.
        memory: bytes of this process, for automatic chunks.
        autocast: makes the context in which networks run.
        update: takes an optimiser's step from the gradients; returns False if they were not finite.
    """

    stage: Stage
    step: int
    alpha: float
    warming_up: bool
    share_fakes: bool
    memory: int
    autocast: Callable[..., AbstractContextManager[None]]
    update: Callable[[torch.optim.Optimizer], bool]


@dataclass(frozen=True)
class StepResult:
    """What a step reports.

    Attributes:
        figures: averages over the local batch, as tensors, so that nothing waits for the device.
        finite: whether all gradients were finite.
        fake: the last generated images.
    """

    figures: dict[str, Tensor]
    finite: bool
    fake: RenderOutput


def training_step(
    networks: Networks,
    batch: Batch,
    draws: StepDraws,
    objective: Objective,
    context: StepContext,
) -> StepResult:
    """One iteration: the discriminators' update, then the generator's."""
    pieces = batch.pieces(context.stage.accumulate)
    terms = objective.terms(context.step)
    networks.discriminator_optimizer.zero_grad(set_to_none=True)
    networks.generator_optimizer.zero_grad(set_to_none=True)
    shares_graph = context.share_fakes and not context.warming_up
    d_figures, g_figures = [], []
    for piece in pieces:
        with context.autocast():
            fake_draws = draws.fakes(piece.positions, "D")
            with torch.set_grad_enabled(shares_graph):
                fake = render_fakes(networks.generator, fake_draws, draws, context)
            game = Game(networks, objective, terms, context, piece, draws, 1 / len(pieces))
            d_figures.append(game.discriminator_step(fake, fake_draws))
    finite = context.update(networks.discriminator_optimizer)
    if not context.warming_up:
        for piece in pieces:
            with context.autocast():
                if not context.share_fakes:
                    fake_draws = draws.fakes(piece.positions, "G")
                    fake = render_fakes(networks.generator, fake_draws, draws, context)
                game = Game(networks, objective, terms, context, piece, draws, 1 / len(pieces))
                g_figures.append(game.generator_step(fake, fake_draws))
        finite &= context.update(networks.generator_optimizer)
    return StepResult(_averaged(d_figures) | _averaged(g_figures), finite, fake)


def render_fakes(
    generator: ImageGenerator, fakes: FakeDraws, draws: StepDraws, context: StepContext
) -> RenderOutput:
    """Generated images with the stage's kind of gradients; none where autograd is off."""
    stage, side = context.stage, context.stage.resolution
    if not isinstance(generator, RayGenerator):
        return generator.render(fakes.latents, fakes.camera, side, psi=1.0, draws=fakes.rays)
    styles = generator.map(fakes.latents)
    rays = fakes.camera.to(generator.shape_mean).rays(side, side)
    arguments = (generator.render_rays, styles, rays, draws.sampling, fakes.rays)
    if stage.gradients == "full":
        return ray_choices.as_images(ray_choices.full(*arguments), side, side)
    size = stage.chunk or automatic_chunk(
        generator.config, len(styles), draws.sampling, context.memory
    )
    if stage.gradients == "checkpointed" or not torch.is_grad_enabled():
        return ray_choices.as_images(ray_choices.checkpointed(*arguments, size), side, side)
    assert stage.gradient_rays is not None  # Stage checks it
    index = draws.gradient_rays(stage.gradient_rays)
    return ray_choices.as_images(ray_choices.partial(*arguments, index, size), side, side)


@dataclass(frozen=True)
class Game:
    """One piece of a batch between generator and discriminators.

    Attributes:
        share: the piece's share of the batch, by which gradients are scaled.
    """

    networks: Networks
    objective: Objective
    terms: dict[str, Term]
    context: StepContext
    piece: Batch
    draws: StepDraws
    share: float

    def discriminator_step(self, fake: RenderOutput, fakes: FakeDraws) -> dict[str, Tensor]:
        """Adds the gradients of the discriminators' loss to their parameters; returns figures."""
        networks, alpha = self.networks, self.context.alpha
        augment = self.draws.augment(self.piece.positions)
        needs_real = any(term.needs_real_gradient for term in self.terms.values())
        needs_fake = any(term.needs_fake_gradient for term in self.terms.values())
        images = self._judged_images(fake)
        reals = [self.piece.images.clone().requires_grad_(needs_real) for _ in images]
        fake_leaves = [image.detach().requires_grad_(needs_fake) for image in images]
        seen_fakes, seen_reals = _augmented(fake_leaves, augment), _augmented(reals, augment)
        labels = self._labels(fakes)
        if needs_real or needs_fake or not networks.judges_each_alone:
            fake_logits, poses = networks.judge(seen_fakes, alpha, labels[0])
            real_logits, _ = networks.judge(seen_reals, alpha, labels[1])
        else:  # one call of each discriminator instead of two
            count = len(self.piece.positions)
            together = [torch.cat(pair) for pair in zip(seen_fakes, seen_reals, strict=True)]
            cameras = None if labels[0] is None else torch.cat(labels)
            logits, poses = networks.judge(together, alpha, cameras)
            logits = logits.view(len(images), 2, count, 1).transpose(0, 1).flatten(1, 2)
            fake_logits, real_logits = logits
            poses = [pose[:count] for pose in poses]
        judged = Judged(reals, fake_leaves, real_logits, fake_logits, poses, fakes)
        losses = {"d_adversarial": self.objective.game.discriminator(real_logits, fake_logits)}
        for name, term in self.terms.items():
            if (loss := term.discriminator_loss(judged)) is not None:
                losses[f"d_{name}"] = loss
        total = _sum(losses.values())
        # gradients have the precision of what they belong to, unless told otherwise
        with without_autocast(total.device):
            (self.share * total).backward()
        real_main = real_logits[: len(self.piece.positions)].detach()
        fake_main = fake_logits[: len(self.piece.positions)].detach()
        return {name: loss.detach() for name, loss in losses.items()} | {
            "d_loss": total.detach(),
            "d_real_logit": real_main.mean(),
            "d_fake_logit": fake_main.mean(),
            # near 1 the main discriminator has memorised the dataset (StyleGAN2-ADA's r_t)
            "d_real_sign": real_main.sign().mean(),
        }

    def generator_step(self, fake: RenderOutput, fakes: FakeDraws) -> dict[str, Tensor]:
        """Adds the gradients of the generator's loss to its parameters; returns figures."""
        networks, alpha = self.networks, self.context.alpha
        augment = self.draws.augment(self.piece.positions)
        images = self._judged_images(fake)
        fake_label, real_label = self._labels(fakes)
        logits, poses = networks.judge(_augmented(images, augment), alpha, fake_label)
        real_logits = logits.new_empty(0, 1)
        if self.objective.game.compares:
            with torch.no_grad():
                reals = _augmented([self.piece.images for _ in images], augment)
                real_logits, _ = networks.judge(reals, alpha, real_label)
        judged = Judged([], images, real_logits, logits, poses, fakes)
        losses = {"g_adversarial": self.objective.game.generator(real_logits, logits)}
        on_rendering: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if (loss := term.generator_loss(judged)) is not None:
                losses[f"g_{name}"] = loss
            if (loss := term.rendering_loss(fake)) is not None:
                on_rendering[f"g_{name}"] = loss
        total = _sum(losses.values())
        # first to the images only: gradients of the discriminators' parameters are not computed;
        # an image that depends on frozen parts alone has no gradient to pass on
        trained = [image for image in images if image.requires_grad]
        with without_autocast(total.device):
            gradients: list[Tensor | None] = [*torch.autograd.grad(self.share * total, trained)]
            if on_rendering and (rendering := _sum(on_rendering.values())).requires_grad:
                trained, gradients = [*trained, self.share * rendering], [*gradients, None]
            torch.autograd.backward(trained, gradients)
        figures = {name: loss.detach() for name, loss in (losses | on_rendering).items()}
        return figures | {"g_loss": total.detach()}

    def _judged_images(self, fake: RenderOutput) -> list[Tensor]:
        """What the discriminators see: the main image, and the auxiliary one where it counts."""
        return [fake.image, fake.aux_image] if self.context.stage.auxiliary else [fake.image]

    def _labels(self, fakes: FakeDraws) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Camera labels of generated and of real images, for discriminators that see them."""
        if self.piece.cameras is None:
            return None, None
        # a camera with a gradient would be trained to fit the label, not the image
        device = self.piece.images.device
        return fakes.camera.to_label().detach().to(device), self.piece.cameras.to(device)


def _augmented(images: list[Tensor], draws: AugmentDraws | None) -> list[Tensor]:
    return images if draws is None else [diff_augment(image, draws) for image in images]


def _sum(losses: Sequence[Tensor] | object) -> Tensor:
    """The sum of at least one loss, in order."""
    first, *rest = losses  # pyright: ignore[reportGeneralTypeIssues]
    for loss in rest:
        first = first + loss
    return first


def _averaged(figures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average over the pieces of a batch."""
    if not figures:
        return {}
    return {name: torch.stack([f[name] for f in figures]).mean() for name in figures[0]}
