"""The bundled model: its table of figures, its depth distribution, and 24 uncurated heads.

cips3d train runs/heads-64 --preset heads-64 ...  (the whole command: src/cips3d/bundled/README.md)
make experiments NAME=bundled                     (the table of cips3d eval heads; 5 to 12 minutes)
python experiments/bundled_card.py                (its card, src/cips3d/bundled/README.md)

bundled_heads.png shows each head from five yaws; bundled.png the depths of solid pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from common import DISTANCE, KERNEL_DISTANCE, RESULTS, Result
from matplotlib.figure import Figure

import cips3d
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid, orbit_cameras
from cips3d.heads import SyntheticHeads
from cips3d.metrics.consistency import depth_distance
from cips3d.metrics.evaluation import evaluate
from cips3d.metrics.views import Subjects, View

HEADS, YAWS, SUBJECTS = 24, (-30.0, -15.0, 0.0, 15.0, 30.0), 256
#: Largest pose error in degrees, and smallest correlation of the depth with the depth seen in the
#: images (a constant depth has 0).
AIM, AIM_DEPTH = 5.0, 0.8


@torch.inference_mode()
def main() -> None:
    claim = (
        f"The bundled model renders the requested pose within {AIM:g} degrees. Its depth has a "
        f"correlation of at least {AIM_DEPTH:g} with the depth seen in its images, and is "
        "distributed more like the true heads' than a plane's is (ours)"
    )
    result = Result("bundled", claim, of_bundled=True)
    generator = cips3d.load("heads")
    side = generator.config.resolution
    heads = SyntheticHeads(resolution=side)
    found = evaluate(generator, heads, (DISTANCE, KERNEL_DISTANCE), count=SUBJECTS)
    print("\n".join(found.lines()))
    latents, cameras = generator.sample_latents(HEADS, 0), orbit_cameras(generator, YAWS)
    rows = [generator.render(latents[i], cameras, side, psi=1.0).image for i in range(HEADS)]
    save_image(RESULTS / "bundled_heads.png", image_grid(torch.cat(rows), columns=2 * len(YAWS)))
    views = {
        "generated": Subjects.generated(generator, generator.sample_latents(SUBJECTS, 0), side),
        "true": Subjects.true(heads.truth(), range(SUBJECTS), side),
    }
    views = {name: subjects.from_prior(0) for name, subjects in views.items()}
    depths = compared(views["generated"], views["true"])
    holds = (
        found.values["pose_error"] <= AIM
        and found.values["depth_correlation"] >= AIM_DEPTH
        and depths["distance"] < depths["plane_distance"]
    )
    result.write(found.as_json() | {"depths": depths}, holds, histogram(views), seeds=(0,))


def compared(view: View, truth: View) -> dict[str, float]:
    """Distances between depth distributions, and how far back all generated heads lie; world units.

    A plane at the true heads' mean depth is the baseline.
    """
    ours, true = (kind.centred_depth[kind.solid].mean() for kind in (view, truth))
    flat = truth.out.depth - truth.centred_depth + true
    plane = replace(truth, out=replace(truth.out, depth=flat))
    moved = replace(view, out=replace(view.out, depth=view.out.depth - (ours - true)))
    return {
        "distance": depth_distance(view, truth),
        "plane_distance": depth_distance(plane, truth),
        "offset": float(ours - true),
        "distance_without_offset": depth_distance(moved, truth),
    }


def histogram(views: dict[str, View]) -> Figure:
    """The depths of solid pixels, a curve per name."""
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    for name, view in views.items():
        depths, style = view.out.depth[view.solid].numpy(), {"histtype": "step", "label": name}
        axes.hist(depths, bins=80, range=(0.88, 1.12), density=True, **style)
    axes.set(xlabel="depth of solid pixels, world units", ylabel="density per world unit")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
