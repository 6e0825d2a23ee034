"""Rays through the FiLM-SIREN field of a subject, as one compiled loop per block of rays.

It computes what `cips3d.models.nerf` computes in torch, for float32 on CPUs and without gradients:
densities of coarse and fine samples, compositing weights, and the weighted sum of the hidden
features behind them. Samples are evaluated some dozens at a time, one per vector lane, and all
values stay in the cache.
"""

from __future__ import annotations

import typing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cips3d.camera import Rays
from cips3d.models.ops.kernels import kernel
from cips3d.models.ops.sampling import invert_row
from cips3d.models.ops.sine import _sine_of
from cips3d.models.volume import ENDLESS

#: Samples evaluated at a time, a multiple of every vector width: of fields up to `NARROW` wide, and
#: of wider ones, so that a layer's activations stay in the first-level cache.
LANES, NARROW = (128, 64), 64
#: Columns of a matrix that one pass over its output takes.
UNROLLED = 8
#: The widest field: of wider ones torch's matrix products make more.
WIDEST = 128
#: Rays handled at a time, and the fewest for which a second thread is worth starting.
BLOCK, LEAST = 32, 256

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
#: As in `volume`: against log 0, and for empty bins.
_TINY, _BIN = np.float32(1e-10), np.float32(1e-5)
_EPSILON = np.float32(np.finfo(np.float32).eps)
#: Matrices M and offsets c of layers x ↦ sin(x M + c), for each style.
Film = list[tuple[Float[Tensor, "batch _ _"], Float[Tensor, "batch 1 _"]]]


class Marched(typing.NamedTuple):
    """What `march` returns for n rays of each subject."""

    hidden: Float[Tensor, "batch n hidden"]
    """Σ w h, the weighted sum of the last FiLM-SIREN layer"""
    depth: Float[Tensor, "batch n"]
    """Σ w t"""
    opacity: Float[Tensor, "batch n"]
    """Σ w"""
    last_weight: Float[Tensor, "batch n"]


class Field(typing.NamedTuple):
    """A field of one style with everything folded into float32 matrices, output rows first.

    Rows and columns are filled up with zeros to multiples of `UNROLLED`.
    """

    first: np.ndarray
    """of positions in world units, like all of `layers` with its offset"""
    first_offset: np.ndarray
    layers: np.ndarray
    """the other layers before the density, (layers, width, width)"""
    offsets: np.ndarray
    feature: np.ndarray
    """of the layer behind the density"""
    feature_offset: np.ndarray
    feature_rows: int
    """rows that were not filled up"""
    density: np.ndarray
    density_offset: np.ndarray
    falloff: np.float32
    """by which σ falls with the squared distance from the origin"""
    extent: np.float32
    """half the depth of the volume on each ray"""
    endless: bool
    last: bool
    """the backgrounds "endless" and "last" """
    occupied: np.ndarray
    """(side³,) cells that can hold density"""
    side: int
    scale: np.float32
    """cells per world unit"""


def fields(
    film: Film,
    density: tuple[Float[Tensor, "1 width"], Float[Tensor, " 1"]],
    falloff: float,
    extent: float,
    background: str,
    grid: tuple[Tensor, int, float],
) -> list[Field]:
    """Fields of layers, the density's weight and bias, and a grid."""
    matrices = [_filled(matrix.transpose(1, 2)) for matrix, _ in film]
    offsets = [_filled(offset)[:, 0] for _, offset in film]
    batch, width = offsets[0].shape
    inner = len(film) - 2
    layers = np.array(matrices[1:-1], np.float32).reshape(inner, batch, width, width)
    inner_offsets = np.array(offsets[1:-1], np.float32).reshape(inner, batch, width)
    shared = (
        film[-1][0].shape[2],
        _filled(density[0][None])[0],
        _filled(density[1][None, None])[0, 0],
        np.float32(falloff),
        np.float32(extent),
        background == "endless",
        background == "last",
        grid[0].numpy(),
        grid[1],
        np.float32(grid[2]),
    )
    return [
        Field(
            matrices[0][i],
            offsets[0][i],
            np.ascontiguousarray(layers[:, i]),
            np.ascontiguousarray(inner_offsets[:, i]),
            matrices[-1][i],
            offsets[-1][i],
            *shared,
        )
        for i in range(batch)
    ]


