"""`cips3d invert`: finds the subject and the camera of an image in a model."""

from __future__ import annotations

import json
import math
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt

import cips3d
from cips3d.cli.options import Derived, Device, InputFile, Model
from cips3d.cli.output import finished, progress
from cips3d.configuration import Amount, NonNegative, Seed
from cips3d.errors import UserError
from cips3d.files import atomic_path, check_writable
from cips3d.model_paths import MODEL_FILE, check_replaces_nothing

#: The files of an inversion besides the model.
SUBJECT_FILE, CAMERA_FILE = "subject.safetensors", "inversion.json"
REPORT_FILE, VIEWS_FILE = "report.png", "views.png"
FILES = (MODEL_FILE, SUBJECT_FILE, CAMERA_FILE, REPORT_FILE, VIEWS_FILE)
#: Yaws of the novel views, degrees.
_YAWS = (-45, -30, -15, 0, 15, 30, 45)


def invert(
    image: InputFile,
    model: Model,
    out: Path,
    /,
    space: Literal["w", "w+", "tuned"] = "tuned",
    features: Derived[Literal["discriminator", "lpips", "none"]] = None,
    yaw: Derived[Amount] = None,
    pitch: Derived[Annotated[Amount, Lt(90), Gt(-90)]] = None,
    predictor: Derived[str] = None,
    mirror: Derived[Annotated[NonNegative, Le(1e6)]] = None,
    effort: Annotated[float, Gt(0), Le(100)] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find the subject and camera of an image.

    The subject can then be turned, edited and exported. OUT receives subject.safetensors (for
    --subject of render, blend, mix, mesh and view), model.safetensors (fitted to the image with
    --space tuned), inversion.json with the camera and how near the result is, views.png with the
    image, seven novel views and their depth, and report.png, which compares the image with the
    result of each step. Warns if the image is far from everything that the model knows.

    Args:
        image: An image framed like the model's training images; its central square is used.
        out: Folder for the results.
        space: Latent space. w: one appearance for all blocks (fastest); w+: one per block;
            tuned: the network's weights are fitted as well (closest to the image).
        features: Perceptual loss: the model's discriminator, LPIPS (package lpips), or none.
            Default: the discriminator if the model file has one, else LPIPS if it is installed.
        yaw: Yaw of the initial camera in degrees. Default: predicted by the model's
            discriminator if it predicts poses; else several yaws are tried.
        pitch: Pitch of that camera in degrees; needs --yaw. Default: 0.
        predictor: Predicts the initial camera: "module:object" in Python (see `cips3d eval`), or
            "heads", the network for embedded heads.
        mirror: Weight of the mirrored image in tuning, for the hidden side of the subject; 0 for
            asymmetric subjects. Default: 0.3.
        effort: Factor on the number of steps.
        seed: Seed of all random numbers.

    Examples:
        cips3d invert face.png heads found
        cips3d invert face.png heads found --yaw -20 --space w+
    """
    if yaw is not None and predictor is not None:
        raise UserError("--yaw and --predictor both set the initial camera; give only one of them")
    if pitch is not None and yaw is None:
        raise UserError("--pitch needs --yaw; give both")
    if mirror is not None and space != "tuned":
        raise UserError("--mirror applies only to --space tuned; leave it out")
    _check_folder(out, model, image)

    import torch

    from cips3d import pretrained
    from cips3d.cli.loading import load_model, named_predictor
    from cips3d.data.images import read_image
    from cips3d.editing import comparisons, inversion, similarity, subject
    from cips3d.editing.reach import reach
    from cips3d.export import media
    from cips3d.metrics.consistency import predicted_pose

    generator = load_model(model, device)
    pixels = read_image(image, generator.config.resolution).to(generator.like)
    discriminator = pretrained.load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(pixels.device)
    elif features == "discriminator":
        raise UserError(
            f"--features discriminator: {model} has no discriminators; choose lpips or none"
        )
    start, poses = None, generator.config.poses
    if yaw is not None:
        yaw, pitch = math.radians(yaw), math.radians(pitch or 0.0)
        start = poses.at(yaw + poses.yaw_mean, pitch + poses.pitch_mean)
    elif predictor is not None:
        with torch.no_grad():
            angles = predicted_pose(named_predictor(predictor), pixels.cpu())
        if not all(bool(angle.isfinite()) for angle in angles):
            raise UserError(f"--predictor {predictor}: finds no subject in the image; give --yaw")
        start = poses.at(*angles)
    usual = inversion.InversionConfig()
    config = replace(
        usual,
        steps=tuple(max(1, round(effort * steps)) for steps in usual.steps),
        mirror_weight=usual.mirror_weight if mirror is None else mirror,
        feature_weight=0.0 if features == "none" else usual.feature_weight,
    )
    distance = None
    if features == "lpips":
        distance = similarity.lpips_distance(pixels.device, pixels.shape[-1])
    with progress("inverting") as report:
        found = cips3d.invert(
            generator, pixels, space, start=start, features=distance, discriminator=discriminator,
            config=config, seed=seed, progress=report,
        )  # fmt: skip
    with progress("comparing") as report:
        near = reach(
            generator, pixels, found, discriminator, features=distance, config=config, seed=seed,
            progress=report,
        )  # fmt: skip
        yaw, pitch = (float(torch.rad2deg(angle)) for angle in found.camera.yaw_pitch())
        content = {"image": str(image), "model": model, "yaw": yaw, "pitch": pitch}
        fitted = found.generator
        with ExitStack() as stack:  # all, or none
            paths = {name: stack.enter_context(atomic_path(out / name)) for name in FILES}
            cips3d.save(fitted, paths[MODEL_FILE], pretrained.load_discriminators(model))
            subject.Subject(found.styles, found.camera).save(paths[SUBJECT_FILE], fitted)
            content |= {"loss": found.loss, "reach": asdict(near)}
            text = json.dumps(content, indent=2)
            paths[CAMERA_FILE].write_text(f"{text}\n", encoding="utf-8")
            media.save_image(paths[REPORT_FILE], comparisons.inversion_sheet(pixels, found))
            views = comparisons.found_views_sheet(pixels, found, _YAWS)
            media.save_image(paths[VIEWS_FILE], views)
    print("\n".join([f"camera: yaw {yaw:.1f}°, pitch {pitch:.1f}°", *near.lines()]))
    if (warning := near.warning()) is not None:
        print(f"cips3d: warning: {warning}", file=sys.stderr)
    then = f"cips3d render {out / MODEL_FILE} turn.mp4 --subject {out / SUBJECT_FILE}"
    finished(f"{', '.join(FILES)} in {out}", then)


def _check_folder(out: Path, model: str, image: Path) -> None:
    """Raises UserError for a folder that cannot take the results."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the results")
    for name in FILES:
        check_replaces_nothing(out / name, model, image)
        check_writable(out / name)
    if (out / MODEL_FILE).exists() and not (out / CAMERA_FILE).exists():
        raise UserError(
            f"{out}: contains a model that is not from an inversion and would be replaced; "
            "give another folder"
        )
