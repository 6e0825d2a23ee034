import inspect
import io
import json
import multiprocessing
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from cips3d.camera import Camera, PoseDistribution
from cips3d.data import Dataset, ImageDataset, Truth, open_dataset
from cips3d.errors import UserError
from cips3d.heads import HeadNetwork, SyntheticHeads, raycast, shading
from cips3d.heads.archive import write_heads
from cips3d.heads.dataset import ATTRIBUTES, FAR_DEPTH
from cips3d.heads.raycast import BOUND, HAIR_LABEL, SKIN_LABEL


@pytest.fixture(scope="module")
def heads():
    return SyntheticHeads(size=200, resolution=32)


@pytest.fixture(scope="module")
def batch(heads):
    return heads.render(range(40))


def points(batch):
    """(B, H·W, 3) world points of all pixels."""
    side = batch.depth.shape[-1]
    rays = batch.camera.rays(side, side)
    return rays.origins + batch.depth.flatten(1)[..., None] * rays.directions


def ball(center, radius):
    """The parts table of one ball."""
    part = np.zeros((1, raycast.PART_COLUMNS))
    part[0, raycast.CENTER : raycast.CENTER + 3] = center
    part[0, raycast.AXES : raycast.AXES + 9] = (np.eye(3) * radius).ravel()
    part[0, raycast.PRESENT], part[0, raycast.LABEL] = 1, SKIN_LABEL
    return part


class TestItems:
    def test_do_not_depend_on_order_batch_size_or_threads(self, heads):
        together = heads.__getitems__([3, 1, 2, 17])
        assert torch.equal(together[0], heads[3]) and torch.equal(together[3], heads[17])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = heads.__getitems__([17, 2, 1, 3])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(together[i], alone[j]) for i, j in ((0, 3), (1, 2), (2, 1), (3, 0)))
        assert torch.equal(SyntheticHeads(size=10**12, resolution=32)[17], together[3])
        assert torch.equal(heads.render([17]).images[0], together[3])

    def test_seed_and_index_matter(self, heads):
        assert not torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], SyntheticHeads(resolution=32, seed=1)[0])

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forked_workers_give_the_same(self, heads):
        heads.__getitems__(range(8))  # threads have run before the fork
        loader = torch.utils.data.DataLoader(
            heads, batch_size=8, num_workers=1, multiprocessing_context="fork"
        )
        assert torch.equal(next(iter(loader)), torch.stack(heads.__getitems__(range(8))))

    @pytest.mark.parametrize("index", [200, -201])
    def test_index_out_of_range(self, heads, index):
        with pytest.raises(IndexError, match="200 images"):
            heads[index]

    def test_last_index_from_the_end(self, heads):
        assert torch.equal(heads[-1], heads[199])

    @pytest.mark.parametrize("side", [1, 2, 5])
    @pytest.mark.parametrize("style", ["natural", "cartoon"])
    def test_tiny_images(self, side, style):
        assert SyntheticHeads(resolution=side, style=style)[0].shape == (3, side, side)


