"""Pictures, grids, depth pictures and videos: from tensors in [-1, 1] to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import av.filter
import numpy as np
import torch
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cips3d.errors import UserError
from cips3d.files import atomic_path

#: Control points of matplotlib's "inferno", dark to bright: evenly spaced in perceived lightness, readable in grey too.
_INFERNO = torch.tensor(
    [
        [0.001, 0.000, 0.014],
        [0.122, 0.047, 0.282],
        [0.333, 0.059, 0.428],
        [0.534, 0.134, 0.415],
        [0.736, 0.216, 0.330],
        [0.891, 0.350, 0.202],
        [0.978, 0.558, 0.035],
        [0.976, 0.793, 0.247],
        [0.988, 0.998, 0.645],
    ]
)

_MUXER_OPTIONS = {
    ".mp4": {"movflags": "faststart"},
    ".gif": {"loop": "0"},
}  # plays while it loads; plays for ever
_MIN_FPS, _MAX_FPS = 0.01, {".mp4": 1000, ".gif": 50}
_CRF = "18"  # x264's quality; 18 is visually lossless
_BT709 = 1  # FFmpeg's number for the primaries and the transfer curve of high-definition video


def to_uint8(
    images: Float[Tensor, "batch 3 height width"],
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Images in [-1, 1] as 8-bit ones, rounded to the nearest level; values outside are clipped and NaN becomes black."""
    levels = (images.detach().float() * 127.5 + 127.5).nan_to_num(0.0).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def image_grid(
    images: Float[Tensor, "count 3 height width"], columns: int, padding: int = 2
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """The images row by row in one picture with `columns` columns, `padding` black pixels between them and none outside.

    Places that are left over in the last row stay black.

    Raises:
        UserError: if there are no images or `columns` is below 1.
    """
    if columns < 1 or len(images) == 0:
        raise UserError(
            f"image grid: {len(images)} images in {columns} columns leave nothing to show; give at least 1 of each"
        )
    height, width = images.shape[-2:]
    grid, cells = blank_grid(-(-len(images) // columns), columns, height, width, padding)
    for index, picture in enumerate(to_uint8(images)):
        cells[divmod(index, columns)] = picture
    return grid


def blank_grid(
    rows: int, columns: int, height: int, width: int, padding: int = 2
) -> tuple[
    UInt8[np.ndarray, "grid_height grid_width 3"], UInt8[np.ndarray, "rows columns height width 3"]
]:
    """A black picture, and its places for pictures of height x width, which are views into it: what is written there shows."""
    whole = np.zeros((rows * (height + padding), columns * (width + padding), 3), dtype=np.uint8)
    cells = whole.reshape(rows, height + padding, columns, width + padding, 3).swapaxes(1, 2)[
        :, :, :height, :width
    ]
    return whole[: whole.shape[0] - padding, : whole.shape[1] - padding], cells


def depth_picture(
    depth: Float[Tensor, "batch 1 height width"],
    opacity: Float[Tensor, "batch 1 height width"] | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """Depth in colour, in [-1, 1]: near is bright and warm, far is dark, the empty background black.

    Depth is mapped linearly from `near` … `far` to the colours, and clipped to them. A bound that is not given is the 2nd
    (near) or 98th (far) percentile of the finite depths in the whole batch, at pixels that are at least half opaque, so that
    stray pixels do not flatten the rest; one range for the batch keeps its pictures comparable. Give both bounds to compare
    batches or the frames of a video.

    Args:
        depth: world units from the camera.
        opacity: in [0, 1]; colours fade to black with it. None means opaque everywhere.
        near, far: the depths that get the brightest and the darkest colour, world units.
    """
    seen = torch.isfinite(depth) if opacity is None else torch.isfinite(depth) & (opacity >= 0.5)
    near_seen, far_seen = robust_range(depth[seen].float())
    near, far = near_seen if near is None else near, far_seen if far is None else far
    nearness = ((far - depth.float()) / max(far - near, 1e-6)).nan_to_num(0.0).clamp(0, 1)
    # The darkest tenth of the table is left to the background, so that the far side of a head stands out from it.
    colour = _colours(0.1 + 0.9 * nearness[:, 0])
    if opacity is not None:
        colour = colour * opacity.float().nan_to_num(0.0).clamp(0, 1)
    return colour * 2 - 1


def save_image(path: str | os.PathLike[str], picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        UserError: if `path` does not end in .png, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are written as PNG; end the name in .png")
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def save_frames(
    path: str | os.PathLike[str],
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: float = 30,
) -> None:
    """Writes a video as the frames come, so that memory does not grow with their number; the file appears whole or not at all.

    Args:
        path: `.mp4` (H.264, 4:2:0; an odd height or width is padded by repeating its last row or column) or `.gif` (256 colours
            per frame, endless, frame times rounded to hundredths of a second).
        frames: pictures of one size.
        fps: frames per second, 0.01 to 1000; at most 50 in a GIF, which players slow down beyond that.

    Raises:
        UserError: if the suffix is another one, `fps` is out of range, there are no frames, their sizes differ, or the file
            cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _MUXER_OPTIONS:
        raise UserError(
            f"{path}: cannot write a video of kind {suffix or '(no suffix)'!r}; end the name in .mp4 or .gif"
        )
    if not _MIN_FPS <= fps <= _MAX_FPS[suffix]:
        raise UserError(
            f"fps: {fps} is no frame rate for {suffix}; give a number from {_MIN_FPS} to {_MAX_FPS[suffix]}"
        )
    write = _write_gif if suffix == ".gif" else _write_mp4
    try:
        with (
            atomic_path(path) as temporary,
            av.open(str(temporary), "w", options=_MUXER_OPTIONS[suffix]) as container,
        ):
            write(container, _same_sized(path, frames), Fraction(fps).limit_denominator(1001))
    except av.error.FFmpegError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; give a path that can be written and has room"
        ) from error


def _write_mp4(container: OutputContainer, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    stream = None
    for index, array in enumerate(frames):
        even = np.pad(
            array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge"
        )
        if stream is None:
            stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF})
            stream.height, stream.width, stream.pix_fmt = *even.shape[:2], "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = (
                Colorspace.ITU709,
                ColorRange.MPEG,
            )
            stream.codec_context.color_primaries = stream.codec_context.color_trc = _BT709
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = index, 1 / rate
        container.mux(stream.encode(frame))
    if stream is not None:
        container.mux(stream.encode(None))


def _write_gif(container: OutputContainer, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    stream = graph = None
    for index, array in enumerate(frames):
        if stream is None or graph is None:
            stream = container.add_stream("gif", rate=rate)
            stream.height, stream.width, stream.pix_fmt = *array.shape[:2], "pal8"
            stream.codec_context.time_base = 1 / rate
            graph = _palette_graph(stream.width, stream.height, 1 / rate)
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="rgba")
        frame.pts, frame.time_base = index, 1 / rate
        graph.vpush(frame)
        container.mux(stream.encode(graph.vpull()))
    if stream is not None:
        container.mux(stream.encode(None))


def _palette_graph(width: int, height: int, time_base: Fraction) -> av.filter.Graph:
    """Turns every frame into 256 colours of its own."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgba"), time_base=time_base
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette, use = graph.add("palettegen", "stats_mode=single"), graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _same_sized(path: str | os.PathLike[str], frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for index, array in enumerate(frames):
        shape = shape or array.shape
        if array.shape != shape:
            raise UserError(
                f"{path}: frame {index} is {array.shape[1]}x{array.shape[0]}, the first is {shape[1]}x{shape[0]}; give one size"
            )
        yield np.ascontiguousarray(array)
    if shape is None:
        raise UserError(f"{path}: a video needs frames and there are none; give at least one")


def robust_range(depths: Float[Tensor, " seen"]) -> tuple[float, float]:
    """The 2nd and the 98th percentile; 0 and 1 where there are no depths."""
    if depths.numel() == 0:
        return 0.0, 1.0
    near, far = np.percentile(depths.detach().cpu().numpy(), [2, 98])
    return float(near), float(far)


def _colours(values: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch 3 height width"]:
    """The table's colours, in [0, 1], at values in [0, 1]."""
    table = _INFERNO.to(values.device)
    place = values * (len(table) - 1)
    below = place.floor().long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None]).permute(
        0, 3, 1, 2
    )
