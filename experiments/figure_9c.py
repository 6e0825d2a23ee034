"""Fig. 9c: ModFC by batched matrix product (bmm) is faster than by grouped convolution.

The paper (Section 3.2, layers 512 → 512) reports 15.18 batches per second by grouped convolution
and 27.78 by bmm, 1.8 times as many: "batch size of 4096, input/output dimension of 512", average of
1000 runs on a GPU. It does not say how many points share a style. There are two readings:

- 4096 styles of one point each. Then 4096 modulated weights of 512×512, 4 GiB, are written and read
  a few times: about 20 GB of traffic, some 30 ms on a GPU of the time. The paper's rate fits this
  reading; the matrix product itself hardly counts. Convolution may need 24 GiB for them, so a
  quarter as many are measured (forward only), and 256 with gradients.
- 4096 points that share a style (a 64² image), for one or a few styles. The generator uses the
  layer this way.

Both times include modulation and demodulation, float32. Each form gets its own layout: (b, n, 512)
rows for bmm, (b, 512, n, 1) maps for convolution, so nothing is transposed. Parameters are shared,
and the results are compared. A minute on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import Result
from torch import Tensor

from cips3d.models.layers import ModulatedLinear
from cips3d.training.allocator import keep_freed_memory

DIM, STYLE_DIM = 512, 512
#: Styles and points per style, measured with gradients and without.
CASES = ((1, 4096), (4, 4096), (16, 1024), (256, 1))
#: Nearest to the reading that fits the paper's numbers; forward only.
NEAREST = (1024, 1)
#: Batches per second by grouped convolution and by bmm.
PAPER = (15.18, 27.78)
SECONDS = 4.0  # for both forms of one case together


def grouped_convolution(layer: ModulatedLinear, x: Tensor, w: Tensor) -> Tensor:
    """The layer as in StyleGAN2 and CIPS: a 1×1 convolution with a group per batch entry.

    Args:
        x: (b, in, n, 1).
        w: (b, style_dim).
    """
    batch, in_dim, *size = x.shape
    weight = layer.weight.t()[None] * (layer.affine(w) + 1)[:, None, :]
    weight = weight * torch.rsqrt(weight.square().sum(dim=2, keepdim=True) + 1e-8)
    out = F.conv2d(
        x.reshape(1, batch * in_dim, *size), weight.reshape(-1, in_dim, 1, 1), groups=batch
    )
    return out.view(batch, -1, *size)


def seconds_each(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both functions, called in turns."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(times[0]) < 3:
        for function, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def measured(layer: ModulatedLinear, styles: int, points: int, gradients: bool) -> dict[str, float]:
    """Calls per second of both forms."""
    rows = torch.randn(styles, points, DIM, requires_grad=gradients)
    maps = rows.detach().transpose(1, 2).unsqueeze(3).contiguous().requires_grad_(gradients)
    w = torch.randn(styles, STYLE_DIM)

    def by_bmm() -> Tensor:
        return torch.bmm(rows, layer.modulated_weight(w))

    def by_convolution() -> Tensor:
        return grouped_convolution(layer, maps, w)

    def with_backward(function: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            function().sum().backward()
            for tensor in (rows, maps, *layer.parameters()):
                tensor.grad = None

        return run

    with torch.set_grad_enabled(gradients):
        with torch.no_grad():
            expected = by_bmm()
            other = by_convolution()[..., 0].transpose(1, 2)
            difference = float((expected - other).abs().max() / expected.abs().max())
            del expected, other
        assert difference < 1e-4, difference
        if gradients:
            bmm, convolution = seconds_each(with_backward(by_bmm), with_backward(by_convolution))
        else:
            bmm, convolution = seconds_each(by_bmm, by_convolution)
    found = {
        "styles": styles,
        "points": points,
        "gradients": gradients,
        "convolution": 1 / convolution,
        "bmm": 1 / bmm,
    }
    print("  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    return found


def main() -> None:
    claim = (
        "ModFC is faster by bmm than by grouped convolution where every point has its own style "
        "(Fig. 9c)"
    )
    result = Result("figure_9c", claim)
    torch.manual_seed(0)
    keep_freed_memory()
    layer = ModulatedLinear(DIM, DIM, STYLE_DIM)
    rows = [measured(layer, *case, gradients) for case in CASES for gradients in (False, True)]
    rows.append(measured(layer, *NEAREST, gradients=False))
    holds = rows[-1]["bmm"] > rows[-1]["convolution"]
    result.write({"paper_calls_per_second": PAPER, "calls_per_second": rows}, holds, seeds=(0,))


if __name__ == "__main__":
    main()