class TestProtocol:
    def test_both_datasets_have_it(self, heads, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        photos = ImageDataset(tmp_path, 8)
        assert isinstance(heads, Dataset) and isinstance(photos, Dataset)
        assert photos.truth() is None and not isinstance(photos, Truth)
        assert heads.batch_hint > photos.batch_hint == 1

    def test_isinstance_computes_no_fingerprint(self, heads, monkeypatch):
        def fail(_):
            raise AssertionError

        monkeypatch.setattr(SyntheticHeads, "fingerprint", property(fail))
        assert isinstance(heads, Dataset)

    @pytest.mark.parametrize(("name", "cartoon"), [("heads", False), ("heads-cartoon", True)])
    def test_truth_renders_the_same_heads(self, name, cartoon):
        dataset = open_dataset(name, 16)
        truth = dataset.truth()
        assert isinstance(truth, Truth) and truth.cartoon is cartoon
        camera = Camera.from_label(dataset.camera_labels(range(4)))
        out = truth.render(range(4), camera, 16)
        images = torch.stack([dataset[i] for i in range(4)]).float() / 127.5 - 1
        assert torch.equal(out.image, images) and torch.equal(out.aux_image, images)
        assert set(out.opacity.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(out.solid, out.opacity == 1) and not out.last_weight.any()
        assert ((out.depth[out.solid] - 1).abs() < truth.extent).all()
        assert isinstance(truth.reader(), HeadNetwork)

    def test_unseen_heads_are_those_of_the_next_seed(self, heads):
        camera, other = heads.cameras(range(4)), SyntheticHeads(resolution=32, seed=1)
        out = heads.truth().render(range(4), camera, 24, unseen=True)
        expected = other.render(range(4), camera, 24).images.float() / 127.5 - 1
        assert torch.equal(out.image, expected)


class TestGeometry:
    def test_one_ball_has_the_depth_of_its_equation(self):
        camera = Camera.orbit(0.5, -0.3, radius=0.7, fov=20.0)
        center, radius = torch.tensor([0.03, -0.02, 0.01]), 0.05
        depth, owner, _ = raycast.cast(
            ball(center.numpy(), radius), camera.cam_to_world[0].double().numpy(), 20.0, 24, 40
        )
        rays = camera.rays(24, 40)
        offset, direction = (rays.origins - center)[0].double(), rays.directions[0].double()
        b = (offset * direction).sum(-1)
        root = b**2 - offset.square().sum(-1) + radius**2
        expected = (-b - root.clamp(min=0).sqrt()).view(24, 40).numpy()
        length = (1 / np.tan(np.radians(10.0)) ** 2 + ((2 * np.arange(24) - 23) / 24)[:, None] ** 2
                  + ((2 * np.arange(40) - 39) / 24) ** 2) ** 0.5  # fmt: skip
        hit = (root > 1e-7).view(24, 40).numpy()
        assert (
            hit.sum() > 50
            and (owner[hit] == 0).all()
            and (owner[(root < -1e-7).view(24, 40).numpy()] == -1).all()
        )
        np.testing.assert_allclose((depth * length)[hit], expected[hit], atol=2e-5)

    def test_slab_and_carving_end_on_their_surfaces(self):
        part = ball((0.0, 0.0, 0.0), 0.1)
        part[0, raycast.SLAB_NORMAL + 2], part[0, raycast.SLAB_LOW], part[0, raycast.SLAB_HIGH] = (
            1.0,
            -1.0,
            0.06,
        )
        part[0, raycast.CARVED] = 1.0
        part[0, raycast.CARVE_CENTER : raycast.CARVE_CENTER + 3] = (0.0, 0.0, 0.08)
        part[0, raycast.CARVE_RADII : raycast.CARVE_RADII + 3] = 0.05
        pose = Camera.orbit(0.0)
        depth, _, side = raycast.cast(part, pose.cam_to_world[0].double().numpy(), 12.0, 21, 21)
        assert side[10, 10] == raycast.ON_CARVE and depth[10, 10] / np.tan(
            np.radians(6.0)
        ) == pytest.approx(1 - 0.03)
        assert side[10, 2] == raycast.ON_SLAB and depth[10, 2] / np.tan(
            np.radians(6.0)
        ) == pytest.approx(1 - 0.06)

    def test_parts_behind_the_camera_are_not_drawn(self):
        pose = Camera.orbit(0.0, radius=0.7).cam_to_world[0].double().numpy()
        pose[:3, :3] = np.diag([-1.0, 1.0, -1.0]) @ pose[:3, :3]
        assert (raycast.cast(ball((0.0, 0.0, 0.0), 0.1), pose, 40.0, 8, 8)[1] == -1).all()

    def test_every_ray_that_meets_an_ellipsoid_shows_it(self):
        """The box in the image cuts nothing off, off-centre and in a wide perspective."""
        draws = np.random.default_rng(0)
        camera = Camera.orbit(0.4, 0.2, radius=0.3, fov=70.0)
        rays = camera.rays(30, 20)
        for _ in range(20):
            turn = np.linalg.qr(draws.normal(size=(3, 3)))[0]
            radii, center = draws.uniform(0.005, 0.05, 3), draws.uniform(-0.05, 0.05, 3)
            part = ball(center, 1.0)
            part[0, raycast.AXES : raycast.AXES + 9] = (turn * radii[:, None]).ravel()
            _, owner, _ = raycast.cast(part, camera.cam_to_world[0].double().numpy(), 70.0, 30, 20)
            offset = (rays.origins[0].double().numpy() - center) @ turn.T / radii
            direction = rays.directions[0].double().numpy() @ turn.T / radii
            b, a = (offset * direction).sum(-1), (direction**2).sum(-1)
            root = (b**2 / a - (offset**2).sum(-1) + 1).reshape(30, 20)
            assert (owner[root > 1e-4] == 0).all() and (owner[root < -1e-4] == -1).all()

    def test_everything_is_inside_the_ball(self, heads):
        yaw, pitch = torch.linspace(-3, 3, 60), torch.linspace(-1.2, 1.2, 60).roll(23)
        views = heads.render(range(60), Camera.orbit(yaw, pitch, fov=20.0))
        hit = views.mask.flatten(1)
        assert points(views).norm(dim=-1)[hit].max() <= BOUND + 1e-5
        assert views.depth[views.mask].min() > 0.88 and views.depth[views.mask].max() < FAR_DEPTH
        assert (views.depth[~views.mask] == FAR_DEPTH).all()

    def test_two_views_agree(self, heads):
        """Surface points seen from one side lie on the surface seen from the other side."""
        indices, side = range(12), 128
        first = heads.render(indices, Camera.orbit(torch.full((12,), -0.15), 0.05), side)
        second = heads.render(indices, Camera.orbit(torch.full((12,), 0.15), 0.0), side)
        to_camera = torch.linalg.inv(second.camera.cam_to_world)
        local = points(first) @ to_camera[:, :3, :3].transpose(1, 2) + to_camera[:, None, :3, 3]
        grid = (
            local[..., :2] * torch.tensor([1.0, -1.0]) / -local[..., 2:] / np.tan(np.radians(6.0))
        )
        sample = {"grid": grid[:, None], "mode": "nearest", "align_corners": False}
        seen = torch.nn.functional.grid_sample(second.depth, **sample)[:, 0, 0]
        nearest = -torch.nn.functional.max_pool2d(-second.depth, 3, stride=1, padding=1)
        nearest = torch.nn.functional.grid_sample(nearest, **sample)[:, 0, 0]
        inside = first.mask.flatten(1) & (grid.abs() < 0.98).all(-1)
        distance = local.norm(dim=-1)
        # the others are hidden, or on steep slopes
        assert ((distance - seen)[inside].abs() < 0.002).float().mean() > 0.8
        # never empty space where there is a surface
        assert (distance - nearest)[inside].min() > -0.001

    def test_mask_and_labels_agree(self, batch):
        assert torch.equal(batch.mask, batch.labels > 0)
        assert 0.25 < batch.mask.float().mean() < 0.75

    def test_camera_inside_the_head(self, heads):
        with pytest.raises(UserError, match="inside the head"):
            heads.render([0], Camera.orbit(0.0, radius=0.1))


class TestAttributes:
    def test_names_and_batch_size(self, batch):
        assert tuple(batch.attributes) == ATTRIBUTES
        assert all(len(value) == 40 for value in batch.attributes.values())

    def test_camera_is_drawn_from_the_poses(self):
        poses = PoseDistribution(
            "uniform", yaw_std=0.1, pitch_mean=0.2, pitch_std=0.05, radius=0.9, fov=14.0
        )
        batch = SyntheticHeads(resolution=2, poses=poses).render(range(300))
        assert (
            batch.attributes["yaw"].abs().max() <= 0.1001 and batch.attributes["yaw"].std() > 0.04
        )
        assert (batch.attributes["pitch"] - 0.2).abs().max() <= 0.0501
        torch.testing.assert_close(batch.camera.position.norm(dim=-1), torch.full((300,), 0.9))
        normal = SyntheticHeads().cameras(range(4000)).yaw_pitch()
        assert normal[0].mean().abs() < 0.02 and normal[0].std() == pytest.approx(0.3, rel=0.05)
        assert normal[1].std() == pytest.approx(0.155, rel=0.05)

    def test_bangs_cover_their_side_of_the_forehead(self):
        front = SyntheticHeads(resolution=48).render(range(150), Camera.orbit(torch.zeros(150)))
        side, style, hat = (front.attributes[name] for name in ("bangs_side", "hair_style", "hat"))
        use = (side != 0) & (hat == 0) & (style > 0)
        forehead = points(front).view(150, 48, 48, 3)[..., 1]
        forehead = (front.labels[:, 0] == HAIR_LABEL) & (forehead > 0.015) & (forehead < 0.05)
        forehead[:, :, :14] = forehead[:, :, 34:] = False
        more_to_the_right = forehead[:, :, 24:].sum((1, 2)) - forehead[:, :, :24].sum((1, 2))
        assert use.sum() > 60
        assert (more_to_the_right[use] * side[use] > 0).float().mean() > 0.97

    def test_background_is_plain_and_as_stated(self, batch):
        corner = batch.images[:, :, 0, 0].float() / 255
        torch.testing.assert_close(corner, batch.attributes["background"], atol=0.51 / 255, rtol=0)

    def test_supersampling_only_smooths(self):
        coarse, fine = (SyntheticHeads(resolution=32, supersampling=n)[4].float() for n in (1, 4))
        assert 0.5 < (coarse - fine).abs().mean() < 8
        large = SyntheticHeads(resolution=128, supersampling=1)[4].float()
        # averaging a larger image has the same effect
        assert (torch.nn.functional.avg_pool2d(large, 4) - fine).abs().mean() < 0.5


class TestStyles:
    def test_share_geometry_and_poses_but_not_looks(self, heads, batch):
        cartoon = SyntheticHeads(size=200, resolution=32, style="cartoon").render(range(40))
        assert torch.equal(cartoon.depth, batch.depth) and torch.equal(cartoon.labels, batch.labels)
        assert torch.equal(cartoon.camera.cam_to_world, batch.camera.cam_to_world)
        assert (cartoon.images.float() - batch.images.float()).abs().mean() > 5

    def test_light_comes_from_the_world(self):
        """A ball seen from the light's side is bright, from the other side dark."""
        part, image = ball((0.0, 0.0, 0.0), 0.05), np.empty((3, 9, 9), dtype=np.uint8)
        part[0, raycast.COLOR : raycast.COLOR + 3] = 0.5
        levels = []
        for sign in (1, -1):
            camera = Camera.look_at(sign * torch.tensor([shading.LIGHT]))
            pose, tints = camera.cam_to_world[0].double().numpy(), np.zeros((0, 8))
            samples = raycast.cast(part, pose, 12.0, 18, 18)
            shading.draw(part, tints, pose, 12.0, *samples, np.zeros(3), False, image)
            levels.append(int(image[0, 4, 4]))
        assert levels[0] > 1.5 * levels[1]


class TestExport:
    def test_zip_round_trip(self, heads, batch, tmp_path):
        write_heads(tmp_path / "heads.zip", heads, count=5)
        with zipfile.ZipFile(tmp_path / "heads.zip") as archive:
            labels = json.loads(archive.read("dataset.json"))["labels"]
            attributes = json.loads(archive.read("attributes.json"))
            pixels = np.stack(
                [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name, _ in labels]
            )
        assert labels[0][0] == "00000/img00000000.png" and len(labels) == 5
        assert torch.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2), batch.images[:5])
        camera = Camera.from_label(torch.tensor([label for _, label in labels]))
        torch.testing.assert_close(camera.cam_to_world, batch.camera.cam_to_world[:5])
        torch.testing.assert_close(camera.fov, batch.camera.fov[:5])
        entry = attributes["attributes"]["00000/img00000003.png"]
        assert (
            entry["bangs_side"] == int(batch.attributes["bangs_side"][3])
            and attributes["kinds"]["hat"][0] == "none"
        )
        assert [p.name for p in tmp_path.iterdir()] == ["heads.zip"]

    def test_folder(self, heads, tmp_path):
        write_heads(tmp_path / "new" / "heads", heads, count=2)
        files = sorted(
            str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*.*")
        )
        assert files == [
            "heads/00000/img00000000.png",
            "heads/00000/img00000001.png",
            "heads/attributes.json",
            "heads/dataset.json",
        ]

    def test_equal_datasets_are_equal_files(self, heads, tmp_path):
        for name in ("a.zip", "b.zip"):
            write_heads(tmp_path / name, heads, count=2)
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()

    @pytest.mark.parametrize("name", ["there.zip", "there"])
    def test_never_overwrites(self, heads, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match="it exists"):
            write_heads(tmp_path / name, heads, count=1)
        assert (tmp_path / name).read_text() == "mine"

    @pytest.mark.parametrize("name", ["heads.zip", "heads"])
    def test_failure_leaves_nothing(self, heads, tmp_path, monkeypatch, name):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match=r"heads.*No space left"):
            write_heads(tmp_path / name, heads, count=1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["x.zip", "x"])
    def test_parent_is_a_file(self, heads, tmp_path, name):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write"):
            write_heads(tmp_path / "file" / name, heads, count=1)

    def test_count_out_of_range(self, heads, tmp_path):
        with pytest.raises(UserError, match="count is 201"):
            write_heads(tmp_path / "x.zip", heads, count=201)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"resolution": 0}, "resolution is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"supersampling": 0}, "supersampling is 0"),
    ],
)
def test_faulty_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        SyntheticHeads(**arguments)


def test_unknown_style():
    unchecked = inspect.unwrap(
        SyntheticHeads.__init__
    )  # the tests' type checker would be first to object
    with pytest.raises(UserError, match="style is 'oil'; choose 'natural' or 'cartoon'"):
        unchecked(object.__new__(SyntheticHeads), style="oil")


def test_render_argument_errors(heads):
    with pytest.raises(UserError, match="2 cameras for 1 indices"):
        heads.render([0], Camera.orbit(torch.zeros(2)))
    with pytest.raises(UserError, match="resolution is 0"):
        heads.render([0], resolution=0)
