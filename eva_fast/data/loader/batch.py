"""What the loader yields: a batch of named fields."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eva_fast.data.samples.fields import Field, Rows
from eva_fast.errors import UsageError

ALWAYS_ON_CPU = ("ids", "views")


class Ragged:
    """Lists of different lengths, one a row, one after the other.

    `values` is [all elements, *shape], on any device; `offsets`, int64 [rows + 1], stays on the
    CPU, so that cutting a batch waits for nothing: row i has values[offsets[i]:offsets[i + 1]].
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: Tensor, offsets: Tensor):
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int | slice) -> Any:
        """A row's values, or some rows as `Ragged`."""
        if isinstance(row, slice):
            first, end, step = row.indices(len(self))
            if step != 1:
                raise ValueError(f"rows can be cut with a step of 1 only, got {step}")
            offsets = self.offsets[first : max(first, end) + 1]
            return Ragged(self.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.values.split(self.lengths.tolist()))

    @property
    def lengths(self) -> Tensor:
        """int64 [rows], on the CPU."""
        return self.offsets.diff()

    def texts(self) -> list[str]:
        """The rows of a field of UTF-8 bytes as str."""
        return [bytes(row.numpy()).decode(errors="surrogateescape") for row in self]

    def to(self, device: Any, non_blocking: bool = False) -> "Ragged":
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.offsets)


class Batch:
    """Named fields of the same rows, by attribute or by item: `batch.images`, `batch["label"]`.

    Values are tensors [B, ...] or, of ragged fields, `Ragged`. A loader's batches have, beside the
    fields it was built with, always

    - `ids`, int64 [B] on the CPU: each image's number in its source;
    - `views`, int64 [B] on the CPU: how often the source had been gone through before.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any] | None = None, /, **named: Any):
        self._fields: dict[str, Any] = {**(fields or {}), **named}

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            known = ", ".join(self._fields)
            raise AttributeError(f"the batch has no field {name!r}, only {known}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        """The number of rows."""
        return len(next(iter(self._fields.values())))

    def items(self) -> Any:
        """(name, value) of every field."""
        return self._fields.items()

    def chunk(self, count: int) -> "list[Batch]":
        """The rows in `count` parts, as `Tensor.chunk` cuts them: views, nothing is copied."""
        size = -(-len(self) // count)
        return [
            Batch({name: value[first : first + size] for name, value in self._fields.items()})
            for first in range(0, len(self), size)
        ]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same with every field but `ids` and `views` on `device`."""
        return Batch(
            {
                name: value
                if name in ALWAYS_ON_CPU
                else value.to(device, non_blocking=non_blocking)
                for name, value in self._fields.items()
            }
        )

    def __repr__(self) -> str:
        shapes = (
            f"{name}: {value.values.dtype} ragged"
            if isinstance(value, Ragged)
            else f"{name}: {value.dtype} {list(value.shape)}"
            for name, value in self._fields.items()
        )
        return f"Batch({', '.join(shapes)})"


def check_names(fields: list[Field]) -> None:
    """Raises ValueError for names that a batch cannot have as attributes."""
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two fields are named {name!r}")
        if not name.isidentifier() or name.startswith("_") or hasattr(Batch, name):
            raise UsageError(f"a field of a batch cannot be named {name!r}")


def host_value(field: Field, rows: Rows) -> Tensor | Ragged:
    """A field's part of a batch, in memory of its own."""
    column = rows[field.name]
    if field.most is None:
        return torch.from_numpy(column).clone()
    lengths = rows[field.lengths]
    packed = [column[row, :length] for row, length in enumerate(lengths.tolist())]
    values = np.concatenate(packed) if packed else np.empty((0, *field.shape), field.dtype)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(torch.from_numpy(values), torch.from_numpy(offsets))
