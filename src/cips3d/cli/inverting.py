"""The work of `cips3d invert`: from an image to the files of an inversion."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cips3d import pretrained
from cips3d.camera import Camera
from cips3d.cli.invert import CAMERA_FILE, FILES, MODEL_FILE, REPORT_FILE, SUBJECT_FILE, VIEWS_FILE
from cips3d.cli.loading import load_model
from cips3d.cli.options import DEFAULT_SIDE
from cips3d.cli.predictor import named_predictor
from cips3d.data.images import read_image
from cips3d.editing.comparisons import inversion_sheet
from cips3d.editing.inversion import Inversion, InversionConfig, Space
from cips3d.editing.inversion import invert as find
from cips3d.editing.similarity import lpips_distance
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.files import atomic_path
from cips3d.metrics.consistency import predicted_pose
from cips3d.models.protocol import ImageGenerator

#: Yaws of the novel views, degrees.
_YAWS = (-45, -30, -15, 0, 15, 30, 45)


def run_inversion(
    image: Path,
    model: str,
    out: Path,
    space: Space,
    features: str | None,
    yaw: float | None,
    pitch: float,
    predictor: str | None,
    mirror: float | None,
    effort: float,
    seed: int,
    device: str,
    report: Callable[..., None],
) -> tuple[float, float]:
    """Inverts an image and writes the results; arguments as in `cips3d invert`.

    Returns:
        The camera's yaw and pitch in degrees.
    """
    generator = load_model(model, device)
    pixels = read_image(image, generator.config.resolution).to(generator.shape_mean)
    discriminator = pretrained.load_main_discriminator(model)
    if discriminator is not None:
        discriminator = discriminator.to(pixels.device)
    elif features == "discriminator":
        raise UserError(
            f"--features discriminator: {model} has no discriminators; choose lpips or none"
        )
    found = find(
        generator, pixels, space, start=_start(generator, pixels, yaw, pitch, predictor),
        features=lpips_distance(pixels.device, pixels.shape[-1]) if features == "lpips" else None,
        discriminator=discriminator, config=_config(mirror, features, effort), seed=seed,
        progress=report,
    )  # fmt: skip
    yaw, pitch = (float(torch.rad2deg(angle)) for angle in found.camera.yaw_pitch())
    _write(out, image, model, pixels, found, (yaw, pitch))
    return yaw, pitch


def _config(mirror: float | None, features: str | None, effort: float) -> InversionConfig:
    config = InversionConfig()
    first, second, third, fourth = (max(1, round(effort * steps)) for steps in config.steps)
    return replace(
        config,
        steps=(first, second, third, fourth),
        mirror_weight=config.mirror_weight if mirror is None else mirror,
        feature_weight=0.0 if features == "none" else config.feature_weight,
    )


def _start(
    generator: ImageGenerator,
    pixels: torch.Tensor,
    yaw: float | None,
    pitch: float,
    predictor: str | None,
) -> Camera | None:
    """The initial camera, if one is given or predicted."""
    poses = generator.config.poses
    if yaw is not None:
        return poses.at(math.radians(yaw) + poses.yaw_mean, math.radians(pitch) + poses.pitch_mean)
    found = named_predictor(predictor)
    if found is None:
        return None
    with torch.no_grad():
        return poses.at(*predicted_pose(found, pixels.cpu()))


def _write(
    out: Path,
    image: Path,
    model: str,
    pixels: torch.Tensor,
    found: Inversion,
    angles: tuple[float, ...],
) -> None:
    yaw, pitch = angles
    content = {"image": str(image), "model": model, "yaw": yaw, "pitch": pitch, "loss": found.loss}
    cameras = orbit_cameras(found.generator, _YAWS)
    with contextlib.ExitStack() as stack:  # all, or none
        paths = {name: stack.enter_context(atomic_path(out / name)) for name in FILES}
        discriminators = pretrained.load_discriminators(model)
        pretrained.save(found.generator, paths[MODEL_FILE], discriminators)
        Subject(found.styles, found.camera).save(paths[SUBJECT_FILE], found.generator)
        paths[CAMERA_FILE].write_text(json.dumps(content, indent=2) + "\n")
        save_image(paths[REPORT_FILE], inversion_sheet(pixels, found))
        side = max(DEFAULT_SIDE, found.generator.config.resolution)
        views = view_sheet(found.generator, found.styles, cameras, side, show=("image", "depth"))
        save_image(paths[VIEWS_FILE], views)
