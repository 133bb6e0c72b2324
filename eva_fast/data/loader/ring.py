"""Batches in memory that worker processes share with the trainer."""

import mmap

import numpy as np

from eva_fast.data.samples.fields import Field, Rows


class Ring:
    """`slots` batches in one anonymous shared mapping: no file, no limit of /dev/shm, no clean-up.

    Processes forked after its making see the same memory; it goes with the last of them.
    """

    def __init__(self, slots: int, batch: int, fields: list[Field]):
        columns = {name: column for field in fields for name, column in field.columns().items()}
        shapes = {name: (slots, batch, *shape) for name, (_, shape) in columns.items()}
        page = mmap.PAGESIZE
        sizes = {
            name: -(-int(dtype.itemsize * np.prod(shapes[name])) // page) * page
            for name, (dtype, _) in columns.items()
        }
        memory = mmap.mmap(-1, sum(sizes.values()))
        self._arrays, offset = {}, 0
        for name, (dtype, _) in columns.items():
            flat = np.frombuffer(memory, dtype, int(np.prod(shapes[name])), offset)
            self._arrays[name] = flat.reshape(shapes[name])
            offset += sizes[name]
        self.slots = slots
        self._bytes = np.frombuffer(memory, np.uint8)

    def extent(self) -> tuple[int, int]:
        """(address, size in bytes) of the mapping."""
        return self._bytes.ctypes.data, self._bytes.nbytes

    def rows(self, slot: int, first: int = 0, end: int | None = None) -> Rows:
        """Rows [first, end) of the batch in `slot`."""
        return Rows({name: array[slot, first:end] for name, array in self._arrays.items()})
