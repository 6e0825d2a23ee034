"""The geometry table reveals flat, hollow and shuffled geometry; costs agree with arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from cips3d.camera import Camera
from cips3d.heads import SyntheticHeads
from cips3d.metrics.evaluation import Evaluation, evaluate, geometry_table
from cips3d.metrics.geometry import YAWS, correlation, correlation_with_mean, detail, speckle
from cips3d.metrics.measures import GEOMETRY
from cips3d.metrics.views import Subjects
from cips3d.models.config import GeneratorConfig
from cips3d.models.cost import discriminator_cost, generator_cost
from cips3d.models.discriminator import DiscriminatorConfig, ProgressiveDiscriminator
from cips3d.models.generator import Generator
from cips3d.models.types import RenderOutput

HEADS = 8


# ---------------------------------------------------------------- parts of the table
def test_correlation() -> None:
    a = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert correlation(a, 3 * a + 5) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(
        3 / math.sqrt(4 * 28.75)
    )
    assert correlation(a, torch.full((4,), 0.3)) == 0  # a constant side
    assert correlation(a[:2], a[:2]) == 0  # too few pairs
    # a tiny relief on a large offset
    assert correlation(
        1 + 1e-3 * torch.linspace(0, 1, 50), torch.linspace(0, 1, 50)
    ) == pytest.approx(1, abs=1e-3)


def test_speckle_counts_isolated_pixels_but_no_edges() -> None:
    images = SyntheticHeads(resolution=32).render(range(HEADS)).images.float() / 127.5 - 1
    flat = torch.zeros(2, 3, 32, 32)
    edge = flat.clone()
    edge[..., 16:] = 1
    assert speckle(flat) == 0
    assert speckle(edge) == 0
    values = []
    for share in (0.0, 0.02, 0.1):
        salt = torch.rand(HEADS, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < share
        values.append(speckle(torch.where(salt, 1.0, images)))
    assert values[1] > 1.2 * values[0]
    assert values[2] > 2 * values[0]


def test_a_blurred_image_has_less_detail() -> None:
    images = SyntheticHeads(resolution=32).render(range(HEADS)).images.float() / 127.5 - 1
    assert detail(torch.nn.functional.avg_pool2d(images, 3, 1, 1)) < 0.8 * detail(images)
    assert detail(torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2)) == 0.5


# ---------------------------------------------------------------- constructed geometries
class TrueHeads(Generator):
    """Renders unseen embedded heads, altered by `change`."""

    change: Callable[[RenderOutput], RenderOutput]
    #: From the requested yaw to the one that is rendered.
    turned: Callable[[Tensor], Tensor]

    def render(self, codes: Any, camera: Camera, resolution: Any = None, **_: Any) -> RenderOutput:
        poses, batch = self.config.poses, len(codes)
        first = int(codes.shape[0, 0])  # subjects are rendered in several batches
        yaw, pitch = camera.yaw_pitch()
        shown = Camera.orbit(self.turned(yaw), pitch, poses.radius, poses.fov)
        truth = SyntheticHeads().truth()
        return self.change(
            truth.render(range(first, first + batch), shown, resolution, unseen=True)
        )

    def sample_latents(self, count: int, seed: Any) -> Any:
        latents = super().sample_latents(count, seed)
        return replace(latents, shape=torch.arange(count).float()[:, None].expand(-1, 8))


class Report:
    """The geometry table of altered heads, and the correlation with the true mean head by yaw."""

    def __init__(
        self,
        change: Callable[[RenderOutput], RenderOutput] = lambda out: out,
        turned: Callable[[Tensor], Tensor] = lambda yaw: yaw,
        yaw_mean: float = 0.0,
    ) -> None:
        poses = replace(tiny.GENERATOR.poses, yaw_mean=yaw_mean)
        generator = TrueHeads(replace(tiny.GENERATOR, poses=poses))
        generator.change, generator.turned = change, turned
        dataset = SyntheticHeads(resolution=32)
        self.table: Evaluation = geometry_table(generator, dataset, HEADS)
        subjects = Subjects.generated(generator, generator.sample_latents(HEADS, 0), 32)
        truth = Subjects.true(dataset.truth(), range(HEADS), 32)
        self.shape_correlation = {
            round(math.degrees(yaw)): correlation_with_mean(
                subjects.from_angles(yaw), truth.from_angles(yaw)
            )
            for yaw in YAWS
        }

    def __getattr__(self, name: str) -> float:
        return self.table.values[name]


@pytest.fixture(scope="module")
def truth() -> Report:
    return Report()


def test_true_heads_pass(truth: Report) -> None:
    assert truth.view_agreement > 0.95
    assert truth.shape_correlation.keys() == {-30, 0, 30}
    assert min(truth.shape_correlation.values()) > 0.8
    mean = sum(truth.shape_correlation.values()) / 3
    assert truth.table.values["shape_correlation"] == pytest.approx(mean)
    assert truth.non_flatness > 10
    assert truth.table.values == pytest.approx(truth.table.reference)
    assert truth.last_sample_share == 0
    assert tuple(truth.table.values) == GEOMETRY
    assert len(truth.table.lines()) == 1 + len(GEOMETRY)


def test_a_plane_is_flat() -> None:
    flat = Report(lambda out: replace(out, depth=torch.where(out.opacity > 0.5, 1.0, 1.12)))
    assert flat.non_flatness == 1
    assert all(abs(value) < 1e-6 for value in flat.shape_correlation.values())
    assert abs(flat.view_agreement) < 0.8


def test_heads_that_do_not_turn_disagree_between_views(truth: Report) -> None:
    still = Report(turned=torch.zeros_like)
    assert still.shape_correlation[0] == pytest.approx(truth.shape_correlation[0])
    assert still.view_agreement < truth.view_agreement - 0.05
    assert still.shape_correlation[30] < truth.shape_correlation[30] - 0.1


def test_heads_that_turn_the_other_way_disagree_more(truth: Report) -> None:
    mirrored = Report(turned=torch.neg)
    still = Report(turned=torch.zeros_like)
    assert mirrored.view_agreement < still.view_agreement - 0.1
    assert mirrored.shape_correlation[30] < truth.shape_correlation[30] - 0.1


def test_depth_turned_inside_out_is_not_a_head() -> None:
    hollow = Report(lambda out: replace(out, depth=2 - out.depth))
    assert max(hollow.shape_correlation.values()) < -0.8


def test_depth_of_another_pixel_is_not_a_head() -> None:
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))
    shuffle = lambda x: x.flatten(2)[..., order].view_as(x)  # noqa: E731
    shuffled = Report(lambda out: replace(out, depth=shuffle(out.depth)))
    assert all(abs(value) < 0.2 for value in shuffled.shape_correlation.values())
    assert abs(shuffled.view_agreement) < 0.3


def test_salt_in_the_images_is_speckle(truth: Report) -> None:
    salt = torch.rand(HEADS, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.05
    salted = Report(lambda out: replace(out, image=torch.where(salt, 1.0, out.image)))
    assert salted.speckle > 1.5 * salted.table.reference["speckle"]
    assert salted.non_flatness == truth.non_flatness


def test_learned_cameras_may_have_drifted(truth: Report) -> None:
    """A generator's subjects may look anywhere, as long as its cameras know where."""
    drifted = Report(turned=lambda yaw: yaw - 0.3, yaw_mean=0.3)
    assert drifted.shape_correlation == pytest.approx(truth.shape_correlation, abs=1e-3)
    assert drifted.table.values["shape_correlation"] == pytest.approx(
        truth.table.values["shape_correlation"], abs=1e-3
    )


