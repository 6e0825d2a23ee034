"""What the rest of the package asks of a dataset, and of the ground truth that some have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# before Python 3.12, typing's isinstance() evaluates properties, and a fingerprint takes time
from typing_extensions import Protocol, runtime_checkable

from cips3d.camera import Camera, PoseDistribution
from cips3d.models.types import RenderOutput

if TYPE_CHECKING:
    from cips3d.heads.network import HeadNetwork


@runtime_checkable
class Truth(Protocol):
    """The 3D subjects that a synthetic dataset shows."""

    @property
    def poses(self) -> PoseDistribution:
        """The distribution of the dataset's cameras."""
        ...

    @property
    def extent(self) -> float:
        """Half depth of the volume around the origin that contains the subjects, world units."""
        ...

    @property
    def cartoon(self) -> bool:
        """Whether the images are drawn as cartoons."""
        ...

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
        """Renders subjects, each from a camera outside it.

        Args:
            indices: B subjects, by the number of their image in the dataset.
            unseen: takes subjects from the same distribution that the dataset does not show.
            colours_of: B subjects whose colours they take; their own by default.
            device: where the output is stored.

        Returns:
            Images in [-1, 1] (`aux_image` is the same), depth, opacity 1 on the subject and 0
            elsewhere, `last_weight` 0.
        """
        ...

    def reader(self) -> HeadNetwork:
        """The network that predicts pose, identity, depth and attributes from images."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Square images by index, which `torch.utils.data.DataLoader` can load."""

    @property
    def resolution(self) -> int:
        """Side of the images, pixels."""
        ...

    @property
    def batch_hint(self) -> int:
        """Images that are efficient to load at once; 1 where worker processes speed up loading."""
        ...

    @property
    def has_cameras(self) -> bool:
        """Whether every image has a camera label."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the images depend on; takes time."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> UInt8[Tensor, "3 side side"]: ...

    def camera_labels(self, indices: Sequence[int]) -> Float[Tensor, "batch 25"]:
        """Camera labels of images (see `Camera.from_label`); requires `has_cameras`."""
        ...

    def check_cameras(self) -> None:
        """Raises UserError if a label is not of a centred pinhole camera in a rigid pose."""
        ...

    def description(self) -> dict[str, Any]:
        """The settings that the images depend on, JSON-ready; "name" is what the user calls it."""
        ...

    def truth(self) -> Truth | None:
        """The 3D subjects behind the images, or None where nothing is known of them."""
        ...
