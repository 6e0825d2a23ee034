"""SyntheticHeads: the embedded dataset of stylised 3D heads with known camera and geometry.

Every image is a pure function of (seed, index): the head's traits and shape, its camera and its
plain background. Heads look towards +z and lie inside a ball of radius `raycast.BOUND` around the
origin: a camera on the unit sphere sees them at depths 1 ± `EXTENT`. The light and the side of the
bangs are fixed in the world, so a mirrored image does not occur in the dataset.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cips3d.camera import Camera, PoseDistribution
from cips3d.configuration import Configuration, Count, Seed, to_dict, validated
from cips3d.errors import UserError
from cips3d.heads import raycast, shading
from cips3d.heads.network import HeadNetwork, load_head_network
from cips3d.heads.shapes import head_parts
from cips3d.heads.traits import Draws, draw_traits
from cips3d.models.types import RenderOutput

Style = Literal["natural", "cartoon"]
#: Half depth of the volume around the origin that contains all heads, world units.
EXTENT = 0.12
#: Depth of background pixels, beyond all heads for cameras at radius 1, world units.
FAR_DEPTH = 1 + EXTENT
#: Attributes of an image: the camera's yaw and pitch, radians, then fields of `Traits`.
ATTRIBUTES = (
    "yaw", "pitch", "bangs_side", "hair_style", "hat", "beard", "mouth", "collar", "glasses",
    "sunglasses", "earring_side", "skin_color", "hair_color", "eye_color", "cloth_color",
    "hat_color", "background",
)  # fmt: skip


@dataclass(frozen=True)
class HeadBatch:
    """Rendered heads and everything that is known about them."""

    images: UInt8[Tensor, "batch 3 height width"]  # RGB
    #: Distance to the first surface along the unit ray through the pixel's centre, or FAR_DEPTH.
    depth: Float[Tensor, "batch 1 height width"]
    mask: Bool[Tensor, "batch 1 height width"]  # whether the pixel's centre shows the head
    labels: UInt8[Tensor, "batch 1 height width"]  # numbers into `raycast.LABELS` there
    camera: Camera
    attributes: dict[str, Tensor]  # (B,) or (B, 3) tensors by name, see ATTRIBUTES


@dataclass(frozen=True)
class SyntheticHeads(Configuration, Dataset[Tensor]):
    """A dataset of `size` images of heads; item i is a (3, R, R) uint8 tensor.

    Images do not depend on `size`. Each seed gives other heads. The styles are "natural" light and
    "cartoon": the same heads and cameras in flat tones with ink lines.
    """

    label: ClassVar[str] = "synthetic heads"
    #: Images share the work of a call, and are drawn in threads.
    batch_hint = 64
    has_cameras = True

    size: Annotated[int, Ge(1)] = 50_000
    resolution: Count = 64
    seed: Seed = 0
    style: Style = "natural"
    poses: PoseDistribution = PoseDistribution()  # noqa: RUF009 (frozen)
    supersampling: Count = 2  # samples per pixel along each side

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """The images at `indices`. A DataLoader calls it for each batch."""
        draw = self._draws(indices)
        traits, camera = draw_traits(draw), self._drawn_cameras(draw)
        tables = head_parts(draw, traits)
        images = self._images(tables, traits.background, camera, self.resolution)
        return list(torch.from_numpy(images))

    def cameras(self, indices: Sequence[int]) -> Camera:
        """The cameras of the images at `indices`."""
        return self._drawn_cameras(self._draws(indices))

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """The cameras of the images at `indices` as labels (see `Camera.to_label`)."""
        return self.cameras(indices).to_label()

    def check_cameras(self) -> None:
        """Does nothing: all cameras are centred pinholes in rigid poses."""

    def truth(self) -> HeadTruth:
        """The heads behind the images."""
        return HeadTruth(self)

    def description(self) -> dict[str, Any]:
        """The settings that the images depend on, JSON-ready."""
        settings = to_dict(self)
        return {"name": self.label, "images": settings.pop("size"), **settings}

    @property
    def fingerprint(self) -> str:
        """A hash of the description and of some images, which the drawing code also changes."""
        digest = hashlib.blake2b(json.dumps(self.description()).encode(), digest_size=16)
        for image in self.__getitems__(range(min(self.batch_hint, self.size))):
            digest.update(image.numpy().tobytes())
        return digest.hexdigest()

    def render(
        self,
        indices: Sequence[int],
        cameras: Camera | None = None,
        resolution: int | None = None,
        colours_of: Sequence[int] | None = None,
    ) -> HeadBatch:
        """Renders the heads at `indices` with everything that is known about them.

        Cameras (one per index), resolution and colours (those of other heads) are the heads' own by
        default.

        Raises:
            IndexError: if an index is outside the dataset.
            UserError: if the number of cameras is wrong, or one is inside the heads.
        """
        draw = self._draws(indices)
        side = self.resolution if resolution is None else resolution
        side = validated(Count, side, f"{self.label}: resolution")
        camera = self._drawn_cameras(draw) if cameras is None else cameras
        if len(camera) != len(draw):
            fault = f"{len(camera)} cameras for {len(draw)} indices; give one camera per index"
            raise UserError(f"{self.label}: {fault}")
        if bool((camera.position.norm(dim=-1) <= raycast.BOUND).any()):
            remedy = f"keep it more than {raycast.BOUND} from the origin"
            raise UserError(f"{self.label}: a camera is inside the head; {remedy}")
        traits = draw_traits(draw)
        if colours_of is not None:
            traits = traits.coloured_as(draw_traits(self._draws(colours_of)))
        tables = head_parts(draw, traits)
        images = self._images(tables, traits.background, camera, side)
        depth, labels = _depth_and_labels(tables[0], camera, side)
        yaw, pitch = camera.yaw_pitch()
        attributes = {"yaw": yaw.cpu(), "pitch": pitch.cpu()}
        for name in ATTRIBUTES[2:]:
            value = torch.from_numpy(getattr(traits, name))
            attributes[name] = value.float() if value.is_floating_point() else value
        mask = labels != raycast.BACKGROUND_LABEL
        arrays = [torch.from_numpy(array) for array in (images, depth, mask, labels)]
        return HeadBatch(*arrays, camera=camera, attributes=attributes)

    def _draws(self, indices: Sequence[int]) -> Draws:
        numbers = [operator.index(i) for i in indices]
        for i in numbers:
            if not -self.size <= i < self.size:
                raise IndexError(f"index {i} is outside a dataset of {self.size} images")
        return Draws(self.seed, np.asarray([i % self.size for i in numbers], dtype=np.int64))

    def _drawn_cameras(self, draw: Draws) -> Camera:
        standard = draw.normal if self.poses.kind == "gaussian" else draw
        draws = np.stack([standard("camera yaw"), standard("camera pitch")], axis=-1)
        return self.poses.camera(torch.from_numpy(draws.astype(np.float32)))

    def _images(
        self, tables: tuple[np.ndarray, ...], backgrounds: np.ndarray, camera: Camera, side: int
    ) -> np.ndarray:
        (parts, tints), (poses, fovs) = tables, _as_arrays(camera)
        images = np.empty((len(parts), 3, side, side), dtype=np.uint8)
        fine, cartoon = side * self.supersampling, self.style == "cartoon"

        def draw_one(i: int) -> None:
            samples = raycast.cast(parts[i], poses[i], fovs[i], fine, fine)
            shading.draw(
                parts[i], tints[i], poses[i], fovs[i], *samples, backgrounds[i], cartoon, images[i]
            )

        _for_all(draw_one, len(images))
        return images


@dataclass(frozen=True)
class HeadTruth:
    """The heads of a `SyntheticHeads` as a `cips3d.data.Truth`."""

    heads: SyntheticHeads
    extent: float = EXTENT

    @property
    def poses(self) -> PoseDistribution:
        return self.heads.poses

    @property
    def cartoon(self) -> bool:
        return self.heads.style == "cartoon"

    def render(
        self,
        indices: Sequence[int],
        camera: Camera,
        resolution: int,
        *,
        unseen: bool = False,
        colours_of: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> RenderOutput:
        # unseen heads are those of the next seed
        heads = replace(self.heads, seed=self.heads.seed + 1) if unseen else self.heads
        batch = heads.render(indices, camera, resolution, colours_of)
        image = batch.images.to(device).float() / 127.5 - 1
        opacity = batch.mask.to(device).float()
        none = torch.zeros_like(opacity)
        return RenderOutput(image, image, batch.depth.to(device), opacity, none)

    def reader(self) -> HeadNetwork:
        return load_head_network()


def _depth_and_labels(parts: np.ndarray, camera: Camera, side: int) -> tuple[np.ndarray, ...]:
    """Depths along unit rays (float32) and labels (uint8) at pixel centres, (B, 1, side, side)."""
    poses, fovs = _as_arrays(camera)
    depth = np.empty((len(parts), 1, side, side), dtype=np.float32)
    labels = np.empty(depth.shape, dtype=np.uint8)
    across = (2 * np.arange(side) + 1 - side) / side
    plane = across[:, None] ** 2 + across[None, :] ** 2

    def cast_one(i: int) -> None:
        along, owner, _ = raycast.cast(parts[i], poses[i], fovs[i], side, side)
        ray_length = np.sqrt(plane + np.tan(np.radians(fovs[i]) / 2) ** -2)
        depth[i, 0] = np.where(owner < 0, FAR_DEPTH, along * ray_length)
        labels[i, 0] = np.where(owner < 0, raycast.BACKGROUND_LABEL, parts[i, owner, raycast.LABEL])

    _for_all(cast_one, len(parts))
    return depth, labels


def _as_arrays(camera: Camera) -> list[np.ndarray]:
    if camera.span is not None:
        raise UserError("heads: they are drawn by pinhole cameras only; give one of those")
    return [x.detach().cpu().double().numpy() for x in (camera.cam_to_world, camera.fov)]


def _for_all(task: Callable[[int], None], count: int) -> None:
    """Runs task(0) … task(count - 1) in as many threads as torch uses (one in a worker process).

    The threads end with the call, so that a later fork is safe.
    """
    threads = min(torch.get_num_threads(), os.cpu_count() or 1, count)
    numbers = iter(range(count))  # shared: each free thread takes the next number

    def work(_: int) -> None:
        for i in numbers:
            task(i)

    if threads <= 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))  # raises the errors of the tasks
