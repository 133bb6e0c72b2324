"""Copies of batches to a GPU, beside the running step."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eva_fast.data.loader.batch import Batch, Ragged, host_value
from eva_fast.data.loader.maker import EMPTY, Bad
from eva_fast.data.loader.ring import Ring
from eva_fast.data.samples.fields import Field, Rows
from eva_fast.errors import RunError

logger = logging.getLogger(__name__)

Take = Callable[[int, bool], Any]
"""(batch number, whether to wait) -> what is known of the batch once it is made, or None."""


class Upload:
    """Copies batches to a GPU on a stream of their own, one batch ahead of the one in use.

    The ring is page-locked in place, so a copy is a DMA transfer beside the running step and costs
    the trainer's thread nothing. Where it cannot be locked the copies still happen, synchronously.

    replaces: whether rows that turn out bad on the device become copies of good ones; else they are
    left out.
    """

    IN_FLIGHT = 2

    def __init__(self, ring: Ring, fields: list[Field], device: torch.device, replaces: bool):
        self._ring = ring
        self._fields = fields
        self._device = device
        self._replaces = replaces
        self._stream = torch.cuda.Stream(device)
        self._copied: deque[tuple[int, Any]] = deque()  # batches whose slot is not yet free again
        self._ready: tuple[Batch, Any, Any] | None = None
        self._number = 0
        self._locked = self._lock()

    def _lock(self) -> bool:
        address, size = self._ring.extent()
        code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if code:
            logger.warning("the batches could not be page-locked (CUDA error %d): slower", code)
        return code == 0

    def next(self, take: Take, free: Callable[[int], None]) -> tuple[Batch, Any]:
        """The next batch on the device, ready for work on the current stream."""
        if self._ready is None:
            self._begin(take, free, wait=True)
        assert self._ready is not None
        batch, result, event = self._ready
        self._ready = None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for _, value in batch.items():  # made on the other stream, used on this one
            tensor = value.values if isinstance(value, Ragged) else value
            if tensor.device.type == "cuda":
                tensor.record_stream(current)
        if result.tried:
            self._begin(take, free, wait=False)
        return batch, result

    def _begin(self, take: Take, free: Callable[[int], None], wait: bool) -> None:
        """Starts the copy of the next batch, where it is made or shall be waited for."""
        while self._copied and (len(self._copied) == self.IN_FLIGHT or self._copied[0][1].query()):
            number, event = self._copied.popleft()
            event.synchronize()  # of a copy that began a whole step ago
            free(number)
        result = take(self._number, wait)
        if result is None:
            return
        rows = filled(self._ring.rows(self._number % self._ring.slots))
        with torch.cuda.stream(self._stream):
            batch, bad = upload(self._fields, rows, self._device, self._replaces)
            event = torch.cuda.Event()
            event.record(self._stream)
        result.bad += bad
        result.bad_tries += len(bad)
        self._copied.append((self._number, event))
        self._ready = batch, result, event
        self._number += 1

    def close(self) -> None:
        self._copied.clear()
        with contextlib.suppress(RuntimeError):  # the driver may be gone when the program ends
            self._stream.synchronize()
            if self._locked:
                self._locked = False
                torch.cuda.cudart().cudaHostUnregister(self._ring.extent()[0])


def filled(rows: Rows) -> Rows:
    """The rows without those that hold nothing; the same memory, unless there is a gap between them."""
    holds = rows["ids"] != EMPTY
    if holds.all():
        return rows
    count = int(holds.sum())
    return rows.part(slice(count) if holds[:count].all() else holds.nonzero()[0])


def upload(
    fields: list[Field], rows: Rows, device: torch.device, replaces: bool
) -> tuple[Batch, list[Bad]]:
    """The batch of `rows` on `device`, and the images that could not be decoded there.

    Their rows become copies of the nearest good ones or, unless it `replaces`, are left out. Raises
    RuntimeError where no row is left to copy. Copies are queued on the current stream and read
    `rows` until they are done.
    """
    moved = {
        field.name: torch.from_numpy(rows[field.name]).to(device, non_blocking=True)
        for field in fields
        if field.on_device and field.most is None
    }
    reasons: dict[int, str] = {}
    for field in fields:
        if field.name in moved:
            reasons |= field.complete(moved[field.name], rows)
    bad = [Bad(int(i := rows["ids"][row]), f"image {i}", why) for row, why in reasons.items()]
    if reasons:
        chosen = _chosen(len(rows), set(reasons), bad, replaces)
        rows = Rows(
            {name: array[chosen] for name, array in rows.arrays.items() if name not in moved}
        )
        moved = {name: tensor[chosen] for name, tensor in moved.items()}
    values: dict[str, Tensor | Ragged] = {}
    for field in fields:
        if field.name in moved:
            values[field.name] = moved[field.name]
        else:
            value = host_value(field, rows)
            values[field.name] = value.to(device, non_blocking=True) if field.on_device else value
    return Batch(values), bad


def _chosen(count: int, dropped: set[int], bad: list[Bad], replaces: bool) -> list[int]:
    """For each row of the batch the row it is taken from."""
    good = [row for row in range(count) if row not in dropped]
    if not replaces:
        return good
    if not good:
        raise RunError(f"no image of a batch could be decoded: {bad[0]}")
    return [
        row if row not in dropped else min(good, key=lambda g: abs(g - row)) for row in range(count)
    ]
