"""FID and KID: distances between generated and real images, as distributions of features.

The name of a metric states everything that its value depends on: `fid50k_full` compares 50,000
generated images with the whole dataset, `fid2k` 2,000 with 2,000 random ones, `kid…` likewise.
With features other than Inception's, names are `fd2k_heads` or `kd10k_full_efficientnet`.
torchmetrics computes the distances, also across processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cips3d.data.protocol import Dataset
from cips3d.errors import UserError
from cips3d.files import atomic_path
from cips3d.interrupts import serve_to_the_end
from cips3d.metrics.features import FeatureNetwork, NetworkName, feature_network
from cips3d.models.protocol import ImageGenerator

#: Images per call of a feature network or a generator.
BATCH = 32
#: Largest number of processes that decode real images for a GPU.
_MAX_WORKERS = 8
#: Features that are added to the sums of a FID at a time, in double precision.
_FID_BATCH = 4096
#: Subsets that a KID is averaged over, and their size (torch-fidelity's).
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
logger = logging.getLogger(__name__)
_NAME = re.compile(r"(fid|kid|fd|kd)([1-9]\d{0,8})(k?)(_full)?(?:_(heads|efficientnet))?")


@dataclass(frozen=True)
class FidelityMetric:
    """A metric, as its name describes it.

    Attributes:
        name: such as fid50k_full.
        kernel: kernel distance (KID) instead of Fréchet distance (FID).
        count: number of generated images.
        full: compare with all real images instead of `count` random ones.
        network: the feature network.
    """

    name: str
    kernel: bool
    count: int
    full: bool
    network: NetworkName

    @staticmethod
    def parse(name: str) -> FidelityMetric:
        """The metric with this name.

        Raises:
            UserError: if there is none.
        """
        match = _NAME.fullmatch(name)
        if match is None or (match[1] in ("fid", "kid")) != (match[5] is None):
            raise UserError(
                f"metric {name}: unknown; give fid or kid and a number of images, such as "
                "fid50k_full or kid2k, or fd or kd and the name of another network, such as "
                "fd2k_heads or kd2k_efficientnet"
            )
        count = int(match[2]) * (1000 if match[3] else 1)
        if count < 2:
            raise UserError(f"metric {name}: a distance needs at least 2 images")
        network = cast(NetworkName, match[5] or "inception")
        return FidelityMetric(name, match[1] in ("kid", "kd"), count, match[4] is not None, network)


class Fidelity:
    """Measures generators against datasets, and caches the features of real images on disk.

    Args:
        names: of the metrics (see `FidelityMetric`).
        inception_weights: see `cips3d.metrics.features.feature_network`.
        cache: folder for the features. Default: $CIPS3D_CACHE, or the user's cache folder.
        seed: of latents, cameras, the choice of real images and KID's subsets.

    Raises:
        UserError: for an unknown name, and where a network is not available.
    """

    def __init__(
        self,
        names: Sequence[str],
        inception_weights: Path | None = None,
        cache: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.metrics = [FidelityMetric.parse(name) for name in names]
        self.seed = seed
        self.cache = cache or Path(
            os.environ.get("CIPS3D_CACHE") or platformdirs.user_cache_path("cips3d")
        )
        needed: list[NetworkName] = list(dict.fromkeys(metric.network for metric in self.metrics))
        self.networks = {name: feature_network(name, inception_weights) for name in needed}

    def __call__(self, generator: ImageGenerator, dataset: Dataset) -> dict[str, float]:
        """Values by name. Where there are several processes, all call it and get the same values.

        Args:
            dataset: the real images; generated ones are rendered at its resolution.

        Raises:
            UserError: if an image cannot be read, or the dataset has a single one.
        """
        values: dict[str, float] = {}
        device = generator.device
        # metrics that share generated images and features
        groups = dict.fromkeys((metric.network, metric.count) for metric in self.metrics)
        for network, count in groups:
            features = self.networks[network].to(device)
            images = generated_images(
                generator, count, dataset.resolution, self.seed, _process_share(count)
            )
            fake = _joined(features, map(features.extract, images), device)
            for metric in self.metrics:
                if (metric.network, metric.count) == (network, count):
                    real = self._real_features(features, metric, dataset, device)
                    values[metric.name] = distance(real, fake, metric.kernel, self.seed)
        return values

    def record(self, dataset: Dataset) -> dict[str, Any]:
        """What the values depend on besides the generator and the names, JSON-ready."""
        counts = {m.name: len(self._real_indices(m, dataset)) for m in self.metrics}
        return {
            "real_images": counts,
            "seed": self.seed,
            "networks": {name: network.key for name, network in self.networks.items()},
        }

    # ---------------------------------------------------------------- real images
    def _real_indices(self, metric: FidelityMetric, dataset: Dataset) -> list[int]:
        """The images of the dataset that a metric compares with."""
        if metric.full or metric.count >= len(dataset):
            return list(range(len(dataset)))
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))
        return drawn[: metric.count].tolist()

    @torch.no_grad()
    def _real_features(
        self,
        network: FeatureNetwork,
        metric: FidelityMetric,
        dataset: Dataset,
        device: torch.device,
    ) -> Float[Tensor, "share width"]:
        """This process's share of the features of the real images, from the cache if possible."""
        indices = self._real_indices(metric, dataset)
        if len(indices) < 2:
            raise UserError(
                f"metric {metric.name}: the dataset has a single image; a distance needs at least 2"
            )
        part = _process_share(len(indices))
        chosen_by = None if len(indices) == len(dataset) else self.seed
        key = [network.key, dataset.fingerprint, chosen_by, len(indices), part.start, part.stop]
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
        path = self.cache / f"{digest}.safetensors"
        try:
            return load_file(path)["features"].to(device)
        except (OSError, KeyError, SafetensorError):  # missing or damaged
            pass
        loader = DataLoader(
            Subset(dataset, indices[part]),  # pyright: ignore[reportArgumentType] (a protocol)
            batch_size=BATCH,
            num_workers=_loading_workers(dataset, device),
            worker_init_fn=serve_to_the_end,
        )
        extracted = (network.extract(images.to(device)) for images in loader)
        features = _joined(network, extracted, device)
        try:
            with atomic_path(path) as temporary:
                save_file({"features": features.cpu()}, temporary)
        except UserError as error:  # the measurement is worth more than the cache
            logger.warning(
                "features of real images are not cached: %s (CIPS3D_CACHE sets another folder)",
                error,
            )
        return features


