"""FID and KID: how far the generated pictures are from the dataset's, as distributions of a network's features.

A metric has a name that says all that its value depends on: `fid50k_full` compares 50,000 generated pictures with all of the
dataset, `fid2k` 2,000 with 2,000, `kid…` likewise; with features other than Inception's they are `fd2k_heads`,
`kd10k_full_efficientnet`. The distances are torchmetrics', which adds up what several processes have seen.
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

from cips3d.data import ImageDataset
from cips3d.errors import UserError
from cips3d.files import atomic_path
from cips3d.heads import SyntheticHeads
from cips3d.interrupts import serve_to_the_end
from cips3d.metrics.features import FeatureNetwork, NetworkName, feature_network
from cips3d.models.protocol import ImageGenerator

#: Pictures that pass a feature network, or a generator, at a time.
BATCH = 32
#: Processes that decode real pictures beside a GPU, at most.
_LOADING = 8
#: Features that go into the sums of a FID at a time, in double precision.
_SUMMED = 4096
#: Subsets that a KID is the mean over, and their size (torch-fidelity's).
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
logger = logging.getLogger(__name__)
_NAME = re.compile(r"(fid|kid|fd|kd)([1-9]\d{0,8})(k?)(_full)?(?:_(heads|efficientnet))?")


@dataclass(frozen=True)
class FidelityMetric:
    """What the name of a metric stands for.

    Attributes:
        name: as it was given.
        kernel: a kernel distance (KID) instead of Fréchet's (FID).
        count: generated pictures.
        full: compare with all real pictures instead of `count` random ones.
        network: whose features.
    """

    name: str
    kernel: bool
    count: int
    full: bool
    network: NetworkName

    @staticmethod
    def parse(name: str) -> FidelityMetric:
        """The metric of that name.

        Raises:
            UserError: if there is none.
        """
        match = _NAME.fullmatch(name)
        if match is None or (match[1] in ("fid", "kid")) != (match[5] is None):
            raise UserError(
                f"metric {name}: unknown; give fid or kid and a number of pictures, such as fid50k_full or kid2k, or fd or kd "
                "with another network's name at its end, such as fd2k_heads or kd2k_efficientnet"
            )
        count = int(match[2]) * (1000 if match[3] else 1)
        if count < 2:
            raise UserError(f"metric {name}: a distance needs at least 2 pictures")
        network = cast(NetworkName, match[5] or "inception")
        return FidelityMetric(name, match[1] in ("kid", "kd"), count, match[4] is not None, network)


class Fidelity:
    """Measures generators against datasets; real features are found once, and kept on the disk for the next time.

    Args:
        names: of the metrics (see `FidelityMetric`).
        inception_weights: see `cips3d.metrics.features.feature_network`.
        cache: folder for the real pictures' features. Default: $CIPS3D_CACHE, or the user's cache folder.
        seed: of latents, cameras, choice of real pictures and KID's subsets.

    Raises:
        UserError: for a name that is no metric's, and where a network cannot be had.
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

    def __call__(
        self, generator: ImageGenerator, dataset: SyntheticHeads | ImageDataset
    ) -> dict[str, float]:
        """The metrics of a generator, by name; of several processes all call it, and get the same values.

        Args:
            dataset: the real pictures; generated ones are made at its resolution.

        Raises:
            UserError: if a picture cannot be read, or the dataset has a single one.
        """
        values: dict[str, float] = {}
        device = generator.shape_mean.device
        for network, count in dict.fromkeys(
            (metric.network, metric.count) for metric in self.metrics
        ):
            features = self.networks[network].to(device)
            pictures = generated_pictures(
                generator, count, dataset.resolution, self.seed, _share(count)
            )
            fake = _joined(features, map(features.extract, pictures), device)
            for metric in self.metrics:
                if (metric.network, metric.count) == (network, count):
                    real = self._real_features(features, metric, dataset, device)
                    values[metric.name] = distance(real, fake, metric.kernel, self.seed)
        return values

    def record(self, dataset: SyntheticHeads | ImageDataset) -> dict[str, Any]:
        """What the values depend on besides the generator and the metrics' names, JSON-ready."""
        return {
            "real_pictures": {
                metric.name: len(self._real_indices(metric, dataset)) for metric in self.metrics
            },
            "seed": self.seed,
            "networks": {name: network.key for name, network in self.networks.items()},
        }

    # ---------------------------------------------------------------- real pictures
    def _real_indices(
        self, metric: FidelityMetric, dataset: SyntheticHeads | ImageDataset
    ) -> list[int]:
        """The pictures of the dataset that a metric compares with."""
        if metric.full or metric.count >= len(dataset):
            return list(range(len(dataset)))
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))
        return drawn[: metric.count].tolist()

    @torch.no_grad()
    def _real_features(
        self,
        network: FeatureNetwork,
        metric: FidelityMetric,
        dataset: SyntheticHeads | ImageDataset,
        device: torch.device,
    ) -> Float[Tensor, "share width"]:
        """This process's share of the features of the real pictures, from the cache where they are there."""
        indices = self._real_indices(metric, dataset)
        if len(indices) < 2:
            raise UserError(
                f"metric {metric.name}: the dataset has a single picture; a distance needs at least 2"
            )
        part = _share(len(indices))
        chosen_by = None if len(indices) == len(dataset) else self.seed
        key = [network.key, dataset.fingerprint, chosen_by, len(indices), part.start, part.stop]
        path = (
            self.cache
            / f"{hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()}.safetensors"
        )
        try:
            return load_file(path)["features"].to(device)
        except (OSError, KeyError, SafetensorError):  # not there, or damaged: made anew
            pass
        # pictures are decoded beside a GPU; a CPU has enough to do
        own = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        workers = (
            0 if device.type == "cpu" or isinstance(dataset, SyntheticHeads) else min(_LOADING, own)
        )
        loaded = DataLoader(
            Subset(dataset, indices[part]),
            batch_size=BATCH,
            num_workers=workers,
            worker_init_fn=serve_to_the_end,
        )
        features = _joined(
            network, (network.extract(pictures.to(device)) for pictures in loaded), device
        )
        try:
            with atomic_path(path) as temporary:
                save_file({"features": features.cpu()}, temporary)
        except UserError as error:  # no reason to lose what was measured
            logger.warning(
                "features of real pictures are not kept: %s (CIPS3D_CACHE names another folder)",
                error,
            )
        return features


