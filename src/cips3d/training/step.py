"""One training step: the discriminators, then the generator (paper Section 4.1).

The training loop runs it on images; `planning` runs it on shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.models import rays as ray_choices
from cips3d.models.cost import automatic_chunk
from cips3d.models.layers import luminance, without_autocast
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import RenderOutput
from cips3d.training.augment import AugmentDraws, diff_augment
from cips3d.training.draws import FakeDraws, StepDraws
from cips3d.training.networks import Networks
from cips3d.training.objective import Judged, Objective
from cips3d.training.recipe import Stage


@dataclass(frozen=True)
class Batch:
    """This process's real images of a step.

    Attributes:
        positions: in the global batch.
        images: in [-1, 1], mirrored where that was drawn.
        cameras: labels, for discriminators that see them.
        augment: DiffAugment's draws, the same for real and generated images; None for no change.
    """

    positions: range
    images: Float[Tensor, "batch 3 res res"]
    cameras: Float[Tensor, "batch 25"] | None = None
    augment: AugmentDraws | None = None

    def pieces(self, count: int) -> list[Batch]:
        """The batch in `count` equal pieces, whose gradients add up to one step."""
        pieces = []
        for part in ray_choices.chunks(len(self.positions), len(self.positions) // count):
            values: list[Any] = [v if v is None else v[part] for v in vars(self).values()]
            pieces.append(Batch(*values))
        return pieces


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
        loss_scale: factor of the losses, by which `update` divides the gradients.
    """

    stage: Stage
    step: int
    alpha: float
    warming_up: bool
    share_fakes: bool
    memory: int
    autocast: Callable[..., AbstractContextManager[None]]
    update: Callable[[torch.optim.Optimizer], bool]
    loss_scale: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """What a step reports.

    Attributes:
        figures: averages over the local batch, as tensors, so that nothing waits for the device.
        finite: whether all gradients were finite.
        fake: the last generated images.
        moved: whether the generator has been updated.
    """

    figures: dict[str, Tensor]
    finite: bool
    fake: RenderOutput
    moved: bool = True


def training_step(
    networks: Networks,
    batch: Batch,
    draws: StepDraws,
    objective: Objective,
    context: StepContext,
) -> StepResult:
    """One iteration: the discriminators' update, then the generator's."""
    for optimizer in networks.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    pieces = batch.pieces(context.stage.accumulate)
    shares_graph = context.share_fakes and not context.warming_up
    d_figures, g_figures = [], []
    for piece in pieces:
        with context.autocast():
            drawn = draws.fakes(piece.positions, "D")
            with torch.set_grad_enabled(shares_graph):
                fake = render_fakes(networks.generator, drawn, draws, context)
            d_figures.append(discriminator_step(networks, piece, fake, drawn, objective, context))
    finite, moved = context.update(networks.discriminator_optimizer), False
    if not context.warming_up:
        for piece in pieces:
            with context.autocast():
                if not context.share_fakes:
                    drawn = draws.fakes(piece.positions, "G")
                    fake = render_fakes(networks.generator, drawn, draws, context)
                g_figures.append(generator_step(networks, piece, fake, drawn, objective, context))
        moved = context.update(networks.generator_optimizer)
        finite &= moved
    return StepResult(_averages(d_figures) | _averages(g_figures), finite, fake, moved)


def render_fakes(
    generator: ImageGenerator, drawn: FakeDraws, draws: StepDraws, context: StepContext
) -> RenderOutput:
    """Generated images with the stage's kind of gradients; none where autograd is off."""
    stage, side = context.stage, context.stage.resolution
    if not isinstance(generator, RayGenerator):
        return generator.render(drawn.latents, drawn.camera, side, psi=1.0, draws=drawn.rays)
    styles = generator.map(drawn.latents)
    rays = drawn.camera.to(generator.like).rays(side, side)
    arguments = (generator.render_rays, styles, rays, draws.sampling, drawn.rays)
    if stage.gradients == "full":
        return ray_choices.as_images(ray_choices.full(*arguments), side, side)
    size = stage.chunk or automatic_chunk(
        generator.config, len(styles), draws.sampling, context.memory
    )
    if stage.gradients == "checkpointed" or not torch.is_grad_enabled():
        return ray_choices.as_images(ray_choices.checkpointed(*arguments, size), side, side)
    assert stage.gradient_rays is not None  # Stage checks it
    index = draws.gradient_rays(drawn.positions, stage.gradient_rays)
    return ray_choices.as_images(ray_choices.partial(*arguments, index, size), side, side)


