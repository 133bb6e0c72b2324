"""What a device can do: how many units a second of each kind of work."""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import exp, log

import torch

FP8 = torch.float8_e4m3fn
"""Stands for a step whose blocks multiply in 8 bits, in either format, and do all else in bfloat16."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a step keeps and moves its tensors in: `dtype`, or bfloat16 beside 8-bit products."""
    return torch.bfloat16 if dtype == FP8 else dtype


@dataclass(frozen=True, slots=True)
class Rate:
    """Units a second as a function of a call's size: points (size, units/second), joined by
    straight lines in log-log and level beyond the ends. One point is a constant."""

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """Units a second for a call of this size."""
        sizes = [p[0] for p in self.points]
        i = bisect_left(sizes, size)
        if i == 0 or i == len(sizes):
            return self.points[min(i, len(sizes) - 1)][1]
        (x0, y0), (x1, y1) = self.points[i - 1 : i + 1]
        share = (log(size) - log(x0)) / (log(x1) - log(x0))
        return exp(log(y0) + share * (log(y1) - log(y0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU, or the CPU of this machine."""

    name: str
    """Name on the command line."""
    title: str
    kind: str
    """cuda or cpu."""
    memory_bytes: int
    peak_flops: dict[str, float]
    """Dense peak a second by dtype: fp8 (where there is any), fp16 and bf16 on tensor cores, fp32
    without (strict float32)."""
    gemm: dict[str, Rate]
    """FLOP/s that a library matrix product of so many FLOPs reaches, by dtype."""
    attention: dict[str, Rate]
    """FLOP/s of flash attention at ViT lengths (257 tokens pad to 384 in tiles of 128), by dtype."""
    stream: Rate
    """Bytes/s, read and written, of an elementwise or row operator that touches so many bytes and
    writes new memory."""
    resident: Rate
    """The same in place, as an optimiser works."""
    launch_seconds: float
    """Device time lost between two operators."""
    host_seconds: float
    """Host time to issue one operator in eager mode; the step is no faster than the host."""
    batched: dict[str, Rate] = field(default_factory=dict)
    """FLOP/s of many small products (`bmm`), by dtype, where they are slower than large ones."""
    special: dict[str, Rate] = field(default_factory=dict)
    """Elements/s of operators that a CPU's arithmetic bounds, not its memory: "gelu", "softmax"."""
    reserved_bytes: int = 0
    """Context, libraries' workspaces and fragmentation: not available to tensors."""
    link_bytes: float = 0.0
    """Bytes/s one way between GPUs of one node."""
    network_bytes: float = 0.0
    """Bytes/s one way to other nodes, for one GPU."""
    gpus_per_node: int = 8
    measured: bool = False
    """Rates were measured on this machine rather than taken from data sheets."""
