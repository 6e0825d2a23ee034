"""Frozen dataclasses of tensors that move, index and join as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="TensorRecord")


class TensorRecord:
    """Base of frozen dataclasses whose fields are tensors, sequences of tensors, or None."""

    #: The axis that `record[index]` and `cat` work along.
    axis: ClassVar[int] = 0

    def map(self: Self, function: Callable[[Tensor], Tensor]) -> Self:
        """The record with `function` applied to every tensor."""
        return type(self)(*(_mapped(value, function) for value in vars(self).values()))

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """The record with `Tensor.to(*args, **kwargs)` applied to every tensor."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        """Entries along the first axis, the batch."""
        return len(next(iter(vars(self).values())))

    def __getitem__(self: Self, index: int | slice | Tensor) -> Self:
        """The entries at `index`; an int keeps an axis of one."""
        if isinstance(index, int):
            if not -self._count <= index < self._count:
                raise IndexError(f"entry {index} of {self._count}")
            index = slice(index, index + 1 or None)
        return self.map(lambda tensor: tensor[(slice(None),) * self.axis + (index,)])

    def gathered(self: Self, index: Tensor) -> Self:
        """For records along the second axis: the entries at a row of indices per batch entry."""
        return self.map(lambda tensor: tensor.take_along_dim(index[..., None], dim=1))

    def __iter__(self) -> Any:
        """Each entry that indexing selects, with an axis of one."""
        return (self[i] for i in range(self._count))

    @property
    def _count(self) -> int:
        return next(iter(vars(self).values())).shape[self.axis]

    @classmethod
    def cat(cls: type[Self], parts: Sequence[Self]) -> Self:
        """All parts in one record."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(_joined(column, cls.axis) for column in columns))


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Sequence):
        return [function(tensor) for tensor in value]
    return function(value) if isinstance(value, Tensor) else value


def has_values(tensor: Tensor) -> bool:
    """Whether code may look at values: not on the meta device, nor inside `torch.func`."""
    return not tensor.is_meta and not torch._C._are_functorch_transforms_active()


def _joined(column: Sequence[Any], axis: int) -> Any:
    if any(isinstance(value, Tensor) for value in column):
        return torch.cat(list(column), dim=axis)
    if isinstance(column[0], Sequence):
        return [torch.cat(tensors, dim=axis) for tensors in zip(*column, strict=True)]
    return column[0]
