"""Fig. 10: the NeRF image decides the pose; the INR image has the same pose and richer textures.

For the bundled model at its own resolution. figure_10.png: NeRF images, and INR images below them.
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
from cips3d.models.protocol import ImageGenerator

COUNT, SHOWN = 256, 8


def main() -> None:
    claim = "The INR image has the NeRF image's pose and richer textures (Fig. 10)"
    result = Result("figure_10", claim, of_bundled=True)
    values = compared(cips3d.load("heads"))
    between_subjects = values["angle_between_subjects_degrees"]
    same_pose = values["angle_between_poses_degrees"] < between_subjects / 3
    result.write(values, same_pose and values["detail_inr"] > values["detail_nerf"], seeds=(0,))


@torch.inference_mode()
def compared(generator: ImageGenerator) -> dict[str, float]:
    """Poses and detail of both kinds of image; writes figure_10.png."""
    side = generator.config.resolution
    latents = generator.sample_latents(COUNT, 0)
    cameras = generator.config.poses.sample(COUNT, torch.Generator().manual_seed(0))
    out = generator.render(latents, cameras, side, psi=1.0)
    network = load_head_network()
    nerf, inr = (network.pose(image) for image in (out.aux_image, out.image))
    shown = generator.render(latents[:SHOWN], cameras[:SHOWN], side, psi=1.0)
    images = torch.cat([shown.aux_image, shown.image])
    save_image(RESULTS / "figure_10.png", image_grid(images, columns=SHOWN))
    return {
        "angle_between_poses_degrees": float(angle_between(*nerf, *inr).mean()),
        "angle_between_subjects_degrees": float(
            angle_between(*inr, *(angle.roll(1) for angle in inr)).mean()
        ),
        "detail_nerf": detail(out.aux_image),
        "detail_inr": detail(out.image),
    }


if __name__ == "__main__":
    main()
