"""Fig. 10: the NeRF image has the pose, the INR image has the same pose and richer textures.

Of the bundled model, in its own resolution. figure_10.png: NeRF images, and below them INR images.
"""

from __future__ import annotations

import torch
from common import RESULTS, Result

import cips3d
from cips3d.export.media import save_image
from cips3d.export.sheets import image_grid
from cips3d.heads.network import load_head_network
from cips3d.metrics.geometry import detail
from cips3d.metrics.views import angle_between
from cips3d.models.generator import Generator

COUNT, SHOWN = 256, 8


def main() -> None:
    claim = "The INR image has the NeRF image's pose and richer textures (Fig. 10)"
    result = Result("figure_10", claim, of_bundled=True)
    values = compared(cips3d.load("heads"))
    same_pose = (
        values["angle_between_poses_degrees"] < values["angle_between_two_subjects_degrees"] / 3
    )
    result.write(values, same_pose and values["detail_inr"] > values["detail_nerf"], seeds=(0,))


@torch.inference_mode()
def compared(generator: Generator) -> dict[str, float]:
    """Poses and detail of both kinds of picture; writes figure_10.png."""
    latents = generator.sample_latents(COUNT, 0)
    cameras = generator.config.poses.sample(COUNT, torch.Generator().manual_seed(0))
    out = generator.render(latents, cameras, generator.config.resolution)
    network = load_head_network()
    poses = [network.pose(image) for image in (out.aux_image, out.image)]
    values = {
        "angle_between_poses_degrees": float(angle_between(*poses[0], *poses[1]).mean()),
        "angle_between_two_subjects_degrees": float(
            angle_between(*poses[1], *(x.roll(1) for x in poses[1])).mean()
        ),
        "detail_nerf": detail(out.aux_image),
        "detail_inr": detail(out.image),
    }
    shown = generator.render(latents[:SHOWN], cameras[:SHOWN], generator.config.resolution)
    save_image(
        RESULTS / "figure_10.png",
        image_grid(torch.cat([shown.aux_image, shown.image]), columns=SHOWN),
    )
    return values


if __name__ == "__main__":
    main()
