"""This CPU, measured: short tests of matrix products, attention, GELU and memory.

Each rate is of the median of several calls: other work on the machine slows the tests as it slows
the steps they stand for.
"""

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from eva_fast.planning.rates import Device, Rate

ROWS = 2056
"""8 images of 257 tokens."""


def typical(call: Callable[[], object], seconds: float = 0.06, least: int = 5) -> float:
    """Median seconds of a call over about that time: what a step sees, not the best case."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _product(own: bool) -> Callable:
    if not own:
        return torch.mm
    from eva_fast.ops.linear import matmul

    return matmul


def gemm_point(width: int, dtype: torch.dtype, own: bool = False) -> tuple[float, float]:
    """(FLOPs, FLOP/s) of a Linear with twice as many outputs: forward and both gradients."""
    product = _product(own)
    x = torch.randn(ROWS, width, dtype=dtype)
    grad = torch.randn(ROWS, 2 * width, dtype=dtype)
    weight = torch.randn(2 * width, width, dtype=dtype)
    seconds = (
        typical(lambda: product(x, weight.t()))
        + typical(lambda: product(grad, weight))
        + typical(lambda: product(grad.t(), x))
    )
    flops = 4.0 * ROWS * width * width
    return flops, 3 * flops / seconds


def _attention_rate(dtype: torch.dtype, own: bool) -> float:
    """FLOP/s of flash attention forward and backward, 2 images, 6 heads of 64."""
    qkv = torch.randn(2, 257, 3, 6, 64, dtype=dtype, requires_grad=True)
    grad = torch.randn(2, 257, 6, 64, dtype=dtype)

    def plain() -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def fused() -> torch.Tensor:
        from eva_fast.ops.packed_attention import packed_attention

        return packed_attention(None, qkv, 64**-0.5)[0]

    forward = fused if own else plain
    seconds = typical(lambda: torch.autograd.grad(forward(), qkv, grad))
    return 3.5 * 4 * 2 * 6 * 257**2 * 64 / seconds


def _batched_rate(dtype: torch.dtype) -> float:
    """FLOP/s of the products of materialised attention, 24 heads of 64: scores, and values."""
    q = torch.randn(24, 257, 64, dtype=dtype)
    scores = torch.randn(24, 257, 257, dtype=dtype)
    seconds = typical(lambda: torch.bmm(q, q.transpose(1, 2))) + typical(
        lambda: torch.bmm(scores, q)
    )
    return 2 * 2 * 24 * 257**2 * 64 / seconds


def _gelu_rate(own: bool) -> float:
    """Elements/s of GELU over 1 M elements."""
    x, bias = torch.randn(1024, 1024), torch.zeros(1024)
    if own:
        from eva_fast.ops.bias_gelu import bias_gelu_forward

        return x.numel() / typical(lambda: bias_gelu_forward(x, bias))
    return x.numel() / typical(lambda: F.gelu(x))


POOL_BYTES = 128 * 2**20
"""Inputs take turns out of so much memory: in a step an operator's input is rarely in a cache."""


def stream_point(kib: int) -> tuple[float, float]:
    """(bytes, bytes/s) of reading so many KiB and writing as many into new memory."""
    pool = torch.randn(max(1, POOL_BYTES // (kib * 1024)), kib * 256)
    inputs = itertools.cycle(pool)
    moved = 2.0 * 4 * kib * 256
    return moved, moved / typical(lambda: next(inputs) + 1)


def _resident_rate() -> float:
    """Bytes/s of an in-place pass over 64 MB."""
    x = torch.randn(2**24)
    return 2 * 4 * x.numel() / typical(lambda: x.mul_(1.0))


def _issue_seconds() -> float:
    """Seconds to issue one operator with autograd, forward and backward together."""
    start = torch.zeros(1, requires_grad=True)

    def chain() -> None:
        x = start
        for _ in range(50):
            x = x + 1
        x.backward()

    return typical(chain) / 100


@functools.cache
def measure_cpu(threads: int, dtype: torch.dtype = torch.float32, own: bool = False) -> Device:
    """This CPU with so many threads, by the operators of plain PyTorch or, with `own`, those that
    eva_fast runs on a CPU. Matrix products at ViT widths with 2,056 rows; memory at sizes from
    cache to far beyond, into new memory, where the cost of fresh pages shows, and in place. Takes
    two to four seconds."""
    name = str(dtype).removeprefix("torch.")
    gemm = tuple(gemm_point(width, dtype, own) for width in (96, 192, 384, 768, 1536))
    softmax = torch.randn(8192, 257)
    return Device(
        name="cpu",
        title=f"this CPU, {threads} thread{'s' if threads != 1 else ''}",
        kind="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        peak_flops={name: max(rate for _, rate in gemm)},
        gemm={name: Rate(gemm)},
        attention={name: Rate(((1, _attention_rate(dtype, own)),))},
        batched={name: Rate(((1, _batched_rate(dtype)),))},
        stream=Rate(tuple(stream_point(kib) for kib in (64, 512, 4096, 12288, 65536))),
        resident=Rate(((1, _resident_rate()),)),
        special={
            "gelu": Rate(((1, _gelu_rate(own)),)),
            "softmax": Rate(((1, softmax.numel() / typical(lambda: softmax.softmax(-1))),)),
        },
        launch_seconds=_issue_seconds(),
        host_seconds=0.0,
        measured=True,
    )
