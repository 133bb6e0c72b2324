"""A sample is a list of named fields: what each is, and how it is made of an item and a seed.

The loader knows fields only: its shared memory, its batches and its copies to a GPU are laid out
from their names, dtypes and shapes. A field of one's own is a subclass with `make`, or an
`ItemField` for an array that the source's items carry:

    class FileSize(Field):
        def __init__(self):
            super().__init__("file_size", np.int64)

        def make(self, item, seed, out):
            out[...] = len(item.image)

    build_loader(source, [ImageField(224), FileSize()], batch_size=64)
"""

from typing import Any

import numpy as np
import torch

from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.sources.base import Item
from eva_fast.errors import UsageError


class Rows:
    """Some rows of a batch being made: arrays by column, [n, *shape] each, to be written in place."""

    __slots__ = ("arrays",)

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["ids"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.arrays[column]

    def part(self, which: slice | np.ndarray) -> "Rows":
        """The rows of a slice, of the same memory, or of an index array, copied."""
        return Rows({name: array[which] for name, array in self.arrays.items()})


class Field:
    """One named part of a sample.

    Arguments:
        name: of the field in a batch, a Python identifier.
        dtype: of its numbers, one that both numpy and torch have.
        shape: of a sample's array or, of a ragged field, of each element of a sample's list.
        most: makes the field ragged, a sample having a list of 0 to `most` elements [n, *shape]; a
            batch has them one after the other, with offsets (`Ragged`).
        on_device: whether a batch's part goes to the loader's device; else it stays on the CPU.

    Raises ValueError for what cannot be a field.
    """

    companions: tuple["Field", ...] = ()
    """Further columns that `write` fills beside the field's own; no part of a batch."""

    from_seeds = False
    """Whether the field needs no item: it is made by `make_rows` instead of `make`."""

    def __init__(
        self,
        name: str,
        dtype: Any,
        shape: tuple[int, ...] = (),
        *,
        most: int | None = None,
        on_device: bool = True,
    ):
        self.name = name
        self.dtype = np.dtype(dtype)
        self.shape = tuple(int(n) for n in shape)
        self.most = most
        self.on_device = on_device
        if min(self.shape, default=1) < 1 or (most is not None and most < 1):
            raise UsageError(
                f"the field {name!r} needs a shape of numbers above 0, and `most` too where it is "
                f"ragged; got {self.shape} and most {most}"
            )
        try:
            torch.from_numpy(np.empty(0, self.dtype))
        except TypeError as error:
            raise UsageError(
                f"the field {name!r} cannot have dtype {self.dtype}: {error}"
            ) from None

    @property
    def lengths(self) -> str:
        """The column of a ragged field that holds each row's number of elements."""
        return f"{self.name}.lengths"

    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """(dtype, shape of a row) of each array that the field takes in shared memory."""
        if self.most is None:
            own = {self.name: (self.dtype, self.shape)}
        else:
            own = {
                self.name: (self.dtype, (self.most, *self.shape)),
                self.lengths: (np.dtype(np.int32), ()),
            }
        for companion in self.companions:
            own |= companion.columns()
        return own

    def make(self, item: Item, seed: int, out: np.ndarray) -> int | None:
        """Writes one sample's array to `out`, in a worker process.

        Arguments:
            item: what the source gave.
            seed: 64 bits that say which view of the image this is. What is drawn by chance is a
                function of it, mixed with a constant of the field's own (`mix64(seed ^ STREAM)`).
            out: where to write, [*shape], or [most, *shape] of a ragged field; holds old values.

        Returns, of a ragged field, how many elements were written. An exception marks the image as
        unreadable; `BadImage` says the reason as it shall be read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `make`")

    def make_rows(self, seeds: np.ndarray, out: np.ndarray) -> None:
        """Writes the arrays of several samples to `out` [n, *shape], from their seeds, uint64 [n]."""
        raise NotImplementedError(f"{type(self).__name__} has no `make_rows`")

    def write(self, item: Item, seed: int, rows: Rows, row: int) -> None:
        """Makes row `row`. Fields with companions override this."""
        count = self.make(item, seed, rows[self.name][row, ...])
        if self.most is not None:
            rows[self.lengths][row] = count

    def decoded_on(self, device: torch.device) -> "Field":
        """The field as it is made where the device decodes images; most are made as always."""
        return self

    def complete(self, values: torch.Tensor, rows: Rows) -> dict[int, str]:
        """Finishes what was left to the device, in place: `values` [n, *shape] lie there, `rows` on
        the host. Returns the rows that could not be made, with the reason of each."""
        return {}


class ItemField(Field):
    """An array that the items carry, unchanged: a number, a vector, a ragged list.

    Arguments:
        name, dtype, shape, most, on_device: as for `Field`.
        key: its name in the item; the field's own by default.

    An item without it, or with another shape, or longer than `most`, counts as unreadable. What
    must follow the crop, such as boxes, needs a field of its own (`Cropper.box` says which crop a
    seed draws).
    """

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...] = (), *,
                 key: str | None = None, **options: Any):  # fmt: skip
        super().__init__(name, dtype, shape, **options)
        self.key = key or name

    def make(self, item: Item, seed: int, out: np.ndarray) -> int | None:
        given = np.asarray(wanted(item, self.key))
        if self.most is None:
            self._check(given.shape, out.shape)
            np.copyto(out, given, casting="same_kind")
            return None
        count = len(given)
        if count == 0:
            return 0
        self._check(given.shape[1:], self.shape)
        if count > self.most:
            raise BadImage(f"its {self.key} has {count} elements, more than {self.most}")
        np.copyto(out[:count], given, casting="same_kind")
        return count

    def _check(self, got: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if got != shape:
            raise BadImage(f"its {self.key} has shape {list(got)} instead of {list(shape)}")


def wanted(item: Item, key: str) -> Any:
    """`item[key]`; BadImage where the item has none."""
    value = item.get(key)
    if value is None:
        known = ", ".join(name for name, value in item.items() if value is not None)
        raise BadImage(f"the source gives no {key} for it, only {known}")
    return value


IDS = Field("ids", np.int64, on_device=False)
VIEWS = Field("views", np.int64, on_device=False)
"""Every batch has these: each image's number in its source (-1 marks a row that holds nothing), and
how often the source had been gone through before."""
