"""The bundled model: its table of figures, its depth against the dataset's, and 24 heads that nobody picked from five sides.

cips3d train runs/heads-64 --preset heads-64 ...        (the whole command is in src/cips3d/bundled/README.md)
make experiments NAME=bundled                           (the table of cips3d eval heads; 5 to 12 minutes)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from common import RESULTS, Result
from matplotlib.figure import Figure

import cips3d
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid, orbit_cameras
from cips3d.heads import SyntheticHeads
from cips3d.metrics.consistency import depth_distance
from cips3d.metrics.evaluation import evaluate
from cips3d.metrics.views import Subjects, View

HEADS, YAWS, SUBJECTS = 24, (-30.0, -15.0, 0.0, 15.0, 30.0), 256
#: Degrees of pose error that the model should stay below, and the correlation of its depth with what is seen in the picture (0
#: if depth were constant). And its depths should be distributed more like true heads' than a plane at their mean depth is.
AIM, AIM_DEPTH = 5.0, 0.8


@torch.inference_mode()
def main() -> None:
    pose = f"the pose that is asked for within {AIM:g} degrees"
    depth = f"depth in correlation {AIM_DEPTH:g} with what the pictures show, nearer to true heads' than a plane's is"
    result = Result("bundled", f"The bundled model has {pose}, and {depth} (ours)", of_bundled=True)
    generator = cips3d.load("heads")
    side = generator.config.resolution
    heads = SyntheticHeads(resolution=side)
    found = evaluate(generator, heads, ("fd2k_heads", "kd2k_heads"), count=SUBJECTS)
    print("\n".join(found.lines()))
    latents = generator.sample_latents(HEADS, 0)
    rows = [
        generator.render(latents[i], orbit_cameras(generator, YAWS), side).image
        for i in range(HEADS)
    ]
    save_image(RESULTS / "bundled_heads.png", image_grid(torch.cat(rows), columns=2 * len(YAWS)))
    subjects = {
        "generated": Subjects.generated(generator, generator.sample_latents(SUBJECTS, 0), side),
        "true": Subjects.true(heads.truth(), range(SUBJECTS), side),
    }
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    views = {name: of_kind.from_prior(0) for name, of_kind in subjects.items()}
    for name, view in views.items():
        axes.hist(
            view.out.depth[view.solid].numpy(),
            bins=80,
            range=(0.88, 1.12),
            density=True,
            histtype="step",
            label=name,
        )
    axes.set(xlabel="depth of solid pixels, world units", ylabel="density per world unit")
    axes.legend()
    depths = compared(views["generated"], views["true"])
    holds = (
        found.values["pose_error"] <= AIM
        and found.values["depth_correlation"] >= AIM_DEPTH
        and depths["distance"] < depths["distance_of_a_plane"]
    )
    result.write(found.as_json() | {"depths": depths}, holds, figure, seeds=(0,))


def compared(view: View, truth: View) -> dict[str, float]:
    """Distances of distributions of depth, and how much of the model's is that all its heads lie too far back, world units."""
    ours, true = (of.centred_depth[of.solid].mean() for of in (view, truth))
    plane = replace(
        truth, out=replace(truth.out, depth=truth.out.depth - truth.centred_depth + true)
    )
    moved = replace(view, out=replace(view.out, depth=view.out.depth - (ours - true)))
    return {
        "distance": depth_distance(view, truth),
        "distance_of_a_plane": depth_distance(plane, truth),
        "too_far_back": float(ours - true),
        "distance_if_moved_forward": depth_distance(moved, truth),
    }


if __name__ == "__main__":
    main()
