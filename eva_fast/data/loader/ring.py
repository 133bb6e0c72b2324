"""Batches in memory that worker processes share with the trainer."""

import mmap

import numpy as np

from eva_fast.data.loader.maker import Rows


class Ring:
    """`slots` batches in one anonymous shared mapping: no file, no limit of /dev/shm, no clean-up.

    Processes forked after its making see the same memory; it goes with the last of them.
    """

    def __init__(self, slots: int, batch: int, image_size: int, mask_count: int):
        shapes = {
            "images": (np.uint8, (slots, batch, 3, image_size, image_size)),
            "mask": (np.int32, (slots, batch, mask_count)),
            "ids": (np.int64, (slots, batch)),
            "views": (np.int64, (slots, batch)),
            "encoded": (np.int32, (slots, batch, 6)),
        }
        sizes = {k: int(np.dtype(t).itemsize * np.prod(s)) for k, (t, s) in shapes.items()}
        page = mmap.PAGESIZE
        sizes = {name: -(-size // page) * page for name, size in sizes.items()}
        memory = mmap.mmap(-1, sum(sizes.values()))
        arrays, offset = {}, 0
        for name, (dtype, shape) in shapes.items():
            flat = np.frombuffer(memory, dtype, int(np.prod(shape)), offset)
            arrays[name] = flat.reshape(shape)
            offset += sizes[name]
        self.slots = slots
        self._bytes = np.frombuffer(memory, np.uint8)
        self._all = Rows(**arrays)

    def extent(self) -> tuple[int, int]:
        """(address, size in bytes) of the mapping."""
        return self._bytes.ctypes.data, self._bytes.nbytes

    def rows(self, slot: int, first: int = 0, end: int | None = None) -> Rows:
        """Rows [first, end) of the batch in `slot`."""
        return Rows(*(array[slot, first:end] for array in self._all))
