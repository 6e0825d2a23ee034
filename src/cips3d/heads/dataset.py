"""SyntheticHeads: the embedded dataset, stylised 3D heads with known camera, depth, labels and attributes.

Every picture is a pure function of (seed, index): the head's traits and shape, its camera and its plain background. Heads
look to +z, fill about ±0.1 around the origin and lie inside a ball of radius 0.118: a camera on the unit sphere sees them
between the depths 0.88 and 1.12. The light and the side of the bangs belong to the world: a mirrored picture is wrong.
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
from cips3d.configuration import Configuration, Count, Seed, to_dict
from cips3d.errors import UserError
from cips3d.heads import raycast, shading
from cips3d.heads.shapes import head_parts
from cips3d.heads.traits import Draws, draw_traits

if TYPE_CHECKING:
    from cips3d.heads.truth import HeadTruth

Style = Literal["natural", "cartoon"]
#: The depth of background pixels (world units), beyond all heads for cameras at radius 1.
FAR_DEPTH = 1.12
#: Attributes of a picture; kinds are numbers into the tuples of `head_traits`, colours red, green and blue in [0, 1].
ATTRIBUTES = (
    "yaw",  # radians, of the camera
    "pitch",  # radians, of the camera
    "bangs_side",  # -1, 0 (no bangs) or +1: the sign of the world's x where the fringe covers the forehead
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
    "background",  # (3,), exactly the colour of the background's pixels but for rounding
)


@dataclass(frozen=True)
class HeadBatch:
    """Rendered heads.

    Attributes:
        images: (B, 3, H, W) red, green and blue, 0 to 255.
        depth: (B, 1, H, W) distance along the unit ray of the pixel's centre to the first surface; FAR_DEPTH where there is
            none.
        mask: (B, 1, H, W) True where the pixel's centre shows the head.
        labels: (B, 1, H, W) what the pixel's centre shows, numbers into `raycast.LABELS`.
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
    poses: PoseDistribution = PoseDistribution()
    supersampling: Count = 2

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """The pictures at `indices`; what a DataLoader calls for a batch."""
        draw = self._draws(indices)
        traits = draw_traits(draw)
        images = self._images(
            head_parts(draw, traits), traits.background, self._drawn_cameras(draw), self.resolution
        )
        return list(torch.from_numpy(images))

    def cameras(self, indices: Sequence[int]) -> Camera:
        """The cameras of the pictures at `indices`."""
        return self._drawn_cameras(self._draws(indices))

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """The cameras of the pictures at `indices` as labels (see `Camera.to_label`)."""
        return self.cameras(indices).to_label()

    def check_cameras(self) -> None:
        """Raises nothing: drawn cameras are centered pinholes in rigid poses."""

    def truth(self) -> HeadTruth:
        """The heads behind the images."""
        from cips3d.heads.truth import HeadTruth

        return HeadTruth(self)

    def description(self) -> dict[str, Any]:
        """What the pictures depend on, JSON-ready."""
        return {
            "name": "synthetic heads", "style": self.style, "pictures": self.size, "resolution": self.resolution,
            "seed": self.seed, "poses": to_dict(self.poses), "supersampling": self.supersampling,
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """The same for two datasets only if their pictures are, very likely: a hash of the description and of 64 pictures."""
        digest = hashlib.blake2b(json.dumps(self.description()).encode(), digest_size=16)
        # without pictures a change of the drawing code would go unnoticed
        for picture in self.__getitems__(range(min(self.batch_hint, self.size))):
            digest.update(picture.numpy().tobytes())
        return digest.hexdigest()

    def render(
        self, indices: Sequence[int], cameras: Camera | None = None, resolution: int | None = None
    ) -> HeadBatch:
        """The heads at `indices` with all that is known about them.

        Args:
            indices: B numbers of pictures.
            cameras: one camera per index, outside the heads; None for the pictures' own.
            resolution: pixels along each side; None for the dataset's.

        Raises:
            IndexError: if an index is outside the dataset.
            UserError: if the cameras do not fit the indices, or the resolution is below 1.
        """
        draw = self._draws(indices)
        side = self.resolution if resolution is None else resolution
        if side < 1:
            raise UserError(f"synthetic heads: resolution is {side}; it must be at least 1")
        camera = self._drawn_cameras(draw) if cameras is None else cameras
        if len(camera) != len(draw):
            raise UserError(
                f"synthetic heads: {len(camera)} cameras for {len(draw)} indices; give one camera per index"
            )
        if bool((camera.position.norm(dim=-1) <= raycast.BOUND).any()):
            raise UserError(
                f"synthetic heads: a camera is inside the head; keep it more than {raycast.BOUND} from the origin"
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
                raise IndexError(f"index {i} is outside a dataset of {self.size} pictures")
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

        fine = side * self.supersampling
        cartoon = self.style == "cartoon"

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
    """Depths along unit rays, (B, 1, side, side) float32, and labels, uint8, at the pixels' centres."""
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
    """Run task(0) … task(count - 1) in plain threads, as many as torch uses (one in a DataLoader's worker).

    The threads end with the call: nothing is left behind that a fork could break.
    """
    threads = min(torch.get_num_threads(), os.cpu_count() or 1, count)
    numbers = iter(range(count))  # shared: a thread takes the next number when it is free

    def work(_: int) -> None:
        for i in numbers:
            task(i)

    if threads <= 1:
        work(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))  # raises what a task raised
