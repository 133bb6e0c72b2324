"""What the stub saw, in a process that runs on it."""

import ctypes
import os
from typing import Any

KINDS = ("launches", "graph_launches", "host_copies", "waits", "allocations")
"""What is counted: kernels, products and copies within the device; graphs; copies between host and
device; waits of the host; blocks of memory asked of the driver."""


def _library() -> Any:
    return ctypes.CDLL(os.environ["EVA_FAST_STUB"])


def forget() -> None:
    """Counts from 0 again."""
    _library().stub_forget()


def counts() -> dict[str, int]:
    """{kind: how often} since the last `forget`."""
    values = (ctypes.c_long * len(KINDS)).in_dll(_library(), "stub_counts")
    return dict(zip(KINDS, values, strict=True))


def faults() -> list[str]:
    """What was done during a capture that a capture forbids, since the last `forget`."""
    library = _library()
    library.stub_faults.restype = ctypes.c_char_p
    return library.stub_faults().decode().splitlines()
