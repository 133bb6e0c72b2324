"""CUDA graphs of code that calls ops.

A captured launch reads its arguments from fixed addresses, and a copy from the host would be repeated
with whatever the host's memory holds by then. So an op that needs a table of its own on the device
asks for it by `on_device`: during a capture the memory is given at once and filled when the capture is
over, before anything is replayed.

    graph = Graph()
    with graph.capture():
        step()
    graph.replay()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_open: "Graph | None" = None


class Graph:
    """One CUDA graph and what it reads beside the tensors that its code was given."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._kept: list[Any] = []
        self._late: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def capture(self, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
        """Captures what the body launches; nothing of it runs. On a side stream unless one is given.
        RuntimeError of CUDA for what cannot be captured, as a wait for the device."""
        global _open
        if _open is not None:
            raise RuntimeError("a graph is being captured already")
        _open = self
        try:
            # thread_local: a loader's threads go on allocating and copying meanwhile
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                yield
        finally:
            _open = None
        for device_memory, values in self._late:
            device_memory.copy_(values)
        self._late.clear()

    def replay(self) -> None:
        """Launches all of it on the current stream."""
        self._graph.replay()


def on_device(values: Tensor, device: torch.device, over: Tensor | None = None) -> Tensor:
    """`values`, on the CPU, as a tensor on `device`; it waits for nothing. over: a tensor like it on
    that device that work to come no longer reads: it is overwritten and returned, outside captures.
    RuntimeError in a capture that is none of `Graph`."""
    if device.type != "cuda":
        return values.to(device)
    if not torch.cuda.is_current_stream_capturing():
        pinned = values.pin_memory()
        if over is not None:
            return over.copy_(pinned, non_blocking=True)
        return pinned.to(device, non_blocking=True)
    if _open is None:
        raise RuntimeError("capture steps of the optimiser with eva_fast.ops.graphs.Graph")
    memory = torch.empty(values.shape, dtype=values.dtype, device=device)
    _open._late.append((memory, values))
    return memory


def keep(anything: Any) -> None:
    """Has the graph that is being captured, if one is, keep what its launches read."""
    if _open is not None:
        _open._kept.append(anything)
