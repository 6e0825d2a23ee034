"""Records of tensors: they move, index and join as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from cips3d.camera import Rays
from cips3d.models.types import RayDraws, Styles
from cips3d.records import TensorRecord


@dataclass(frozen=True)
class Pair(TensorRecord):
    """A record with an optional or repeated tensor."""

    first: Tensor
    second: Tensor | Sequence[Tensor] | None = None
    number: float = 1.0


@dataclass(frozen=True)
class Columns(TensorRecord):
    """A record along the second axis."""

    axis: ClassVar[int] = 1

    values: Tensor


NUMBERS = torch.arange(12.0).view(4, 3)


def pair(second: object = None) -> Pair:
    return Pair(NUMBERS, second, 0.5)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (2, [2]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(5, 9), []),
        (torch.tensor([3, 0, 3]), [3, 0, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ],
)
def test_entries_keep_their_axis(index: int | slice | Tensor, rows: list[int]) -> None:
    found = pair([NUMBERS, -NUMBERS])[index]
    assert torch.equal(found.first, NUMBERS[rows]) and len(found) == len(rows)
    assert isinstance(found.second, list)
    assert torch.equal(found.second[1], -NUMBERS[rows]) and found.number == 0.5
    assert pair()[index].second is None
    assert torch.equal(Columns(NUMBERS.t())[index].values, NUMBERS[rows].t())


@pytest.mark.parametrize("index", [4, -5])
def test_missing_entries_are_index_errors(index: int) -> None:
    with pytest.raises(IndexError):
        pair()[index]
    with pytest.raises(IndexError):
        Columns(NUMBERS.t())[index]


def test_iteration_gives_batches_of_one() -> None:
    assert [float(row.first[0, 0]) for row in pair()] == [0.0, 3.0, 6.0, 9.0]
    columns = list(Columns(NUMBERS.t()))
    assert len(columns) == 4 and torch.equal(columns[2].values, NUMBERS.t()[:, 2:3])


@pytest.mark.parametrize("second", [None, NUMBERS * 2, [NUMBERS, -NUMBERS]])
def test_parts_join_to_the_whole(second: Tensor | list[Tensor] | None) -> None:
    whole = pair(second)
    again = Pair.cat([whole[0], whole[1:3], whole[-1]])
    assert torch.equal(again.first, whole.first) and again.number == 0.5
    if second is None:
        assert again.second is None
    elif isinstance(second, Tensor):
        assert isinstance(again.second, Tensor) and torch.equal(again.second, second)
    else:
        assert isinstance(again.second, list)
        assert all(torch.equal(a, b) for a, b in zip(again.second, second, strict=True))
    columns = Columns(NUMBERS.t())
    assert torch.equal(Columns.cat([columns[:1], columns[1:]]).values, columns.values)


def test_parts_with_different_fields_do_not_join() -> None:
    for parts in ([pair(), pair(NUMBERS)], [pair(NUMBERS), pair()]):
        with pytest.raises(TypeError):
            Pair.cat(parts)


def test_conversion_reaches_every_tensor() -> None:
    for record in (pair(), pair(NUMBERS), pair([NUMBERS, NUMBERS])):
        double = record.to(torch.float64)
        flat = [double.first]
        if double.second is not None:
            flat += [double.second] if isinstance(double.second, Tensor) else double.second
        assert all(tensor.dtype == torch.float64 for tensor in flat) and double.number == 0.5
        assert record.first.dtype == torch.float32, "records do not change in place"
    assert torch.equal(pair(NUMBERS).map(torch.neg).first, -NUMBERS)


def test_records_of_the_package() -> None:
    styles = Styles(torch.ones(3, 2), [torch.zeros(3, 4), torch.ones(3, 4)])
    assert len(styles) == 3
    joined = Styles.cat([styles[2], styles[:2]])
    assert joined.shape.shape == (3, 2)
    assert [tuple(style.shape) for style in joined.appearance] == [(3, 4)] * 2
    rays = Rays(torch.zeros(2, 5, 3), torch.ones(2, 5, 3))
    assert rays[1:3].count == 2 and len(rays[1:3]) == 2 and len(list(rays)) == 5
    draws = RayDraws(torch.zeros(2, 5, 4), torch.zeros(2, 5, 0), visible_share=0.25)
    part = draws[torch.tensor([4, 1])]
    assert part.jitter.shape == (2, 2, 4) and part.noise is None and part.visible_share == 0.25
    assert RayDraws.cat([part, draws]).jitter.shape == (2, 7, 4)
