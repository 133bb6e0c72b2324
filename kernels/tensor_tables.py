"""Tables of tensors on the device, for kernels of one launch over all parameters of a network.

One table holds addresses and sizes, a second one says which tensor and which chunk of it a program
takes. Where gradients come at other addresses their column is written anew, all else only where a
tensor moved. Tensors whose addresses and sizes are multiples of 16 bytes and elements go 128 bits at a
time; the others, if there are any, take a launch of their own.
"""

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.ops.graphs import keep, on_device
from eva_fast.ops.largest import CHUNK

ALIGNMENT = 16

# Columns of the address table: 64-bit addresses as two 32-bit words, low one first, so that a
# 64-bit load in the machine code always means data that missed its 128-bit access.
PARAM, COPY, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, SIZE, PARTS = (tl.constexpr(i) for i in range(8))
COLUMNS = tl.constexpr(8)


@triton.jit
def table_entry(p_table, tensor, column: tl.constexpr):
    """One 64-bit entry of the address table."""
    p_word = p_table + (tensor * COLUMNS + column) * 2
    low = tl.load(p_word).to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (tl.load(p_word + 1).to(tl.int64) << 32)


@triton.jit
def table_pointer(
    p_table, tensor, column: tl.constexpr, dtype: tl.constexpr, ALIGNED: tl.constexpr
):
    """An address of the table as a pointer."""
    pointer = table_entry(p_table, tensor, column).to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Launch(NamedTuple):
    """One launch: the tensors that share dtypes and alignment."""

    programs: int
    table: Tensor
    chunks: Tensor
    decays: Tensor
    grad_type: torch.dtype
    copy_type: torch.dtype | None
    aligned: bool
    largest: bool


KEPT = 8  # gradients come back at the same few addresses, step after step


class TensorTables:
    """The tensors of a step, which stay where they are while gradients come and go: all of the tables
    but a column.

    pointers: of params, copies, exp_avgs, exp_avg_sqs, steps and parts; empty where a kernel reads
    none. sizes: elements. types: dtypes of gradient and copy. decays: one each.
    """

    def __init__(
        self, pointers: list[tuple[int, ...]], sizes: tuple[int, ...], types: list[tuple],
        decays: tuple[float, ...], device: torch.device,
    ):  # fmt: skip
        self.device, self.sizes, self.decays = device, np.array(sizes), np.array(decays, np.float32)
        self.rows = np.zeros((len(sizes), 8), np.int64)
        for column, values in zip(
            (PARAM, COPY, EXP_AVG, EXP_AVG_SQ, STEP, PARTS), pointers, strict=True
        ):
            self.rows[:, column.value] = values or 0
        self.rows[:, SIZE.value] = sizes
        self.largest = bool(pointers[-1])
        moved = [c.value for c in (PARAM, COPY, EXP_AVG, EXP_AVG_SQ, SIZE)]
        self.aligned = (self.rows[:, moved] % ALIGNMENT == 0).all(1)
        self.kinds = list(dict.fromkeys(types))
        self.kind = np.array([self.kinds.index(t) for t in types])
        self._fixed: dict[bytes, tuple[int, Tensor, Tensor]] = {}
        self._launches: dict[tuple[int, ...], list[Launch]] = {}

    def launches(self, grads: tuple[int, ...]) -> list[Launch]:
        """For gradients at these addresses."""
        found, capturing = self._launches.pop(grads, None), _capturing(self.device)
        if found is None:
            full = len(self._launches) >= KEPT and not capturing
            spare = self._launches.pop(next(iter(self._launches))) if full else []
            found = self._make(np.array(grads), spare)
        if capturing:
            keep(found)  # it belongs to that graph
        else:
            self._launches[grads] = found  # last used last
        return found

    def _make(self, grads: np.ndarray, spare: list[Launch]) -> list[Launch]:
        """Tables are written over those of `spare` where sizes agree. New memory in each step would
        have the allocator give the next step's gradients other addresses, and so on for ever."""
        self.rows[:, GRAD.value] = grads
        aligned = self.aligned & (grads % ALIGNMENT == 0)
        made = []
        for number, (grad_type, copy_type) in enumerate(self.kinds):
            for whole in (True, False):
                among = np.flatnonzero((self.kind == number) & (aligned == whole))
                programs, chunks, decays = self._fixed_tables(among)
                if programs:
                    values = torch.from_numpy(self.rows[among].view(np.int32))
                    old = next((s.table for s in spare if s.table.shape == values.shape), None)
                    spare = [s for s in spare if s.table is not old]
                    table = on_device(values, self.device, old)
                    made.append(
                        Launch(
                            programs,
                            table,
                            chunks,
                            decays,
                            grad_type,
                            copy_type,
                            whole,
                            self.largest,
                        )
                    )
        return made

    def _fixed_tables(self, among: np.ndarray) -> tuple[int, Tensor, Tensor]:
        """(programs, chunks, decays) of these tensors: sizes alone say which chunks there are."""
        key = among.tobytes()
        if key in self._fixed:
            keep(self._fixed[key])
            return self._fixed[key]
        counts = -(-self.sizes[among] // CHUNK)
        tensor = np.repeat(np.arange(len(among)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        chunks = np.stack((tensor, np.arange(len(tensor)) - first), 1).astype(np.int32)
        made = (
            len(chunks),
            on_device(torch.from_numpy(chunks), self.device),
            on_device(torch.from_numpy(self.decays[among]), self.device),
        )
        if _capturing(self.device):
            keep(made)
        else:
            self._fixed[key] = made
        return made


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
