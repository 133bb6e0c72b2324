"""Whose GEMM a CPU uses while no run has measured its own shapes: PyTorch's library or csrc's.

Which is faster depends on the CPU's maker more than on the shape: csrc's uses every vendor's cores
alike, a vendor's library favours its own. So the three products of a small layer are timed once a
machine, a fifth of a second, and the answer is kept on disk beside the measured choices of runs.
"""

import functools
import statistics
import time
from collections.abc import Callable

import torch

from eva_fast.ops import dispatch
from eva_fast.ops.linear import plain_gemm
from eva_fast.ops.measure import measured_choice

ROWS, WIDTH, HIDDEN, ROUNDS = 514, 384, 1536, 5  # two images of a ViT-S


@functools.cache
def fastest_gemm() -> str:
    """ "torch" or "native": whose products are faster here, measured at the first call."""
    sizes = {"gemm": (ROWS, WIDTH, HIDDEN)}
    return measured_choice("gemm", ["torch", "native"], torch.device("cpu"), sizes, _race)


def _race() -> dict[str, float]:
    """{kind: median seconds of the forward product and both gradients}, taken in turn."""
    x, g = torch.randn(ROWS, WIDTH), torch.randn(ROWS, HIDDEN)
    weight = torch.randn(HIDDEN, WIDTH)
    products = ((x, weight.t(), torch.randn(HIDDEN)), (g, weight, None), (g.t(), x, None))
    functions = {"torch": plain_gemm, "native": dispatch.function_of("gemm", "native")}
    times: dict[str, list[float]] = {kind: [] for kind in functions}
    for turn in range(ROUNDS + 1):
        for kind, function in functions.items():
            seconds = _seconds(function, products)
            if turn:  # the first turn allocates
                times[kind].append(seconds)
    return {kind: statistics.median(values) for kind, values in times.items()}


def _seconds(function: Callable[..., torch.Tensor], products: tuple) -> float:
    start = time.perf_counter()
    for a, b, bias in products:
        function(a, b, bias)
    return time.perf_counter() - start
