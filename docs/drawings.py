"""The drawings of docs/cameras.md, made with the package's own cameras and rays."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cips3d import Camera

#: Reproducible bytes, and colours that are visible on white and on black.
plt.rcParams |= {
    "svg.hashsalt": "cips3d",
    "font.size": 11,
    "text.color": "#777777",
    "axes.edgecolor": "#777777",
}
RED, GREEN, BLUE, GREY, ORANGE = "#d1495b", "#3a9d5d", "#3a7ebf", "#8a8a8a", "#d98b20"


def flat(points: np.ndarray) -> np.ndarray:
    """World points (…, 3) on paper (…, 2): a parallel projection from the front, right and top."""
    view = Camera.orbit(0.6, 0.35).cam_to_world[0, :3, :2].double().numpy()
    return np.asarray(points, dtype=float) @ view


def line(axes: Axes, points: np.ndarray, colour: str, **style: object) -> None:
    axes.plot(*flat(points).T, color=colour, **({"lw": 1.2} | style))


def arrow(axes: Axes, start: np.ndarray, way: np.ndarray, colour: str, name: str) -> None:
    a, b = flat(np.asarray(start)), flat(np.asarray(start) + np.asarray(way))
    axes.annotate(
        "",
        b,
        a,
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0},
        annotation_clip=False,
    )
    axes.annotate(
        name,
        b + 0.12 * (b - a) / np.linalg.norm(b - a),
        color=colour,
        ha="center",
        va="center",
        weight="bold",
        annotation_clip=False,
    )


def on_sphere(yaw: np.ndarray | float, pitch: np.ndarray | float) -> np.ndarray:
    yaw, pitch = np.broadcast_arrays(yaw, pitch)
    return np.stack(
        [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], axis=-1
    )


def frustum(axes: Axes, camera: Camera, length: float, fov: float, colour: str) -> np.ndarray:
    """Draws a camera as a pyramid towards what it sees; returns its axes."""
    pose = camera.cam_to_world[0].double().numpy()
    right, up, backward, position = (pose[:3, i] for i in range(4))
    half = length * math.tan(math.radians(fov) / 2)
    corners = [
        position - length * backward + x * half * right + y * half * up
        for x, y in ((-1, 1), (1, 1), (1, -1), (-1, -1))
    ]
    line(axes, np.array([*corners, corners[0]]), colour)
    for corner in corners:
        line(axes, np.array([position, corner]), colour, lw=0.8)
    return np.stack([right, up, backward])


def save(figure: Figure, out: Path) -> None:
    for axes in figure.axes:
        axes.set_aspect("equal")
        axes.axis("off")
    figure.savefig(out, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def orbit(out: Path) -> None:
    """The sphere with the camera at yaw 80°, pitch 40°."""
    figure, axes = plt.subplots(figsize=(6, 5))
    turn = np.linspace(0, 2 * math.pi, 200)
    yaw, pitch = math.radians(80), math.radians(40)
    line(axes, on_sphere(turn, 0.0), GREY, lw=0.8)
    line(axes, on_sphere(0.0, turn), GREY, lw=0.8)
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, lw=0.8, ls=":"))
    for way, colour, name in (
        ((1.3, 0, 0), RED, "x"),
        ((0, 1.25, 0), GREEN, "y"),
        ((0, 0, 1.45), BLUE, "z, front"),
    ):
        arrow(axes, np.zeros(3), np.array(way), colour, name)
    camera = Camera.orbit(yaw, pitch)
    foot = on_sphere(yaw, 0.0)
    line(axes, np.array([np.zeros(3), foot]), GREY, ls="--", lw=0.9)
    line(axes, np.array([np.zeros(3), on_sphere(yaw, pitch)]), GREY, ls="--", lw=0.9)
    line(axes, on_sphere(np.linspace(0, yaw, 40), 0.0), ORANGE, lw=2.5)
    line(axes, on_sphere(yaw, np.linspace(0, pitch, 40)), ORANGE, lw=2.5)
    axes.annotate(
        "yaw", flat(on_sphere(yaw / 2, 0.0)) - np.array([0, 0.1]), color=ORANGE, ha="center"
    )
    axes.annotate("pitch", flat(on_sphere(yaw, pitch / 2)) + np.array([0.05, 0]), color=ORANGE)
    frustum(axes, camera, 0.3, 40, "#777777")
    axes.annotate("camera", flat(on_sphere(yaw, pitch)) + 0.06)
    head = 0.12 * on_sphere(turn[:, None], np.linspace(-1.5, 1.5, 9))
    for i in range(head.shape[1]):
        line(axes, head[:, i], GREY, lw=0.6)
    save(figure, out)


def axes_of_cameras(out: Path) -> None:
    """One camera with its axes of OpenGL and of OpenCV."""
    figure, both = plt.subplots(1, 2, figsize=(8, 3.6))
    camera = Camera.orbit(-0.5, 0.1)
    for axes, name, pose in zip(
        both,
        ("OpenGL: cam_to_world", "OpenCV: to_opencv()"),
        (camera.cam_to_world, camera.to_opencv()),
        strict=True,
    ):
        matrix = pose[0].double().numpy()
        frustum(axes, camera, 0.8, 45, GREY)
        for i, colour in enumerate((RED, GREEN, BLUE)):
            arrow(axes, matrix[:3, 3], 0.45 * matrix[:3, i], colour, "xyz"[i])
        axes.set_title(name, color="#777777")
        middle = flat(matrix[:3, 3])
        axes.set_xlim(middle[0] - 0.75, middle[0] + 1.0)
        axes.set_ylim(middle[1] - 0.75, middle[1] + 0.65)
    save(figure, out)


def pixels(out: Path) -> None:
    """A column of four pixels from the side with its rays, ours and the authors'."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    count, camera = 4, Camera.orbit(0.0, fov=60.0)
    edge = math.tan(math.radians(30))
    grids = {
        "pixel centres": camera,
        "corner-aligned (the authors')": camera.from_corner_grid(count),
    }
    for axes, (name, seen) in zip(both, grids.items(), strict=True):
        rays = seen.rays(count, 1).directions[0].double().numpy()
        axes.fill([0, 1, 1], [0, edge, -edge], color=GREY, alpha=0.15, lw=0)
        axes.plot([1, 0, 1], [edge, 0, -edge], color=GREY, lw=1, ls="--")
        half = math.tan(math.radians(float(seen.fov[0]) / 2))
        for i in range(count + 1):
            y = half * (2 * i / count - 1)
            axes.plot([0.97, 1.03], [y, y], color="#777777", lw=1.5)
        axes.plot([1, 1], [-half, half], color="#777777", lw=1.5)
        for direction in rays:
            x, y = -direction[2], direction[1]
            axes.plot([0, 1.25], [0, 1.25 * y / x], color=ORANGE, lw=1.3)
            axes.plot(1, y / x, "o", color=ORANGE, ms=5)
        axes.plot(0, 0, "o", color="#777777")
        arc = np.radians(np.linspace(-30, 30, 30))
        axes.plot(0.25 * np.cos(arc), 0.25 * np.sin(arc), color=BLUE, lw=1.5)
        axes.annotate("fov", (0.1, -0.23), color=BLUE)
        axes.set_title(name, color="#777777")
    save(figure, out)


DRAWINGS = {"orbit.svg": orbit, "axes.svg": axes_of_cameras, "pixels.svg": pixels}