def discriminator_step(
    networks: Networks,
    batch: Batch,
    fake: RenderOutput,
    drawn: FakeDraws,
    objective: Objective,
    context: StepContext,
) -> dict[str, Tensor]:
    """Adds the gradients of the discriminators' loss to their parameters; returns figures."""
    terms, alpha, count = objective.terms(context.step), context.alpha, len(batch.positions)
    needs_real = any(term.needs_real_gradient for term in terms.values())
    needs_fake = any(term.needs_fake_gradient for term in terms.values())
    fakes = [image.detach().requires_grad_(needs_fake) for image in _judged_images(fake, context)]
    reals = [x.clone().requires_grad_(needs_real) for x in _real_images(networks, batch, context)]
    seen_fakes, seen_reals = _augmented(fakes, batch), _augmented(reals, batch)
    fake_cameras = _cameras(drawn, batch)
    if needs_real or needs_fake or networks.mixes_batch:
        fake_logits, poses, codes = networks.judge(seen_fakes, alpha, fake_cameras)
        real_logits, *_ = networks.judge(seen_reals, alpha, batch.cameras)
    else:  # one call of each discriminator instead of two
        both = [torch.cat(pair) for pair in zip(seen_fakes, seen_reals, strict=True)]
        cameras = None
        if fake_cameras is not None and batch.cameras is not None:
            cameras = torch.cat([fake_cameras, batch.cameras])
        logits, poses, codes = networks.judge(both, alpha, cameras)
        by_kind = logits.view(len(fakes), 2, count, 1).transpose(0, 1).flatten(1, 2)
        fake_logits, real_logits = by_kind
        poses = [pose[:count] for pose in poses]
        codes = {name: code[:count] for name, code in codes.items()}
    maps = geometry_maps(networks, fake)
    codes |= networks.read_geometry(None if maps is None else maps.detach())
    styles, scale = networks.generator.map, context.loss_scale
    judged = Judged(reals, fakes, real_logits, fake_logits, poses, codes, drawn, styles, scale)
    losses = {"d_adversarial": objective.game.discriminator(real_logits, fake_logits)}
    for name, term in terms.items():
        if (loss := term.discriminator_loss(judged)) is not None:
            losses[f"d_{name}"] = loss
    total = reduce(torch.add, losses.values())
    # outside autocast, so that each gradient has the precision of its parameter
    with without_autocast(total.device):
        (total * (scale / context.stage.accumulate)).backward()
    real_main, fake_main = real_logits[:count].detach(), fake_logits[:count].detach()
    return {name: loss.detach() for name, loss in losses.items()} | {
        "d_loss": total.detach(),
        "d_real_logit": real_main.mean(),
        "d_fake_logit": fake_main.mean(),
        # near 1 the main discriminator has memorised the dataset (StyleGAN2-ADA's r_t)
        "d_real_sign": real_main.sign().mean(),
    }


def generator_step(
    networks: Networks,
    batch: Batch,
    fake: RenderOutput,
    drawn: FakeDraws,
    objective: Objective,
    context: StepContext,
) -> dict[str, Tensor]:
    """Adds the gradients of the generator's loss to its parameters; returns figures."""
    images, alpha = _judged_images(fake, context), context.alpha
    logits, poses, codes = networks.judge(_augmented(images, batch), alpha, _cameras(drawn, batch))
    real_logits = logits.new_empty(0, 1)
    if objective.game.compares:
        with torch.no_grad():
            reals = _augmented(_real_images(networks, batch, context), batch)
            real_logits, *_ = networks.judge(reals, alpha, batch.cameras)
    maps = geometry_maps(networks, fake)
    codes |= networks.read_geometry(maps)
    styles = networks.generator.map
    judged = Judged([], images, real_logits, logits, poses, codes, drawn, styles)
    losses = {"g_adversarial": objective.game.generator(real_logits, logits)}
    on_rendering: dict[str, Tensor] = {}
    for name, term in objective.terms(context.step).items():
        if (loss := term.generator_loss(judged)) is not None:
            losses[f"g_{name}"] = loss
        if (loss := term.rendering_loss(fake)) is not None:
            on_rendering[f"g_{name}"] = loss
    total, share = reduce(torch.add, losses.values()), context.loss_scale / context.stage.accumulate
    # Backward in two stages: to the images, which skips the discriminators' parameters, and on to
    # the generator. An image of frozen networks alone has no gradient to pass on.
    seen = images if maps is None else [*images, fake.depth, fake.opacity]
    outputs = [image for image in seen if image.requires_grad]
    with without_autocast(total.device):
        gradients: list[Tensor | None] = [*torch.autograd.grad(total * share, outputs)]
        if on_rendering:
            rendering = reduce(torch.add, on_rendering.values())
            if rendering.requires_grad:
                outputs, gradients = [*outputs, rendering * share], [*gradients, None]
        torch.autograd.backward(outputs, gradients)
    figures = {name: loss.detach() for name, loss in (losses | on_rendering).items()}
    return figures | {"g_loss": total.detach()}


def geometry_maps(networks: Networks, fake: RenderOutput) -> Tensor | None:
    """Depth, twice, and opacity as images in about [-1, 1], if a network reads a code from them."""
    if "geometry" not in networks.discriminators:
        return None
    config = networks.generator.config
    depth = (fake.depth - config.poses.radius) / config.networks.extent
    return torch.cat([depth, depth, 2 * fake.opacity - 1], dim=1)


def _judged_images(fake: RenderOutput, context: StepContext) -> list[Tensor]:
    """What each discriminator sees, the main one's first."""
    return [fake.image, fake.aux_image] if context.stage.auxiliary else [fake.image]


def _real_images(networks: Networks, batch: Batch, context: StepContext) -> list[Tensor]:
    """Real images as each discriminator sees them, the main one's first."""
    images = batch.images
    if not context.stage.auxiliary:
        return [images]
    gray = networks.generator.config.aux_luminance
    return [images, luminance(images, 1) if gray else images]


def _augmented(images: list[Tensor], batch: Batch) -> list[Tensor]:
    return images if batch.augment is None else [diff_augment(x, batch.augment) for x in images]


def _cameras(drawn: FakeDraws, batch: Batch) -> Tensor | None:
    """Labels of the generated images, where the discriminators see labels."""
    # a camera with a gradient would be trained to fit the label, not the image
    return None if batch.cameras is None else drawn.camera.to_label().detach()


def _averages(figures: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Averages over the pieces of a batch; none for no piece."""
    names = figures[0] if figures else ()
    return {name: torch.stack([piece[name] for piece in figures]).mean() for name in names}
