"""FID, KID, precision and recall: generated and real images compared as sets of features.

The name of a metric states everything that its value depends on: `fid50k_full` compares 50,000
generated images with the whole dataset, `fid2k` 2,000 with 2,000 random ones, `kid…` likewise.
With features other than Inception's, names are `fd2k_heads` or `kd10k_full_efficientnet`.
`fid3d50k_full` pools several views of fewer subjects. `precision2k`, `recall2k`, `density2k` and
`coverage2k` tell fidelity from diversity (`cips3d.metrics.neighbours`).
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
from typing import Any, Literal, cast

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
from cips3d.metrics.neighbours import KINDS, NEAREST, Kind, neighbourhood
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
#: Views of each subject in a distance of pooled views.
VIEWS = 8
_NAME = re.compile(
    rf"(?:(fid|kid|fd|kd)(3d)?|({'|'.join(KINDS)}))([1-9]\d{{0,8}})(k?)(_full)?"
    r"(?:_(heads|efficientnet))?"
)


@dataclass(frozen=True)
class FidelityMetric:
    """A metric, as its name describes it."""

    name: str  # such as fid50k_full
    kind: Literal["frechet", "kernel"] | Kind  # distance (FID, KID), or a measure of neighbours
    count: int  # of generated images
    full: bool  # compares with all real images instead of `count` random ones
    network: NetworkName
    views: int = 1  # of each subject, by independent cameras

    @property
    def least(self) -> int:
        """Images of each kind that it needs."""
        return NEAREST[self.kind] + 1 if self.kind in NEAREST else 2

    @staticmethod
    def parse(name: str) -> FidelityMetric:
        """The metric with this name; raises UserError if there is none."""
        match = _NAME.fullmatch(name)
        distance, pooled, neighbours, number, thousands, full, network = (
            [None] * 7 if match is None else match.groups()
        )
        other = distance in ("fd", "kd")
        if number is None or (distance is not None and other == (network is None)):
            raise UserError(
                f"metric {name}: unknown; give fid, kid, recall or coverage and a number of "
                "images, such as fid50k_full or recall2k, or fd, kd, recall or coverage and the "
                "name of another network, such as fd2k_heads or coverage2k_efficientnet"
            )
        kernel = "kernel" if distance in ("kid", "kd") else "frechet"
        metric = FidelityMetric(
            name,
            cast(Kind, neighbours) or kernel,
            int(number) * (1000 if thousands else 1),
            full is not None,
            cast(NetworkName, network or "inception"),
            VIEWS if pooled else 1,
        )
        if metric.count < metric.least:
            raise UserError(f"metric {name}: needs at least {metric.least} images")
        return metric


class Fidelity:
    """Measures generators against datasets, and caches the features of real images on disk.

    Args:
        names: see `FidelityMetric`.
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
        default = os.environ.get("CIPS3D_CACHE") or platformdirs.user_cache_path("cips3d")
        self.cache = cache or Path(default)
        needed: dict[NetworkName, None] = dict.fromkeys(m.network for m in self.metrics)
        self.networks = {name: feature_network(name, inception_weights) for name in needed}

    def __call__(self, generator: ImageGenerator, dataset: Dataset) -> dict[str, float]:
        """Values by name. Where there are several processes, all call it and get the same values.

        Generated images have the dataset's resolution.

        Raises:
            UserError: if an image cannot be read, or the dataset has a single one.
        """
        values: dict[str, float] = {}
        # metrics share generated images and features
        fakes: dict[tuple[str, int, int], Tensor] = {}
        for metric in self.metrics:
            network = self.networks[metric.network]
            key = (metric.network, metric.count, metric.views)
            network.module.to(generator.device)
            if key not in fakes:
                part = _process_share(metric.count)
                images = generated_images(
                    generator, metric.count, dataset.resolution, self.seed, part, metric.views
                )
                fakes[key] = _features(network, images, generator.device)
            real = self._real_features(metric, dataset, generator.device)
            if metric.kind == "frechet" or metric.kind == "kernel":
                value = distance(real, fakes[key], metric.kind == "kernel", self.seed)
            else:
                value = neighbourhood(metric.kind, _gathered(real), _gathered(fakes[key]))
            values[metric.name] = value
        return values

    def record(self, dataset: Dataset) -> dict[str, Any]:
        """What the values depend on besides the generator and the names, JSON-ready."""
        return {
            "real_images": {m.name: len(self._real_indices(m, dataset)) for m in self.metrics},
            "seed": self.seed,
            "networks": {name: network.key for name, network in self.networks.items()},
        }

    def _real_indices(self, metric: FidelityMetric, dataset: Dataset) -> list[int]:
        """The images of the dataset that a metric compares with."""
        if metric.full or metric.count >= len(dataset):
            return list(range(len(dataset)))
        draws = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(dataset), generator=draws, device=draws.device)
        return drawn[: metric.count].tolist()

    def _real_features(
        self, metric: FidelityMetric, dataset: Dataset, device: torch.device
    ) -> Float[Tensor, "share width"]:
        """This process's share of the features of the real images, from the cache if possible."""
        network, indices = self.networks[metric.network], self._real_indices(metric, dataset)
        if len(indices) < metric.least:
            raise UserError(
                f"metric {metric.name}: needs at least {metric.least} images; the dataset has "
                f"{len(indices)}"
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
        workers = 0  # a CPU is busy with the features; some datasets draw batches in threads
        if device.type != "cpu" and dataset.batch_hint == 1:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            workers = min(_MAX_WORKERS, (os.cpu_count() or 1) // processes)
        loader = DataLoader(
            Subset(dataset, indices[part]),  # pyright: ignore[reportArgumentType] (a protocol)
            batch_size=BATCH,
            num_workers=workers,
            worker_init_fn=serve_to_the_end,
        )
        features = _features(network, loader, device)
        try:
            with atomic_path(path) as temporary:
                save_file({"features": features.cpu()}, temporary)
        except UserError as error:  # the measurement is worth more than the cache
            logger.warning(
                "features of real images are not cached: %s (CIPS3D_CACHE sets another folder)",
                error,
            )
        return features


@torch.no_grad()
def generated_images(
    generator: ImageGenerator,
    count: int,
    resolution: int,
    seed: int = 0,
    part: slice = slice(None),
    views: int = 1,
) -> Iterator[UInt8[Tensor, "batch 3 side side"]]:
    """Batches of generated images (ψ 1) from independent cameras of the generator's prior.

    An image depends on its index, the count of all images and the seed. `part`: those to render.
    `views` in a row show one subject.
    """
    draws = torch.Generator().manual_seed(seed)
    subjects = generator.sample_latents(-(-count // views), draws)
    latents = subjects[torch.arange(count) // views][part]
    cameras = generator.config.poses.sample(count, draws)[part]
    for start in range(0, len(latents), BATCH):
        piece = slice(start, start + BATCH)
        image = generator.render(latents[piece], cameras[piece], resolution, psi=1.0).image
        yield (image * 127.5 + 127.5).nan_to_num(0.0).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def _features(
    network: FeatureNetwork, batches: Iterable[Tensor], device: torch.device
) -> Float[Tensor, "share width"]:
    """Features of all images in one tensor, which is empty for an empty share."""
    parts = [network.extract(images.to(device)) for images in batches]
    return torch.cat([torch.empty(0, network.width, dtype=torch.float32, device=device), *parts])


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _process_share(count: int) -> slice:
    """This process's consecutive share of `count` items."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    return slice(count * rank // processes, count * (rank + 1) // processes)


def _gathered(features: Float[Tensor, "share width"]) -> Float[Tensor, "count width"]:
    """All processes' features, on each of them."""
    if features.device.type == "mps":  # no double precision
        features = features.cpu()
    if not _distributed():
        return features
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(features))


class _GivenFeatures(nn.Identity):
    """Stands in for torchmetrics' own network: passes features through."""

    num_features: int


def distance(
    real: Float[Tensor, "real width"],
    fake: Float[Tensor, "fake width"],
    kernel: bool = False,
    seed: int = 0,
) -> float:
    """Fréchet or kernel distance between two sets of features; each process passes its share.

    The kernel distance is the squared MMD of the cubic kernel, averaged over subsets that the seed
    draws.
    """
    # imported here because they take a second
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if real.device.type == "mps":  # no double precision
        real, fake = real.cpu(), fake.cpu()
    given = _GivenFeatures()
    given.num_features = real.shape[1]
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
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        warnings.simplefilter("ignore")  # about the memory of features, which is small
        subset_size = int(min(KID_SUBSET_SIZE, *sizes.tolist()))
        kid = KernelInceptionDistance(given, KID_SUBSETS, subset_size).to(real.device)
        kid.update(real, real=True)
        kid.update(fake, real=False)
        torch.default_generator.manual_seed(seed)  # torchmetrics draws subsets from it
        return float(kid.compute()[0])
