"""`cips3d invert`: a picture's subject and camera, found in a model."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from cips3d import pretrained
from cips3d.camera import Camera
from cips3d.cli.options import Derived, check_finite, check_seed, share_bar, to_device
from cips3d.cli.predictor import named_predictor
from cips3d.data.images import read_image
from cips3d.editing.inversion import Inversion, InversionConfig, Space
from cips3d.editing.inversion import invert as find
from cips3d.editing.sheets import inversion_sheet
from cips3d.editing.similarity import lpips_distance
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.files import atomic_path, check_writable
from cips3d.metrics.consistency import seen_pose
from cips3d.models.protocol import ImageGenerator
from cips3d.pretrained import MODEL_FILE

#: What an inversion leaves besides the model.
SUBJECT_FILE, CAMERA_FILE, REPORT_FILE, VIEWS_FILE = (
    "subject.safetensors",
    "inversion.json",
    "report.png",
    "views.png",
)
_FILES = (MODEL_FILE, SUBJECT_FILE, CAMERA_FILE, REPORT_FILE, VIEWS_FILE)
#: Of the novel views, degrees.
_YAWS = (-45, -30, -15, 0, 15, 30, 45)


def invert(
    image: Path,
    model: str,
    out: Path,
    /,
    space: Space = "tuned",
    features: Derived[Literal["discriminator", "lpips", "none"]] = None,
    yaw: Derived[float] = None,
    pitch: Derived[float] = None,
    predictor: Derived[str] = None,
    mirror: Derived[float] = None,
    effort: float = 1.0,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Find a picture's subject and camera in a model, so that it can be turned, edited and exported.

    Writes in OUT: subject.safetensors, for the option --subject of render, blend, mix, mesh and view; model.safetensors, with
    --space tuned fitted to the picture; inversion.json with the camera; views.png, the subject from seven yaws, and its depth;
    report.png, the picture, what each step made of it, and the subject from other sides.

    Args:
        image: the picture, framed as those that the model was trained on; its central square is used.
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        out: folder for the results.
        space: how far to go: w, one appearance for all blocks of the implicit network (fastest); w+, one for
            each block; tuned, with the network's weights fitted as well (nearest to the picture).
        features: what sees likeness besides colours: the model's discriminator, LPIPS (package lpips), or nothing. Default: the
            discriminator if the model came with it, else LPIPS if it is installed.
        yaw: start from this camera, degrees. Default: the one that the model's discriminator sees in the picture, where the
            model came with one that tells poses; else several, and the best is kept.
        pitch: of that camera, degrees. Default: 0.
        predictor: start from the camera that "module:object" in Python sees in the picture (see `cips3d eval`), or, of the
            embedded heads, their own network: "heads".
        mirror: weight, while tuning, of giving the side that the picture hides the mirrored picture's share of the change; 0
            for subjects whose sides differ. Default: 0.3.
        effort: factor on the number of steps.
        seed: of all draws.
        device: cpu, cuda, mps, …; auto takes the fastest.
    """
    check_finite(pitch=pitch, effort=effort, yaw=yaw, mirror=mirror)
    check_seed(seed)
    if yaw is not None and predictor is not None:
        raise UserError(
            "--yaw and --predictor: both give a camera to start from; give only one of them"
        )
    if pitch is not None and yaw is None:
        raise UserError("--pitch: is of the camera that --yaw gives; give both")
    if mirror is not None and space != "tuned":
        raise UserError(
            f"--mirror: only tuning looks at the mirrored picture; leave it out, or --space {space}"
        )
    if not 0 < effort <= 100:
        raise UserError(f"--effort: {effort}; give a number above 0 and at most 100")
    if mirror is not None and mirror < 0:
        raise UserError(f"--mirror: {mirror}; give 0 or more")
    if pitch is not None and abs(pitch) >= 90:
        raise UserError(f"--pitch: {pitch}; give an angle between -90 and 90")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the results")
    for name in _FILES:
        pretrained.check_replaces_nothing(out / name, model, image)
    if (out / MODEL_FILE).exists() and not (out / CAMERA_FILE).exists():
        raise UserError(
            f"{out}: holds a model that is of no inversion and would be replaced; give another folder"
        )
    generator = to_device(pretrained.load(model), device)
    picture = read_image(image, generator.config.resolution).to(generator.shape_mean)
    discriminator = pretrained.load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(picture.device)
    elif features == "discriminator":
        raise UserError(
            f"--features discriminator: {model} came without its discriminators; take lpips or none"
        )
    config = InversionConfig()
    if mirror is not None:
        config = replace(config, mirror_weight=mirror)
    if features == "none":
        config = replace(config, feature_weight=0.0)
    first, second, third, fourth = (max(1, round(effort * steps)) for steps in config.steps)
    config = replace(config, steps=(first, second, third, fourth))
    start = _start(generator, picture, yaw, pitch or 0.0, predictor)
    seen_by = lpips_distance(picture.device, picture.shape[-1]) if features == "lpips" else None
    for name in _FILES:
        check_writable(out / name)
    with share_bar("inverting") as bar:
        found = find(
            generator, picture, space, start=start, features=seen_by, discriminator=discriminator, config=config, seed=seed,
            progress=bar,
        )  # fmt: skip
    _write(out, image, model, picture, found)


def _start(
    generator: ImageGenerator,
    picture: torch.Tensor,
    yaw: float | None,
    pitch: float,
    predictor: str | None,
) -> Camera | None:
    poses = generator.config.poses
    if yaw is not None:
        return poses.at(math.radians(yaw) + poses.yaw_mean, math.radians(pitch) + poses.pitch_mean)
    seer = named_predictor(predictor)
    if seer is None:
        return None
    with torch.no_grad():
        return poses.at(*seen_pose(seer, picture.cpu()))


def _write(out: Path, image: Path, model: str, picture: torch.Tensor, found: Inversion) -> None:
    yaw, pitch = (float(torch.rad2deg(angle)) for angle in found.camera.yaw_pitch())
    content = {"image": str(image), "model": model, "yaw": yaw, "pitch": pitch, "loss": found.loss}
    cameras = orbit_cameras(found.generator, _YAWS)
    with contextlib.ExitStack() as stack:  # all, or none
        there = {name: stack.enter_context(atomic_path(out / name)) for name in _FILES}
        discriminators = pretrained.load_discriminators(model)
        pretrained.save(found.generator, there[MODEL_FILE], discriminators)
        Subject(found.styles, found.camera).save(there[SUBJECT_FILE], found.generator)
        there[CAMERA_FILE].write_text(json.dumps(content, indent=2) + "\n")
        save_image(there[REPORT_FILE], inversion_sheet(picture, found))
        save_image(
            there[VIEWS_FILE],
            view_sheet(found.generator, found.styles, cameras, show=("image", "depth")),
        )
    print(f"camera: yaw {yaw:.1f} degrees, pitch {pitch:.1f} degrees")
    print(f"the picture, what was made of it, and the subject from all sides: {out / REPORT_FILE}")
    where = f"{out / MODEL_FILE} turn.mp4 --subject {out / SUBJECT_FILE}"
    print(f"the subject and the model: try cips3d render {where}")
