"""Chooses the seeds that the command line shows by default: python experiments/good_seeds.py.

The rule: render the first subject of seeds 0 to 127 from three yaws (-0.4, 0, 0.4 radians) at the
training resolution with the default truncation. Rank them by the logit of the model's own main
discriminator and by the Mahalanobis distance of the head network's features from those of 1,000
real heads, both summed over the yaws, and sort by the sum of the two ranks. Leave out a subject if
its identity, as the head network reads it, has a cosine above 0.75 with one taken before. Writes
the first 24 to src/cips3d/bundled/good_seeds.json and shows them in runs/good_seeds.png. Takes a
minute.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import cips3d
from cips3d import pretrained
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import load_head_network
from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import DEFAULT_PSI

MODEL, CANDIDATES, WANTED, REAL = "heads", 128, 24, 1000
YAWS = (-0.4, 0.0, 0.4)
#: Cosine of two identities above which subjects count as alike.
ALIKE = 0.75
OUT = Path(cips3d.__file__).parent / "bundled" / "good_seeds.json"
SHEET = Path("runs/good_seeds.png")


@torch.no_grad()
def views(generator: ImageGenerator, yaw: float) -> Tensor:
    """The first subject of every candidate seed from one yaw, (seeds, 3, side, side)."""
    camera = generator.config.poses.at(yaw, 0.0)
    return torch.cat(
        [
            generator.render(generator.sample_latents(1, seed), camera, psi=DEFAULT_PSI).image
            for seed in range(CANDIDATES)
        ]
    )


@torch.no_grad()
def likeness(images: Tensor) -> Tensor:
    """Mahalanobis distance, squared, of the images' features from those of real heads."""
    network, heads = load_head_network(), SyntheticHeads(resolution=images.shape[-1])
    real = torch.stack([heads[i] for i in range(REAL)]).float() / 127.5 - 1
    features = network.features(real)
    ridge = 1e-3 * features.var() * torch.eye(features.shape[1])
    precision = torch.linalg.inv(torch.cov(features.T) + ridge)
    apart = network.features(images) - features.mean(dim=0)
    return ((apart @ precision) * apart).sum(dim=1)


@torch.no_grad()
def logits(images: Tensor) -> Tensor:
    """The main discriminator's logit of each image."""
    discriminator = pretrained.load_main_discriminator(MODEL)
    assert discriminator is not None
    # one by one, since its standard deviation layer compares the images of a batch
    return torch.cat([discriminator(image).flatten()[:1] for image in images.split(1)])


def distinct(order: list[int], identities: Tensor) -> list[int]:
    """The first `WANTED` seeds in order, without those too similar to an earlier one."""
    taken: list[int] = []
    for seed in order:
        alike = (
            F.cosine_similarity(identities[seed], identities[taken]) if taken else torch.zeros(1)
        )
        if alike.max() <= ALIKE:
            taken.append(seed)
    return taken[:WANTED]


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort()


def main() -> None:
    generator = pretrained.load(MODEL)
    images = [views(generator, yaw) for yaw in YAWS]
    distance = torch.stack([likeness(view) for view in images]).sum(dim=0)
    logit = torch.stack([logits(view) for view in images]).sum(dim=0)
    order = (ranks(distance) + ranks(-logit)).argsort().tolist()
    seeds = distinct(order, load_head_network().identity(images[1]))
    OUT.write_text(json.dumps({MODEL: seeds}) + "\n", encoding="utf-8")
    SHEET.parent.mkdir(exist_ok=True)
    save_image(SHEET, image_grid(images[1][seeds], columns=8))
    print(f"{len(seeds)} seeds in {OUT}; the subjects: {SHEET}")


if __name__ == "__main__":
    main()