def without_density(background: str) -> Generator:
    torch.manual_seed(0)
    generator = Generator(tiny.generator(background=background))
    with torch.no_grad():
        generator.nerf.density.weight.zero_()
        generator.nerf.density.bias.fill_(-1.0)
    return generator


def test_an_image_on_the_far_plane_lies_on_the_last_sample() -> None:
    painted = geometry_table(without_density("last"), SyntheticHeads(resolution=32), 4).values
    assert painted["last_sample_share"] > 0.99
    assert painted["non_flatness"] == 1  # the background is not a subject


def test_an_empty_volume_gives_zeros_instead_of_an_error() -> None:
    empty = geometry_table(without_density("plain"), SyntheticHeads(resolution=32), 2).values
    assert empty["non_flatness"] == 1 and empty["view_agreement"] == 0
    assert all(map(math.isfinite, empty.values()))


def test_a_dataset_without_truth_has_the_measures_that_need_none(tmp_path: Any) -> None:
    from cips3d.data import ImageDataset

    data = ImageDataset(tiny.images(tmp_path / "data"), 8)
    found = evaluate(Generator(tiny.GENERATOR), data, count=2)
    assert not found.reference
    assert {"warp_error", "view_agreement", "non_flatness", "mirror_jump"} <= found.values.keys()
    assert not {"pose_error", "depth_error", "shape_correlation"} & found.values.keys()