def _filled(matrix: Float[Tensor, "batch rows columns"]) -> np.ndarray:
    rows, columns = (-size % UNROLLED for size in matrix.shape[1:])
    return F.pad(matrix.detach(), (0, columns, 0, rows)).contiguous().numpy()


def march(subjects: list[Field], rays: Rays, jitter: Tensor, importance: Tensor) -> Marched:
    """Volume rendering (paper Eq. 4) of each subject's centred rays, see `Rays.centred`."""
    shape = len(rays), rays.count
    like = {"dtype": torch.float32, "device": "cpu"}
    hidden = torch.zeros(*shape, subjects[0].feature_rows, **like)
    out = Marched(hidden, *(torch.zeros(shape, **like) for _ in range(3)))
    nothing = torch.empty(len(rays), 0, 0, **like)
    _in_threads(subjects, rays, jitter, importance, *out, nothing, nothing)
    return out


def samples(
    subjects: list[Field], rays: Rays, jitter: Tensor, importance: Tensor
) -> tuple[Float[Tensor, "batch n samples"], Float[Tensor, "batch n samples"]]:
    """Sorted depths of the coarse and fine samples of centred rays, and raw densities there."""
    like = {"dtype": torch.float32, "device": "cpu"}
    count = jitter.shape[2] + importance.shape[2]
    t, sigma = (torch.empty(len(rays), rays.count, count, **like) for _ in range(2))
    nothing = torch.empty(len(rays), 0, **like)
    _in_threads(
        subjects, rays, jitter, importance, nothing[..., None], nothing, nothing, nothing, t, sigma
    )
    return t, sigma


