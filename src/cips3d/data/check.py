"""Is a folder or zip of pictures fit to train on? Every picture is decoded; nothing stops at the first fault."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cips3d.camera import Camera, is_centred, is_rigid
from cips3d.data.images import (
    FILTERS,
    LABEL_FILE,
    LABEL_SIZE,
    are_classes,
    camera_label,
    central_square,
    read_labels,
)
from cips3d.data.sources import open_source, opened_picture, picture_names, upright_rgb
from cips3d.errors import UserError, printable

#: Pictures of the contact sheet, in a row and in all, and the side of each in pixels.
SHEET_COLUMNS, SHEET_PICTURES, SHEET_SIDE = 8, 64, 96
#: Colour statistics are of squares of at most this side, pixels.
MOST_SIDE = 256
#: Names in a list before "and N more".
_SHOWN = 10


@dataclass
class DataReport:
    """What a dataset holds.

    Attributes:
        names: all pictures.
        unreadable: what is wrong with those that cannot be decoded.
        too_small: those whose shorter side is below the resolution asked about.
        unlabelled: what is wrong with the labels of those that have none or a bad one, where others have a camera's.
        faulty: the names of all of these.
        odd_labels: names of those whose label is no camera that a run could train with; others do not look at it.
        duplicates: groups of names with the same pixels.
        sides: shorter side of each readable picture, pixels.
        not_square: how many are cropped in training.
        modes: how many pictures there are of each of Pillow's modes; all are converted to RGB.
        grey: how many have no colours.
        mean, std: of red, green and blue over all cropped squares (of at most `MOST_SIDE`), 0 to 255.
        labels: what labels there are.
        camera: median distance from the origin and field of view (degrees) of the labels' cameras, where there are some.
        sheet: evenly spread pictures side by side, or None without any.
    """

    names: list[str]
    resolution: int | None
    labels: str
    camera: tuple[float, float] | None = None
    unreadable: list[str] = field(default_factory=list)
    too_small: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)
    odd_labels: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    not_square: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    grey: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sheet: Image.Image | None = None

    @property
    def faults(self) -> int:
        """Pictures that would stop a training run."""
        return len(self.faulty)

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [
            f"{len(self.names):,} pictures, {len(self.names) - len(self.unreadable):,} readable; labels: {self.labels}"
        ]
        if self.camera is not None:
            lines.append(
                f"cameras: {self.camera[0]:.3g} from the origin, field of view {self.camera[1]:.4g} degrees (medians)"
            )
        if self.sides:
            sides = sorted(self.sides)
            middle = sides[len(sides) // 2]
            lines.append(
                f"shorter side: {sides[0]} to {sides[-1]} pixels, median {middle}; {self.not_square:,} not square"
            )
            modes = ", ".join(f"{count:,} {mode}" for mode, count in self.modes.most_common())
            lines.append(
                f"channels: {modes} (all are converted to RGB); {self.grey:,} without colours"
            )
            lines.append("colours, mean (deviation): " + ", ".join(
                f"{name} {mean:.0f} ({std:.0f})"
                for name, mean, std in zip(("red", "green", "blue"), self.mean, self.std, strict=True)
            ))  # fmt: skip
        for title, entries in (
            ("unreadable", self.unreadable),
            (f"smaller than {self.resolution}", self.too_small),
            ("without a camera label", self.unlabelled),
            (
                "with a label of no centred camera in a rigid pose (cameras=labels refuses it)",
                self.odd_labels,
            ),
            ("the same pixels", [" = ".join(group) for group in self.duplicates]),
        ):
            if entries:
                lines.append(f"{title}: {len(entries):,}")
                lines += [f"  {entry}" for entry in entries[:_SHOWN]]
                if len(entries) > _SHOWN:
                    lines.append(f"  and {len(entries) - _SHOWN:,} more")
        return lines


def _look_at_cameras(report: DataReport, labels: dict[str, list[float]]) -> None:
    """Tells the labels' cameras."""
    numbers = torch.tensor(list(labels.values())).reshape(-1, LABEL_SIZE)
    fine = is_centred(numbers) & is_rigid(numbers)
    report.odd_labels = [
        printable(name) for name, is_fine in zip(labels, fine.tolist(), strict=True) if not is_fine
    ]
    if fine.any():
        cameras = Camera.from_label(numbers[fine])
        report.camera = float(cameras.position.norm(dim=1).median()), float(cameras.fov.median())


def check(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    progress: Callable[[int, int], None] = lambda done, all: None,
) -> DataReport:
    """Decodes every picture of a folder or zip.

    Args:
        resolution: of a training run; pictures whose shorter side is below it are reported.
        progress: called with the number of pictures done and of all.

    Raises:
        UserError: if the folder or zip cannot be read, holds no pictures, or has labels that cannot be read.
    """
    source = open_source(Path(path))
    names = picture_names(source)
    labels = read_labels(source)
    report = DataReport([printable(name) for name in names], resolution, _kind(labels, names))
    if labels is not None and not are_classes(labels):
        good: dict[str, list[float]] = {}
        for name in names:
            try:
                good[name] = camera_label(labels, name, printable(source.place(LABEL_FILE)))
            except UserError as error:
                report.unlabelled.append(str(error))
                report.faulty.add(name)
        _look_at_cameras(report, good)
    digests: dict[bytes, list[str]] = {}
    total, squares, pixels = np.zeros(3), np.zeros(3), 0
    shown_ones = {i * len(names) // SHEET_PICTURES for i in range(SHEET_PICTURES)}
    thumbnails: list[Image.Image] = []
    for number, name in enumerate(names):
        try:
            with opened_picture(source, name) as image:
                mode = image.mode
                rgb = upright_rgb(image)
        except UserError as error:
            report.unreadable.append(str(error))
            report.faulty.add(name)
            progress(number + 1, len(names))
            continue
        side = min(rgb.size)
        array = np.asarray(rgb)
        digest = hashlib.blake2b(
            array.tobytes() + repr(array.shape).encode(), digest_size=16
        ).digest()
        digests.setdefault(digest, []).append(printable(name))
        square = (
            np.asarray(central_square(rgb, min(side, MOST_SIDE), FILTERS["box"]))
            .reshape(-1, 3)
            .astype(np.float64)
        )
        total, squares, pixels = (
            total + square.sum(axis=0),
            squares + (square**2).sum(axis=0),
            pixels + len(square),
        )
        report.modes[mode] += 1
        report.sides.append(side)
        report.not_square += rgb.width != rgb.height
        report.grey += bool((array[..., :1] == array).all())
        if resolution is not None and side < resolution:
            report.too_small.append(f"{printable(name)} ({rgb.width}x{rgb.height})")
            report.faulty.add(name)
        if number in shown_ones:
            thumbnails.append(central_square(rgb, SHEET_SIDE, FILTERS["lanczos"]))
        progress(number + 1, len(names))
    report.duplicates = [group for group in digests.values() if len(group) > 1]
    if pixels:
        mean = total / pixels
        report.mean = tuple(mean.tolist())
        report.std = tuple(np.sqrt(np.maximum(squares / pixels - mean**2, 0)).tolist())
        report.sheet = _sheet(thumbnails) if thumbnails else None
    return report


def _kind(labels: dict[str, object] | None, names: list[str]) -> str:
    if labels is None:
        return "none"
    kind = "class numbers" if are_classes(labels) else "cameras"
    missing = sum(name not in labels for name in names)
    return kind + (f", missing for {missing:,} pictures" if missing else "")


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SHEET_SIDE, rows * SHEET_SIDE), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * SHEET_SIDE, i // columns * SHEET_SIDE))
    return sheet