# ---------------------------------------------------------------- cost
def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters() -> None:
    assert generator_cost(tiny.GENERATOR, 8).parameters == parameters(Generator(tiny.GENERATOR))
    config = DiscriminatorConfig({4: 8, 8: 8, 16: 4})
    assert discriminator_cost(config, 16).parameters == parameters(ProgressiveDiscriminator(config))


def test_work_grows_with_the_pixels() -> None:
    costs = {side: generator_cost(tiny.GENERATOR, side) for side in (8, 16, 32)}
    # modulating the weights does not depend on the pixels: it drops out of differences
    for kind in ("flops", "saved_bytes"):
        small, middle, large = (getattr(costs[side], kind) for side in (8, 16, 32))
        assert large - middle == pytest.approx(4 * (middle - small), rel=0.02), kind
    config = DiscriminatorConfig({4: 8, 8: 8, 16: 8, 32: 8})
    small, middle, large = (discriminator_cost(config, side).flops for side in (8, 16, 32))
    assert large - middle == pytest.approx(4 * (middle - small), rel=0.02)


def test_the_papers_generator_costs_what_arithmetic_says() -> None:
    config = GeneratorConfig()
    cost = {side: generator_cost(config, side) for side in (16, 32)}
    per_pixel = (cost[32].flops - cost[16].flops) / (32 * 32 - 16 * 16)
    # first layer from V_r, 17 inner ones, tRGB from block 3 on
    inr = 2 * (32 * 512 + 17 * 512 * 512 + 6 * 512 * 3)
    samples = config.sampling.coarse + config.sampling.fine
    # second layer, density; first layer once per ray and pass
    densities = samples * 2 * (128 * 128 + 128) + 2 * 2 * 2 * 3 * 128
    # two layers, density, feature layer
    nerf = samples * 2 * (3 * 128 + 128 * 128 + 128 + 128 * 64)
    ray = 2 * (64 * 32 + 32 * 3)  # linear feature, auxiliary colour
    assert per_pixel == pytest.approx(inr + densities + nerf + ray, rel=1e-3)
    # in round figures: 18 layers of 512², 24 samples of 53 kFLOP in the authors' order
    assert per_pixel - densities == pytest.approx(18 * 2 * 512**2 + 24 * 53e3, rel=0.06)
    assert cost[16].parameters == pytest.approx(11.27e6, rel=1e-3)


def test_saved_bytes_are_those_of_a_real_forward_pass() -> None:
    torch.manual_seed(0)
    generator = Generator(tiny.GENERATOR)
    with torch.no_grad():  # thin fog: every sample is seen but the last, which has no length
        generator.nerf.density.weight.zero_()
        generator.nerf.density.bias.fill_(0.1)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        generator.render_rays(
            generator.map(generator.sample_latents(1, 0)),
            Camera.orbit(0.0).rays(16, 16),
            generator.sampling,
        )
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measured <= generator_cost(tiny.GENERATOR, 16).saved_bytes <= 1.12 * measured
