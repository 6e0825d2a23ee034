"""Checks whether a folder or zip of images can be trained on, and reports all faults."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cips3d.camera import Camera, is_centred, is_rigid
from cips3d.data.images import central_square
from cips3d.data.layout import LABEL_SIZE, Labels, read_contents
from cips3d.data.pixels import upright_rgb
from cips3d.data.sources import open_image, open_source
from cips3d.errors import UserError, printable

#: Columns of a contact sheet, its largest number of images, and the side of each, pixels.
SHEET_COLUMNS, SHEET_IMAGES, SHEET_SIDE = 8, 64, 96
#: Largest side of the squares that colour statistics are computed on, pixels.
MOST_SIDE = 256
#: Names in a list before "and N more".
_SHOWN = 10


@dataclass
class DataReport:
    """The content of a dataset and its faults."""

    names: list[str]  # of all images
    resolution: int | None  # of the training run
    labels: str  # their kind
    passed_over: str = ""  # a line for the files that are no images
    #: Median distance from the origin and field of view (degrees) of the labels' cameras.
    camera: tuple[float, float] | None = None
    unreadable: list[str] = field(default_factory=list)  # one line per image
    too_small: list[str] = field(default_factory=list)  # images with a side below the resolution
    unlabelled: list[str] = field(default_factory=list)  # one line per missing or malformed label
    faulty: set[str] = field(default_factory=set)  # names of all of these
    #: Images whose label is not a centred camera in a rigid pose: cameras=labels refuses them.
    odd_labels: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)  # groups with the same pixels
    sides: list[int] = field(default_factory=list)  # shorter side of each readable image, pixels
    not_square: int = 0
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's
    grey: int = 0  # images without colour
    mean: tuple[float, ...] = ()  # of red, green and blue over all cropped squares, 0 to 255
    std: tuple[float, ...] = ()
    thumbnails: list[np.ndarray] = field(default_factory=list)  # evenly spaced, `SHEET_SIDE` pixels

    @property
    def faults(self) -> int:
        """Number of images that would stop a training run."""
        return len(self.faulty)

    def lines(self) -> list[str]:
        """The report as text."""
        readable = len(self.names) - len(self.unreadable)
        lines = [f"{len(self.names):,} images, {readable:,} readable; labels: {self.labels}"]
        lines += [self.passed_over] if self.passed_over else []
        if self.camera is not None:
            distance, fov = self.camera
            view = f"distance {distance:.3g}, field of view {fov:.4g} degrees"
            lines.append(f"cameras (median): {view}")
        if self.sides:
            lines += self._statistics()
        odd = "label is not a centred camera in a rigid pose (cameras=labels refuses it)"
        for title, entries in {
            "unreadable": self.unreadable,
            f"smaller than {self.resolution} pixels": self.too_small,
            "label missing or malformed": self.unlabelled,
            odd: self.odd_labels,
            "identical pixels": [" = ".join(group) for group in self.duplicates],
        }.items():
            if entries:
                lines.append(f"{title}: {len(entries):,}")
                lines += [f"  {entry}" for entry in entries[:_SHOWN]]
                if len(entries) > _SHOWN:
                    lines.append(f"  and {len(entries) - _SHOWN:,} more")
        return lines

    def _statistics(self) -> list[str]:
        """Lines about sizes and colours."""
        sides = sorted(self.sides)
        modes = ", ".join(f"{count:,} {mode}" for mode, count in self.modes.most_common())
        channels = zip(("red", "green", "blue"), self.mean, self.std, strict=True)
        colours = ", ".join(f"{name} {mean:.0f} ± {std:.0f}" for name, mean, std in channels)
        return [
            f"shorter side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}; "
            f"{self.not_square:,} not square",
            f"colour modes: {modes} (converted to RGB); {self.grey:,} without colour",
            f"colour, mean ± standard deviation: {colours}",
        ]


def check(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Decodes every image of a folder or zip.

    Args:
        resolution: resolution of the training run. Smaller images are faults.
        progress: called with the number of images decoded and the total.

    Raises:
        UserError: if the folder, the zip or its labels cannot be read, or there are no images.
    """
    source = open_source(Path(path), resolution)
    contents = read_contents(source)
    names, labels = contents.names, contents.labels
    shown_names = [printable(name) for name in names]
    report = DataReport(shown_names, resolution, _kind(labels), contents.passed_over)
    if labels is not None:
        _check_labels(report, labels, names)
    total, squares, count = np.zeros(3), np.zeros(3), 0  # of colours
    digests: dict[bytes, list[str]] = {}
    shown = {i * len(names) // SHEET_IMAGES for i in range(SHEET_IMAGES)}
    for number, name in enumerate(names):
        progress(number, len(names))
        try:
            with open_image(source, name) as image:
                mode = image.mode
                rgb = upright_rgb(image)
        except UserError as error:
            report.unreadable.append(str(error))
            report.faulty.add(name)
            continue
        side, pixels = min(rgb.size), np.asarray(rgb)
        content = pixels.tobytes() + repr(pixels.shape).encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        digests.setdefault(digest, []).append(printable(name))
        square = central_square(rgb, min(side, MOST_SIDE), "box")
        colours = np.asarray(square).reshape(-1, 3).astype(np.float64)
        total += colours.sum(axis=0)
        squares += (colours**2).sum(axis=0)
        count += len(colours)
        report.modes[mode] += 1
        report.sides.append(side)
        report.not_square += rgb.width != rgb.height
        report.grey += bool((pixels[..., :1] == pixels).all())
        if resolution is not None and side < resolution:
            report.too_small.append(f"{printable(name)} ({rgb.width}x{rgb.height})")
            report.faulty.add(name)
        if number in shown:
            square = central_square(rgb, SHEET_SIDE)
            report.thumbnails.append(np.asarray(square))
    progress(len(names), len(names))
    report.duplicates = [group for group in digests.values() if len(group) > 1]
    if report.sides:
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        report.mean, report.std = tuple(mean.tolist()), tuple(std.tolist())
    return report


def _kind(labels: Labels | None) -> str:
    """What the report says of the labels."""
    if labels is None:
        return "none"
    return "class numbers" if labels.are_classes else "cameras"


def _check_labels(report: DataReport, labels: Labels, names: list[str]) -> None:
    """Reports missing, malformed and odd labels, and the median camera of the others."""
    well_formed: dict[str, list[float]] = {}
    for name in names:
        try:
            well_formed[name] = labels[name]
        except UserError as error:
            report.unlabelled.append(str(error))
            report.faulty.add(name)
    if labels.are_classes:
        return
    numbers = torch.tensor(list(well_formed.values())).reshape(-1, LABEL_SIZE)
    usable = is_centred(numbers) & is_rigid(numbers)
    report.odd_labels = [
        printable(name) for name, good in zip(well_formed, usable.tolist(), strict=True) if not good
    ]
    if usable.any():
        cameras = Camera.from_label(numbers[usable])
        report.camera = float(cameras.position.norm(dim=1).median()), float(cameras.fov.median())
