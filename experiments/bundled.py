"""The bundled model: its table of figures, its depth against the dataset's, and 24 heads that nobody picked from five sides.

cips3d train runs/heads-64 --preset heads-64 ...        (the whole command is in src/cips3d/bundled/README.md)
python experiments/bundled.py                           (the table of cips3d eval heads; 12 minutes)
"""

from __future__ import annotations

import torch
from common import RESULTS, Result
from matplotlib.figure import Figure

import cips3d
from cips3d.data import SyntheticHeads
from cips3d.export.media import image_grid, save_image
from cips3d.export.sheets import orbit_cameras
from cips3d.metrics.evaluation import evaluate
from cips3d.metrics.subjects import Subjects

HEADS, YAWS, SUBJECTS = 24, (-30.0, -15.0, 0.0, 15.0, 30.0), 256
#: Degrees of pose error that the model should stay below, and the correlation of its depth with what is seen in the picture (0
#: if depth were constant).
AIM, AIM_DEPTH = 5.0, 0.8


@torch.inference_mode()
def main() -> None:
    pose, depth = f"the pose that is asked for within {AIM:g} degrees", f"correlation {AIM_DEPTH:g} with what the pictures show"
    result = Result("bundled", f"The bundled model has {pose}, and depth in {depth} (ours)", of_bundled=True)
    generator = cips3d.load("heads")
    side = generator.config.resolution
    heads = SyntheticHeads(resolution=side)
    found = evaluate(generator, heads, ("fd2k_heads", "kd2k_heads"), count=SUBJECTS)
    print("\n".join(found.lines()))
    latents = generator.sample_latents(HEADS, 0)
    rows = [generator.render(latents[i], orbit_cameras(generator, YAWS), side).image for i in range(HEADS)]
    save_image(RESULTS / "bundled_heads.png", image_grid(torch.cat(rows), columns=2 * len(YAWS)))
    subjects = {
        "generated": Subjects.generated(generator, generator.sample_latents(SUBJECTS, 0), side),
        "true": Subjects.true(heads, range(SUBJECTS)),
    }
    figure = Figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    for name, of_kind in subjects.items():
        view = of_kind.from_prior(0)
        axes.hist(view.out.depth[view.solid].numpy(), bins=80, range=(0.88, 1.12), density=True, histtype="step", label=name)
    axes.set(xlabel="depth of solid pixels, world units", ylabel="density per world unit")
    axes.legend()
    holds = found.values["pose_error"] <= AIM and found.values["depth_correlation"] >= AIM_DEPTH
    result.write(found.as_json(), holds, figure, seeds=(0,))


if __name__ == "__main__":
    main()