def _loading_workers(dataset: Dataset, device: torch.device) -> int:
    """Processes that decode images for a GPU; a CPU is busy with the features."""
    if device.type == "cpu" or dataset.batch_hint > 1:
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return min(_MAX_WORKERS, cores)


@torch.no_grad()
def generated_images(
    generator: ImageGenerator,
    count: int,
    resolution: int,
    seed: int = 0,
    part: slice = slice(None),
) -> Iterator[UInt8[Tensor, "batch 3 side side"]]:
    """Generated images (ψ 1) from cameras of the generator's prior, in batches.

    An image depends on its index, the count and the seed.

    Args:
        count: number of all images.
        resolution: side, pixels.
        part: which of them to render.
    """
    draws = torch.Generator().manual_seed(seed)
    latents = generator.sample_latents(count, draws)[part]
    cameras = generator.config.poses.sample(count, draws)[part]
    for start in range(0, len(latents), BATCH):
        piece = slice(start, start + BATCH)
        image = generator.render(latents[piece], cameras[piece], resolution, psi=1.0).image
        yield (image * 127.5 + 127.5).nan_to_num(0.0).round().clamp(0, 255).to(torch.uint8)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _process_share(count: int) -> slice:
    """This process's consecutive share of `count` items."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    return slice(count * rank // processes, count * (rank + 1) // processes)


def _joined(
    network: FeatureNetwork, parts: Iterable[Tensor], device: torch.device
) -> Float[Tensor, "share width"]:
    """All features in one tensor, which is empty for an empty share."""
    return torch.cat([torch.empty(0, network.width, device=device), *parts])


class _Features(nn.Identity):
    """A feature network for torchmetrics that passes features through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def distance(
    real: Float[Tensor, "real width"],
    fake: Float[Tensor, "fake width"],
    kernel: bool = False,
    seed: int = 0,
) -> float:
    """Fréchet or kernel distance between two sets of features; each process passes its share.

    Args:
        kernel: the squared MMD of the cubic kernel, averaged over random subsets (KID), instead of
            the Fréchet distance (FID).
        seed: of the subsets.
    """
    # imported here because they take a second
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if real.device.type == "mps":  # no double precision
        real, fake = real.cpu(), fake.cpu()
    given = _Features(real.shape[1])
    if not kernel:
        fid = FrechetInceptionDistance(given).to(real.device)
        for features, is_real in ((real, True), (fake, False)):
            for part in features.split(_FID_BATCH):
                # the result has the type of the last update
                fid.update(part.double(), real=is_real)
        return float(fid.compute())
    sizes = real.new_tensor([len(real), len(fake)])
    if _distributed():
        dist.all_reduce(sizes)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about the memory of features, which is small
        subset_size = int(min(KID_SUBSET_SIZE, *sizes.tolist()))
        kid = KernelInceptionDistance(given, KID_SUBSETS, subset_size).to(real.device)
        kid.update(real, real=True)
        kid.update(fake, real=False)
        torch.default_generator.manual_seed(seed)  # torchmetrics draws subsets from it
        return float(kid.compute()[0])
