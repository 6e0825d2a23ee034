"""What each code changes, and whether a middle stands out, on constructed subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cips3d.camera import Camera, PoseDistribution
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.metrics.disentanglement import (
    Recombined,
    colours,
    forms,
    image_change,
    share_of_appearance,
)
from cips3d.metrics.geometry import hollow_share, relief
from cips3d.metrics.views import Images, Subjects
from cips3d.models.types import RenderOutput

COUNT = 32
OWN, NEXT = [*range(COUNT)], [COUNT - 1, *range(COUNT - 1)]


@pytest.fixture(scope="module")
def network() -> HeadNetwork:
    return load_head_network()


def heads(shapes: list[int] = OWN, colours_of: list[int] = OWN) -> Subjects:
    return Subjects.true(SyntheticHeads(seed=3).truth(), shapes, 64, colours_of=colours_of)


def test_heads_in_the_colours_of_others_keep_their_shape() -> None:
    camera = Camera.orbit(torch.linspace(-0.3, 0.3, 4))
    dataset = SyntheticHeads()
    own, other, mixed = (
        dataset.render(indices, camera, 32, colours_of)
        for indices, colours_of in ((range(4), None), (range(4, 8), None), (range(4), range(4, 8)))
    )
    assert torch.equal(mixed.depth, own.depth) and torch.equal(mixed.labels, own.labels)
    for name, values in mixed.attributes.items():
        coloured = name.endswith("_color") or name == "background"
        assert torch.equal(values, (other if coloured else own).attributes[name]), name
    assert torch.equal(dataset.render(range(4), camera, 32, range(4)).images, own.images)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_true_heads_colours_and_forms_belong_to_their_codes(
    swapped: bool, network: HeadNetwork
) -> None:
    """The shape code decides the forms, the appearance code the colours; or the reverse."""
    parts = heads(colours_of=NEXT), heads(NEXT)
    recombined = Recombined(*(parts[::-1] if swapped else parts))
    view, truth = heads().from_prior(0), heads().from_prior(1)
    appearance_share, leak = (
        share_of_appearance(read, network, view, recombined, truth) for read in (colours, forms)
    )
    if swapped:
        appearance_share, leak = 1 - appearance_share, 1 - leak
    assert appearance_share > 0.95 and leak < 0.05


def test_codes_that_do_nothing_and_codes_that_do_the_same(network: HeadNetwork) -> None:
    own, other = heads(), heads(NEXT, NEXT)
    view = own.from_prior(0)

    def shares(*subjects: Subjects) -> list[float]:
        found = Recombined(*subjects)
        return [share_of_appearance(read, network, view, found, view) for read in (colours, forms)]

    assert shares(own, other) == [0, 0] and shares(other, own) == [1, 1]
    assert shares(other, other) == [0.5, 0.5]
    assert all(math.isnan(share) for share in shares(own, own))


def painted(values: Tensor) -> Subjects:
    """Subjects that are images of one brightness each."""
    image = values.float()[:, None, None, None].expand(-1, 3, 4, 4)
    out = RenderOutput(image, image, *[torch.ones(len(values), 1, 4, 4)] * 3)
    return Subjects(len(values), PoseDistribution(), 0.1, lambda _: out)


def test_the_share_is_its_formula(network: HeadNetwork) -> None:
    """x = s + a/2 is read as it is and in other units, which the true variance takes out."""
    shape, appearance = torch.tensor([0.1, 0.4, -0.2, 0.3]), torch.tensor([0.2, -0.6, 0.0, 0.5])
    other_shape, other_appearance = shape.roll(1), appearance.roll(1)
    own = painted(shape + appearance / 2)
    recombined = Recombined(
        painted(shape + other_appearance / 2), painted(other_shape + appearance / 2)
    )

    def read(_: HeadNetwork, images: Images) -> Mapping[str, Tensor]:
        brightness = images.mean(dim=(1, 2, 3))[:, None]
        return {"it": brightness, "the same": 3 * brightness, "nothing": torch.ones(4, 2)}

    by_appearance = float(((appearance - other_appearance) / 2).square().mean())
    by_shape = float((shape - other_shape).square().mean())
    view = own.from_prior(0)
    found = share_of_appearance(read, network, view, recombined, own.from_prior(1))
    assert found == pytest.approx(by_appearance / (by_appearance + by_shape))
    assert image_change(view, recombined.other_appearance) == pytest.approx(
        float((appearance - other_appearance).abs().mean()) / 2
    )


# ---------------------------------------------------------------- the middle and its ring
def surface(height: Callable[[Tensor], Tensor], solid: float = 1.0) -> Subjects:
    """Surfaces z = h(r), with r the distance of a pixel from the middle in image sides."""

    def render(camera: Camera) -> RenderOutput:
        rays = camera.rays(64, 96)
        side = torch.tan(torch.deg2rad(camera.fov) / 2)[:, None]
        across = rays.directions[..., :2] / -rays.directions[..., 2:]
        z = height(across.norm(dim=-1) / (2 * side))
        depth = ((rays.origins[..., 2] - z) / -rays.directions[..., 2]).unflatten(1, (64, 96))
        opacity = torch.full_like(depth, solid)[:, None]
        image = torch.zeros(len(depth), 3, 64, 96)
        return RenderOutput(image, image, depth[:, None], opacity, torch.zeros_like(opacity))

    return Subjects(2, PoseDistribution(), 0.12, render)


def test_a_relief_is_the_middles_height_over_the_ring() -> None:
    plane, bump = surface(lambda r: 0 * r + 0.03), surface(lambda r: 0.02 * (r < 0.15) + 0.01)
    torch.testing.assert_close(relief(plane), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(relief(bump), torch.full((2,), 0.02), rtol=0, atol=1e-6)
    assert hollow_share(relief(bump)) == 0
    bowl = surface(lambda r: 0.3 * r**2)
    assert hollow_share(relief(bowl)) == 1
    empty = relief(surface(lambda r: 0 * r, solid=0.0))
    assert bool(empty.isnan().all()) and math.isnan(hollow_share(empty))
    assert hollow_share(torch.tensor([0.1, -0.1, math.nan])) == 0.5


def test_true_heads_stand_out_and_masks_of_them_are_hollow() -> None:
    true = heads()
    assert hollow_share(relief(true)) == 0

    def inside_out(camera: Camera) -> RenderOutput:
        out = true.render(camera)
        return replace(out, depth=torch.where(out.solid, 2 - out.depth, out.depth))

    assert hollow_share(relief(replace(true, render=inside_out))) == 1
