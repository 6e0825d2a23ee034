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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

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
from cips3d.heads.shapes import head_parts
from cips3d.heads.traits import Draws, draw_traits

if TYPE_CHECKING:
    from cips3d.heads.truth import HeadTruth

Style = Literal["natural", "cartoon"]
#: Half depth of the volume around the origin that contains all heads, world units.
EXTENT = 0.12
#: Depth of background pixels, beyond all heads for cameras at radius 1, world units.
FAR_DEPTH = 1 + EXTENT
#: Attributes of an image. Kinds are numbers into the tuples of `traits`, colours RGB in [0, 1].
ATTRIBUTES = (
    "yaw",  # radians, of the camera
    "pitch",  # radians, of the camera
    "bangs_side",  # -1, 0 (none) or +1: sign of the world's x where the fringe covers the forehead
    "hair_style",  # number into HAIR_STYLES
    "hat",  # number into HATS
    "beard",  # number into BEARDS
    "mouth",  # number into MOUTHS
    "collar",  # number into COLLARS
    "glasses",  # bool
    "sunglasses",  # bool
    "earring_side",  # -1, 0 (none) or +1, as for bangs
    "skin_color",  # (3,)
    "hair_color",  # (3,), also of brows and beard; set for bald heads too
    "eye_color",  # (3,)
    "cloth_color",  # (3,)
    "hat_color",  # (3,); set without a hat too
    "background",  # (3,), the colour of background pixels up to rounding
)


@dataclass(frozen=True)
class HeadBatch:
    """Rendered heads and everything that is known about them.

    Attributes:
        images: (B, 3, H, W) RGB, 0 to 255.
        depth: (B, 1, H, W) distance to the first surface along the unit ray through the pixel's
            centre; FAR_DEPTH where there is none.
        mask: (B, 1, H, W) True where the pixel's centre shows the head.
        labels: (B, 1, H, W) numbers into `raycast.LABELS` at the pixels' centres.
        camera: the B cameras.
        attributes: name (see ATTRIBUTES) -> (B,) or (B, 3) tensor.
    """

    images: UInt8[Tensor, "batch 3 height width"]
    depth: Float[Tensor, "batch 1 height width"]
    mask: Bool[Tensor, "batch 1 height width"]
    labels: UInt8[Tensor, "batch 1 height width"]
    camera: Camera
    attributes: dict[str, Tensor]


@dataclass(frozen=True)
class SyntheticHeads(Configuration, Dataset[Tensor]):
    """A dataset of `size` images of heads; item i is a (3, R, R) uint8 tensor.

    Args:
        size: number of images. Images do not depend on it.
        resolution: side of the images, pixels.
        seed: each seed gives other heads.
        style: "natural" light, or "cartoon": the same heads and cameras in flat tones with ink
            lines.
        poses: distribution of the cameras.
        supersampling: samples per pixel along each side.

    Raises:
        UserError: if an argument is out of range.
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
    supersampling: Count = 2

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """The images at `indices`. A DataLoader calls it for each batch."""
        draw = self._draws(indices)
        traits = draw_traits(draw)
        images = self._images(
            head_parts(draw, traits), traits.background, self._drawn_cameras(draw), self.resolution
        )
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
        from cips3d.heads.truth import HeadTruth

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
        self, indices: Sequence[int], cameras: Camera | None = None, resolution: int | None = None
    ) -> HeadBatch:
        """Renders the heads at `indices` with everything that is known about them.

        Args:
            indices: numbers of B images.
            cameras: one camera per index, outside the heads. Default: the images' own.
            resolution: side of the images, pixels. Default: the dataset's.

        Raises:
            IndexError: if an index is outside the dataset.
            UserError: if the number of cameras is wrong, one is inside the heads, or the resolution
                is below 1.
        """
        draw = self._draws(indices)
        side = self.resolution
        if resolution is not None:
            side = validated(Count, resolution, f"{self.label}: resolution")
        camera = self._drawn_cameras(draw) if cameras is None else cameras
        if len(camera) != len(draw):
            raise UserError(
                f"{self.label}: {len(camera)} cameras for {len(draw)} indices; "
                "give one camera per index"
            )
        if bool((camera.position.norm(dim=-1) <= raycast.BOUND).any()):
            raise UserError(
                f"{self.label}: a camera is inside the head; "
                f"keep it more than {raycast.BOUND} from the origin"
            )
        traits = draw_traits(draw)
        tables = head_parts(draw, traits)
        images = self._images(tables, traits.background, camera, side)
        depth, labels = _depth_and_labels(tables[0], camera, side)
        yaw, pitch = camera.yaw_pitch()
        attributes = {"yaw": yaw.cpu(), "pitch": pitch.cpu()}
        for name in ATTRIBUTES[2:]:
            value = torch.from_numpy(getattr(traits, name))
            attributes[name] = value.float() if value.is_floating_point() else value
        return HeadBatch(
            images=torch.from_numpy(images),
            depth=torch.from_numpy(depth),
            mask=torch.from_numpy(labels != raycast.BACKGROUND_LABEL),
            labels=torch.from_numpy(labels),
            camera=camera,
            attributes=attributes,
        )

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
        self,
        tables: tuple[np.ndarray, np.ndarray],
        backgrounds: np.ndarray,
        camera: Camera,
        side: int,
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


def _depth_and_labels(
    parts: np.ndarray, camera: Camera, side: int
) -> tuple[np.ndarray, np.ndarray]:
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


def _as_arrays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    return (
        camera.cam_to_world.detach().cpu().double().numpy(),
        camera.fov.detach().cpu().double().numpy(),
    )


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
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))  # raises the errors of the tasks
