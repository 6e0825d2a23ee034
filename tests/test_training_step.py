"""One recorded iteration of the authors' training loop: same weights, images, draws and results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution
from cips3d.models.config import Sampling
from cips3d.models.types import Latents, RayDraws, RenderOutput
from cips3d.official import discriminator_name, generator_name
from cips3d.training.networks import Networks
from cips3d.training.objective import R1, Objective, squared_gradient
from official import below, discriminators, generator, recorded, relative, worst
from steps import discriminator_step, generator_step

LOSS, GRADIENT = 1e-4, 1e-3  # relative
NOISE, R1_WEIGHT = 0.8, 0.5 * 10
OBJECTIVE = Objective(r1=R1(10.0))


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recorded("training_step_discriminator") | recorded("training_step_generator")


@pytest.fixture
def networks(tensors: dict[str, Tensor]) -> Networks:
    n = Networks.__new__(Networks)
    n.generator = generator(tensors, "generator_before/")
    n.discriminators = discriminators(
        tensors, "discriminator_before/main_disc.", "discriminator_before/aux_disc."
    )
    return n


def fake(networks: Networks, tensors: dict[str, Tensor], step: str) -> RenderOutput:
    draw = below(tensors, f"{step}/draw")
    poses = PoseDistribution()  # the FFHQ prior; the authors' yaw is π/2 − ours, hence the signs
    camera = Camera.orbit(
        -poses.yaw_std * draw["03.randn"][:, 0],
        -poses.pitch_std * draw["04.randn"][:, 0],
        1.0,
        poses.fov,
    ).from_corner_grid(16)
    rays = RayDraws(
        jitter=draw["02.rand"][..., 0],
        importance=draw["06.rand"].view(4, 256, 12),
        coarse_noise=draw["05.randn"][..., 0] * NOISE,
        noise=draw["07.randn"][..., 0] * NOISE,
    )
    return networks.generator(
        Latents(draw["00.randn"], draw["01.randn"]), camera, 16, rays, Sampling(12, 12)
    )


def images(out: RenderOutput) -> Tensor:
    return torch.cat([out.image, out.aux_image])


def test_discriminator_step(networks: Networks, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        out = fake(networks, tensors, "D")
    assert worst(images(out), tensors["D/gen_imgs"]) < 1e-4
    result = discriminator_step(networks, tensors["real_imgs"], out, OBJECTIVE)
    assert result["d_loss"].item() == pytest.approx(tensors["D/loss"].item(), rel=LOSS)
    # recorded with its weight ½γ
    assert result["d_r1"].item() == pytest.approx(tensors["D/grad_penalty"].mean().item(), rel=LOSS)
    # the log has the main discriminator's
    assert result["d_real_logit"].item() == pytest.approx(
        tensors["D/r_preds"][:4].mean().item(), abs=LOSS
    )
    assert result["d_fake_logit"].item() == pytest.approx(
        tensors["D/g_preds"][:4].mean().item(), abs=LOSS
    )

    gradients = named_discriminator_gradients(networks)
    expected = named_discriminator_tensors(tensors, "D/grad.")
    assert len(expected) == 36
    for name, gradient in expected.items():
        assert relative(gradients[name], gradient) < GRADIENT, name
    norm = torch.cat([g.flatten() for g in gradients.values() if g is not None]).norm()
    assert norm.item() == pytest.approx(tensors["D/grad_norm_before_clip"].item(), rel=GRADIENT)

    torch.nn.utils.clip_grad_norm_(networks.discriminators.parameters(), 10.0)
    torch.optim.Adam(networks.discriminators.parameters(), lr=2e-3, betas=(0.0, 0.999)).step()
    weights = dict(networks.discriminators.named_parameters())
    for name, after in named_discriminator_tensors(tensors, "D/after.").items():
        # Adam's first step is lr·sign(gradient), which rounding decides where the gradient vanishes
        sure = (
            expected[name].abs() > 1e-6
            if name in expected
            else torch.zeros_like(after, dtype=torch.bool)
        )
        assert torch.allclose(weights[name][sure], after[sure], atol=1e-5), name
        assert torch.equal(weights[name][~sure], after[~sure]) or name in expected, name


def test_logits_and_penalty_of_each_image(networks: Networks, tensors: dict[str, Tensor]) -> None:
    main, aux = (tensors["real_imgs"].clone().requires_grad_(True) for _ in range(2))
    logits = networks.judge([main, aux], 1.0)[0]
    assert relative(logits, tensors["D/r_preds"]) < LOSS
    penalties = torch.cat([squared_gradient(logits[:4], main), squared_gradient(logits[4:], aux)])
    assert relative(R1_WEIGHT * penalties, tensors["D/grad_penalty"]) < LOSS
    generated = [*tensors["D/gen_imgs"].chunk(2)]
    assert relative(networks.judge(generated, 1.0)[0], tensors["D/g_preds"]) < LOSS


def test_generator_step(networks: Networks, tensors: dict[str, Tensor]) -> None:
    weights = dict(networks.discriminators.named_parameters())
    for name, after in named_discriminator_tensors(tensors, "D/after.").items():
        weights[name].data.copy_(after)
    out = fake(networks, tensors, "G")
    assert worst(images(out), tensors["G/gen_imgs"]) < 1e-4
    result = generator_step(networks, out)
    assert result["g_loss"].item() == pytest.approx(tensors["G/loss"].item(), rel=LOSS)

    parameters = dict(networks.generator.named_parameters())
    compared = 0
    for key, gradient in below(tensors, "G/grad.").items():
        name = generator_name(key, networks.generator.networks)
        if name is None:
            continue
        own = parameters[name].grad
        assert own is not None, name
        assert relative(own, gradient.view_as(own)) < GRADIENT, name
        compared += 1
    assert compared == len(parameters)
    norm = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(tensors["G/grad_norm_before_clip"].item(), rel=GRADIENT)
    with torch.no_grad():
        assert (
            relative(networks.judge([out.image, out.aux_image], 1.0)[0], tensors["G/g_preds"])
            < LOSS
        )


def named_discriminator_gradients(networks: Networks) -> dict[str, Tensor]:
    return {
        name: p.grad for name, p in networks.discriminators.named_parameters() if p.grad is not None
    }


def named_discriminator_tensors(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    named = {}
    for key, value in below(tensors, prefix).items():
        which, rest = key.split("_disc.", 1)
        named[f"{which}.{discriminator_name(rest)}"] = value
    return named
