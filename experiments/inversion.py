"""Inversion (future work of Section 5): 50 heads unseen by the bundled model, one image of each.

Camera error, and PSNR of the image and of ten novel views against the ray-traced truth, after each
step ("w", "w+", "tuned"). Searches start from the camera that the discriminator predicts, and from
one that is 30° off. The i-th search has seed i. An image takes half a minute on a core with AVX-512
and a minute without; the whole takes half an hour or an hour on two cores. An interrupted call
resumes.

Rows of inversion.png: the image and its reconstruction after each step; then the found subject from
five yaws, and the true one below it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, RUNS, Result, bundled_digest, one_thread_each, process_pool, write_json
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

import cips3d
from cips3d import Camera, pretrained
from cips3d.editing.inversion import SPACES, Inversion, invert
from cips3d.editing.similarity import psnr
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid
from cips3d.heads import SyntheticHeads
from cips3d.metrics.views import angle_between

COUNT, SHOWN = 50, 8
#: Seed of the heads. The embedded dataset's own is 0, so these are others.
UNSEEN = 1
#: Yaw and pitch of the novel views, and yaws of those that are drawn, radians.
NOVEL = tuple((yaw, pitch) for yaw in (-0.5, -0.25, 0.0, 0.25, 0.5) for pitch in (-0.1, 0.1))
DRAWN = (-0.5, -0.25, 0.0, 0.25, 0.5)
OFF = math.radians(30)
AIM_DEGREES, AIM_PSNR = 3.0, 24.0


def main() -> None:
    claim = (
        f"From one image: camera within {AIM_DEGREES:g} degrees, novel views at {AIM_PSNR:g} dB "
        "(ours)"
    )
    result = Result("inversion", claim, of_bundled=True)
    values: dict[str, Any] = {}
    with one_thread_each(), process_pool() as pool:
        for start in ("predicted", "wrong"):
            found = list(pool.map(partial(inverted, wrong=start == "wrong"), range(COUNT)))
            values[start] = medians(found)
            print(start, values[start], flush=True)
    sheets = [record(index, wrong=False).with_suffix(".png") for index in range(SHOWN)]
    save_image(
        RESULTS / "inversion.png",
        np.concatenate([np.asarray(Image.open(sheet)) for sheet in sheets]),
    )
    tuned = values["predicted"]["tuned"]
    holds = tuned["camera_degrees"] <= AIM_DEGREES and tuned["novel_psnr"] >= AIM_PSNR
    result.write(values, holds, seeds=(UNSEEN,))


def medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the heads, by step and figure, and of the time."""
    steps = {
        space: {
            name: statistics.median(head[space][name] for head in found) for name in found[0][space]
        }
        for space in SPACES
    }
    return steps | {"seconds": statistics.median(head["seconds"] for head in found)}


def record(index: int, wrong: bool) -> Path:
    """File with the figures of one head's inversion; its image is next to it."""
    parts = ("inversion", "similarity", "style_space", "target", "tuning")
    sources = (f"editing/{part}.py" for part in parts)
    folder = RUNS / f"inversion-{bundled_digest(*sources, 'metrics/views.py')}"
    return folder / f"{'wrong' if wrong else 'predicted'}-{index:02d}.json"


def inverted(index: int, wrong: bool) -> dict[str, Any]:
    """Figures of one head's inversion, after each step; computed once."""
    path = record(index, wrong)
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    generator, discriminator = cips3d.load("heads"), pretrained.load_main_discriminator("heads")
    side = generator.config.resolution
    heads = SyntheticHeads(resolution=side, seed=UNSEEN)
    camera = heads.cameras([index])
    image = true_image(heads, index, camera)
    yaw, pitch = camera.yaw_pitch()
    # turned towards the other side, like a start that confuses left and right
    start = Camera.orbit(yaw - OFF * torch.where(yaw < 0, -1.0, 1.0), pitch) if wrong else None
    began = time.perf_counter()
    found = invert(generator, image, start=start, discriminator=discriminator, seed=index)
    figures: dict[str, Any] = {"seconds": time.perf_counter() - began}
    for space, step in zip(SPACES, (*found.earlier, found), strict=True):
        figures[space] = measured(step, heads, index, camera, image)
    save_image(path.with_suffix(".png"), drawn(found, heads, index, image))
    write_json(path, figures, indent=1)
    return figures


@torch.inference_mode()
def measured(
    step: Inversion, heads: SyntheticHeads, index: int, camera: Camera, image: Tensor
) -> dict[str, float]:
    """Camera error in degrees, and PSNR of the image and of novel views."""
    side = image.shape[-1]
    others = [Camera.orbit(yaw, pitch) for yaw, pitch in NOVEL]
    truth = torch.cat([true_image(heads, index, other) for other in others])
    novel = torch.cat([step.generator.render(step.styles, other, side).image for other in others])
    again = step.generator.render(step.styles, step.camera, side).image
    return {
        "camera_degrees": float(angle_between(*camera.yaw_pitch(), *step.camera.yaw_pitch())),
        "input_psnr": psnr(again, image),
        "novel_psnr": psnr(novel, truth),
    }


def true_image(heads: SyntheticHeads, index: int, camera: Camera) -> Float[Tensor, "1 3 side side"]:
    """A head of the dataset from any camera, in [-1, 1]."""
    return heads.render([index], camera).images.float() / 127.5 - 1


@torch.inference_mode()
def drawn(
    found: Inversion, heads: SyntheticHeads, index: int, image: Tensor
) -> UInt8[np.ndarray, "height width 3"]:
    """A head's rows of inversion.png."""
    side = image.shape[-1]
    steps = [
        step.generator.render(step.styles, step.camera, side).image
        for step in (*found.earlier, found)
    ]
    cameras = [Camera.orbit(yaw) for yaw in DRAWN]
    ours = [found.generator.render(found.styles, camera, side).image for camera in cameras]
    true = [true_image(heads, index, camera) for camera in cameras]
    blank = torch.ones_like(image)
    return image_grid(torch.cat([image, *steps, blank, *ours, *true]), columns=len(DRAWN))


if __name__ == "__main__":
    main()