def _in_threads(subjects: list[Field], rays: Rays, *tensors: Tensor) -> None:
    """Calls the loop for parts of the rays, in as many threads as torch uses."""
    arrays = [x.contiguous().numpy() for x in (rays.origins, rays.directions, *tensors)]
    n = rays.count
    threads = max(1, min(torch.get_num_threads(), len(subjects) * n // LEAST))
    # small parts, since rays that meet something are not evenly spread
    size = -(-n * len(subjects) // (threads * 16)) if threads > 1 else n
    size = max(LEAST, -(-size // BLOCK) * BLOCK)

    def work(part: tuple[int, slice]) -> None:
        subject, some = part
        _march(*subjects[subject], *(array[subject, some] for array in arrays))

    parts = [(i, slice(k, k + size)) for i in range(len(subjects)) for k in range(0, n, size)]
    if threads == 1:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))


@typing.no_type_check
@kernel(fastmath={"contract"})
def _affine(matrix, offset, x, out, count):
    """Computes matrix · x + offset, lane by lane."""
    rows, columns = matrix.shape
    whole = columns - columns % UNROLLED  # all of them; LLVM makes better code for this form
    for c in range(0, rows, 2):  # two rows, so that an x that is loaded serves twice
        one, two = out[c], out[c + 1]
        for s in range(count):
            one[s] = offset[c]
        for s in range(count):
            two[s] = offset[c + 1]
        d = c + 1
        for k in range(0, whole, UNROLLED):
            a0, a1, a2, a3 = matrix[c, k], matrix[c, k + 1], matrix[c, k + 2], matrix[c, k + 3]
            a4, a5, a6, a7 = matrix[c, k + 4], matrix[c, k + 5], matrix[c, k + 6], matrix[c, k + 7]
            b0, b1, b2, b3 = matrix[d, k], matrix[d, k + 1], matrix[d, k + 2], matrix[d, k + 3]
            b4, b5, b6, b7 = matrix[d, k + 4], matrix[d, k + 5], matrix[d, k + 6], matrix[d, k + 7]
            for s in range(count):
                x0, x1, x2, x3 = x[k, s], x[k + 1, s], x[k + 2, s], x[k + 3, s]
                x4, x5, x6, x7 = x[k + 4, s], x[k + 5, s], x[k + 6, s], x[k + 7, s]
                one[s] += (
                    a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3 + a4 * x4 + a5 * x5 + a6 * x6 + a7 * x7
                )
                two[s] += (
                    b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3 + b4 * x4 + b5 * x5 + b6 * x6 + b7 * x7
                )


@typing.no_type_check
@kernel(fastmath={"contract"})
def _siren(matrix, offset, x, out, count):
    """A FiLM-SIREN layer (Eq. 2), lane by lane."""
    _affine(matrix, offset, x, out, count)
    for c in range(matrix.shape[0]):
        for s in range(count):
            out[c, s] = _sine_of(out[c, s])


@typing.no_type_check
@kernel(fastmath={"contract"})
def _weigh(t, sigma, end, last, weights):
    """As `RadianceField.weights`, for one ray."""
    count, transmittance, total = t.shape[0], _ONE, _ZERO
    for s in range(count):
        weights[s] = _ZERO
        if sigma[s] > _ZERO:
            following = t[s + 1] if s + 1 < count else max(end, t[s])
            transparency = np.exp((t[s] - following) * sigma[s])
            weights[s] = (_ONE - transparency) * transmittance
            transmittance *= transparency + _TINY
        if s + 1 < count:
            total += weights[s]
    if last:
        weights[count - 1] = _ONE - total


@typing.no_type_check
@kernel(fastmath={"contract"})
def _sorted(t, coarse, order):
    """Finds the order of one ray's depths, of which the first `coarse` ones are sorted."""
    count = t.shape[0]
    for i in range(coarse, count):  # few moves, since most draws are sorted
        j = i - 1
        while j >= coarse and t[order[j]] > t[i]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = i
    a, b = 0, coarse
    for i in range(count):
        if b == count or (a < coarse and t[a] <= t[order[b]]):
            order[i] = a
            a += 1
        else:
            order[i] = order[b]
            b += 1


@typing.no_type_check
@kernel(fastmath={"contract"})
def _march(
    first, first_offset, layers, offsets, feature, feature_offset, feature_rows, density,
    density_offset, falloff, extent, endless, last, occupied, side, scale,
    origins, directions, jitter, importance, summed, depth, opacity, last_weight, all_t, all_sigma,
):  # fmt: skip
    coarse, fine = jitter.shape[1], importance.shape[1]
    samples, width = coarse + fine, first.shape[0]
    most_lanes = LANES[0] if width <= NARROW else LANES[1]
    # of the rays of a block
    t, sigma = np.empty((BLOCK, samples), np.float32), np.empty((BLOCK, samples), np.float32)
    weights = np.empty((BLOCK, samples), np.float32)
    order = np.empty(samples, np.int64)
    edges, cdf = np.empty(coarse - 1, np.float32), np.empty(coarse - 1, np.float32)
    bins = np.empty(coarse - 2, np.float32)
    sorted_t, sorted_sigma = np.empty(samples, np.float32), np.empty(samples, np.float32)
    sorted_weights = np.empty(samples, np.float32)
    # of the evaluated samples of a block
    most = BLOCK * samples // most_lanes + 2
    ray, sample = np.empty((most, most_lanes), np.int64), np.empty((most, most_lanes), np.int64)
    used = np.empty(most, np.int64)
    points = np.zeros((UNROLLED, most_lanes), np.float32)
    activations = np.zeros((most, width, most_lanes), np.float32)
    spare = np.zeros((max(width, feature.shape[0]), most_lanes), np.float32)
    met = np.empty(BLOCK, np.bool_)
    spacing = np.float32(2) * extent / np.float32(coarse - 1)
    end = np.float32(ENDLESS) if endless else extent
    highest = np.float32(side - 1)
    middle = highest * _HALF + _HALF
    for start in range(0, origins.shape[0], BLOCK):
        block = min(BLOCK, origins.shape[0] - start)
        batch, count = 0, 0
        met[:] = last or len(all_t) > 0
        for stage in range(2 if fine > 0 else 1):
            begin, stop = (0, coarse) if stage == 0 else (coarse, samples)
            for r in range(block):
                n = start + r
                if stage == 0:
                    for s in range(coarse):
                        t[r, s] = (np.float32(s) + (jitter[n, s] - _HALF)) * spacing - extent
                else:
                    _weigh(t[r, :coarse], sigma[r, :coarse], end, last, weights[r, :coarse])
                    for i in range(coarse - 1):
                        edges[i] = (t[r, i] + t[r, i + 1]) * _HALF
                    for i in range(coarse - 2):
                        bins[i] = weights[r, i + 1] + _BIN
                    invert_row(edges, bins, importance[n], cdf, t[r, coarse:])
            for r in range(block):
                n = start + r
                for s in range(begin, stop):
                    sigma[r, s] = _ZERO
                    x = origins[n, 0] + t[r, s] * directions[n, 0]
                    y = origins[n, 1] + t[r, s] * directions[n, 1]
                    z = origins[n, 2] + t[r, s] * directions[n, 2]
                    i = int(min(max(x * scale + middle, _ZERO), highest))
                    j = int(min(max(y * scale + middle, _ZERO), highest))
                    k = int(min(max(z * scale + middle, _ZERO), highest))
                    if last or occupied[(i * side + j) * side + k]:
                        points[0, count], points[1, count], points[2, count] = x, y, z
                        ray[batch, count], sample[batch, count] = r, s
                        count += 1
                    if count == most_lanes or (count > 0 and r == block - 1 and s == stop - 1):
                        lanes = (count + 15) // 16 * 16  # whole vectors are faster than remainders
                        from_, to = activations[batch], spare
                        _siren(first, first_offset, points, from_, lanes)
                        for layer in range(layers.shape[0]):
                            _siren(layers[layer], offsets[layer], from_, to, lanes)
                            from_, to = to, from_
                        if layers.shape[0] % 2:
                            activations[batch, :, :lanes] = from_[:width, :lanes]
                        _affine(density, density_offset, activations[batch], spare, lanes)
                        for c in range(count):
                            squared = (
                                points[0, c] * points[0, c] + points[1, c] * points[1, c]
                                + points[2, c] * points[2, c]
                            )  # fmt: skip
                            found = spare[0, c] - falloff * squared
                            sigma[ray[batch, c], sample[batch, c]] = found
                            if found > _ZERO:
                                met[ray[batch, c]] = True
                        used[batch] = count
                        batch, count = batch + 1, 0
        for r in range(block):
            n = start + r
            if not met[r]:
                weights[r] = _ZERO
                continue
            _sorted(t[r], coarse, order)
            for s in range(samples):
                sorted_t[s], sorted_sigma[s] = t[r, order[s]], sigma[r, order[s]]
            if len(all_t) > 0:
                all_t[n], all_sigma[n] = sorted_t, sorted_sigma
                continue
            _weigh(sorted_t, sorted_sigma, end, last, sorted_weights)
            last_weight[n] = sorted_weights[samples - 1]
            for s in range(samples):
                weights[r, order[s]] = sorted_weights[s]
                opacity[n] += sorted_weights[s]
                depth[n] += sorted_weights[s] * sorted_t[s]
        for done in range(0 if len(all_t) > 0 else batch):
            lanes = (used[done] + 15) // 16 * 16
            _siren(feature, feature_offset, activations[done], spare, lanes)
            for c in range(used[done]):
                weight = weights[ray[done, c], sample[done, c]]
                if weight > _EPSILON:
                    for h in range(feature_rows):
                        summed[start + ray[done, c], h] += weight * spare[h, c]