@torch.no_grad()
def generated_pictures(
    generator: ImageGenerator,
    count: int,
    resolution: int,
    seed: int = 0,
    part: slice = slice(None),
) -> Iterator[UInt8[Tensor, "batch 3 side side"]]:
    """Generated pictures (ψ 1) from cameras of the generator's prior, in batches; each depends on its number, count and seed.

    Args:
        count: how many there are in all.
        resolution: side, pixels.
        part: which of them to make.
    """
    draws = torch.Generator().manual_seed(seed)
    latents, cameras = (
        generator.sample_latents(count, draws)[part],
        generator.config.poses.sample(count, draws)[part],
    )
    for start in range(0, len(latents), BATCH):
        piece = slice(start, start + BATCH)
        image = generator.render(latents[piece], cameras[piece], resolution).image
        yield (image * 127.5 + 127.5).nan_to_num(0.0).round().clamp(0, 255).to(torch.uint8)


def _share(count: int) -> slice:
    """This process's consecutive share of so many items."""
    rank, processes = (
        (dist.get_rank(), dist.get_world_size())
        if dist.is_available() and dist.is_initialized()
        else (0, 1)
    )
    return slice(count * rank // processes, count * (rank + 1) // processes)


def _joined(
    network: FeatureNetwork, parts: Iterable[Tensor], device: torch.device
) -> Float[Tensor, "share width"]:
    """All features in one tensor; a process whose share is empty has none."""
    return torch.cat([torch.empty(0, network.width, device=device), *parts])


class _Features(nn.Identity):
    """Tells torchmetrics that it is given features instead of pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def distance(
    real: Float[Tensor, "real width"],
    fake: Float[Tensor, "fake width"],
    kernel: bool = False,
    seed: int = 0,
) -> float:
    """Fréchet's or the kernel distance between two sets of features, of which each process has a share.

    Args:
        kernel: the mean over random subsets of the cubic kernel's squared MMD (KID) instead of Fréchet's distance (FID).
        seed: of the subsets.
    """
    # here, since they take a second, which every command would wait
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if real.device.type == "mps":  # which has no double precision
        real, fake = real.cpu(), fake.cpu()
    given = _Features(real.shape[1])
    if not kernel:
        fid = FrechetInceptionDistance(given).to(real.device)
        for features, is_real in ((real, True), (fake, False)):
            for part in features.split(_SUMMED):
                fid.update(
                    part.double(), real=is_real
                )  # the result takes its type from what was given last
        return float(fid.compute())
    sizes = real.new_tensor([len(real), len(fake)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sizes)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about the memory that features take, which is little
        kid = KernelInceptionDistance(
            given, KID_SUBSETS, int(min(KID_SUBSET_SIZE, *sizes.tolist()))
        ).to(real.device)
        kid.update(real, real=True)
        kid.update(fake, real=False)
        torch.default_generator.manual_seed(seed)  # torchmetrics draws the subsets from it
        return float(kid.compute()[0])
