"""Images, depth maps and videos: tensors in [-1, 1] become files."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Annotated

import av
import av.error
import av.filter
import numpy as np
import torch
from annotated_types import Ge, Le
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cips3d.configuration import validated
from cips3d.errors import UserError
from cips3d.files import atomic_path, suffix_of
from cips3d.models.types import to_uint8 as to_uint8

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
#: Longest side of a JPEG, pixels.
_JPEG_SIDE = 65500
#: Control points of matplotlib's "inferno", dark to bright: perceptually uniform, in greyscale too.
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
#: Options of FFmpeg's muxers: an MP4 plays while it loads, a GIF repeats forever.
_MUXER_OPTIONS = {".mp4": {"movflags": "faststart"}, ".gif": {"loop": "0"}}
_FPS = {".mp4": Annotated[float, Ge(0.01), Le(1000)], ".gif": Annotated[float, Ge(0.01), Le(50)]}
#: Quality of x264; 18 is visually lossless.
_CRF = "18"
#: FFmpeg's number for the primaries and the transfer curve of high-definition video.
_BT709 = 1
#: An open stream, and the conversion of RGB frames for it.
_Encoder = tuple[VideoStream, Callable[[av.VideoFrame], av.VideoFrame]]


def depth_map(
    depth: Float[Tensor, "batch 1 height width"],
    opacity: Float[Tensor, "batch 1 height width"] | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """Depth in colour, in [-1, 1]: near is bright and warm, far is dark, the background is black.

    Args:
        depth: world units from the camera.
        opacity: in [0, 1]; colours fade to black with it. None: opaque everywhere.
        near, far: depths of the brightest and the darkest colour, world units. Defaults: the 2nd
            and 98th percentile of the batch at pixels that are at least half opaque, so stray
            pixels do not flatten the rest. Give both to compare batches or the frames of a video.
    """
    seen = torch.isfinite(depth) if opacity is None else torch.isfinite(depth) & (opacity >= 0.5)
    near_seen, far_seen = robust_range(depth[seen].float())
    near, far = near_seen if near is None else near, far_seen if far is None else far
    nearness = ((far - depth.float()) / max(far - near, 1e-6)).nan_to_num(0.0).clamp(0, 1)
    # the darkest tenth of the table is left to the background, so a head's far side stands out
    table = _INFERNO.to(depth.device)
    place = (0.1 + 0.9 * nearness[:, 0]) * (len(table) - 1)
    below = place.floor().long().clamp(max=len(table) - 2)
    colours = torch.lerp(table[below], table[below + 1], (place - below)[..., None])
    colours = colours.permute(0, 3, 1, 2)
    if opacity is not None:
        colours = colours * opacity.float().nan_to_num(0.0).clamp(0, 1)
    return colours * 2 - 1


def robust_range(depths: Float[Tensor, " seen"]) -> tuple[float, float]:
    """The 2nd and the 98th percentile; 0 and 1 without any depths."""
    if depths.numel() == 0:
        return 0.0, 1.0
    near, far = np.percentile(depths.detach().cpu().numpy(), [2, 98])
    return float(near), float(far)


# ---------------------------------------------------------------- files
def save_image(path: str | os.PathLike[str], image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a PNG, or a JPEG of quality 95, whole or not at all."""
    is_jpeg = suffix_of(path, *IMAGE_SUFFIXES) != ".png"
    if is_jpeg and max(image.shape) > _JPEG_SIDE:
        raise UserError(
            f"{path}: a JPEG has sides of at most {_JPEG_SIDE} pixels and this image is "
            f"{image.shape[1]}x{image.shape[0]}; write a .png"
        )
    options = {"quality": 95, "subsampling": 0} if is_jpeg else {}
    content = io.BytesIO()  # Pillow itself does not notice that a disk cut a JPEG short
    Image.fromarray(image).save(content, "JPEG" if is_jpeg else "PNG", **options)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def save_frames(
    path: str | os.PathLike[str],
    frames: Iterable[UInt8[np.ndarray, "height width 3"]],
    fps: float = 30,
) -> None:
    """Writes a video frame by frame in constant memory, whole or not at all.

    Args:
        path: `.mp4` (H.264, 4:2:0; an odd height or width repeats its last row or column) or `.gif`
            (256 colours per frame, endless, frame times rounded to hundredths of a second).
        frames: images of one size.
        fps: frames per second, 0.01 to 1000; at most 50 in a GIF, since players slow down beyond.
    """
    suffix = suffix_of(path, *_FPS)
    rate = Fraction(validated(_FPS[suffix], fps, f"{path}: fps")).limit_denominator(1001)
    encoder = _gif_encoder if suffix == ".gif" else _mp4_encoder
    try:
        with (
            atomic_path(path) as temporary,
            av.open(str(temporary), "w", options=_MUXER_OPTIONS[suffix]) as container,
        ):
            arrays = _same_sized(path, frames, even=suffix == ".mp4")
            first = next(arrays)
            stream, converted = encoder(container, first.shape[0], first.shape[1], rate)
            for index, array in enumerate(itertools.chain([first], arrays)):
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
                frame = converted(frame)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; give a path that can be written and has room"
        ) from error


def _mp4_encoder(container: OutputContainer, height: int, width: int, rate: Fraction) -> _Encoder:
    stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF})
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
    codec.color_primaries = codec.color_trc = _BT709
    return stream, lambda frame: frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


def _gif_encoder(container: OutputContainer, height: int, width: int, rate: Fraction) -> _Encoder:
    """Gives every frame its own palette of 256 colours."""
    stream = container.add_stream("gif", rate=rate)
    stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
    stream.codec_context.time_base = 1 / rate
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgba"), time_base=1 / rate
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette, use = graph.add("palettegen", "stats_mode=single"), graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()

    def converted(frame: av.VideoFrame) -> av.VideoFrame:
        graph.vpush(frame.reformat(format="rgba"))
        return graph.vpull()

    return stream, converted


def _same_sized(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], even: bool
) -> Iterator[np.ndarray]:
    """The frames, with their last row or column repeated where sides must be even."""
    shape = None
    for index, array in enumerate(frames):
        shape = shape or array.shape
        if array.shape != shape:
            raise UserError(
                f"{path}: frame {index} is {array.shape[1]}x{array.shape[0]}, "
                f"the first is {shape[1]}x{shape[0]}; give one size"
            )
        padding = [(0, side % 2 if even else 0) for side in shape[:2]]
        yield np.pad(np.ascontiguousarray(array), [*padding, (0, 0)], mode="edge")
    if shape is None:
        raise UserError(f"{path}: a video needs frames and there are none; give at least one")
