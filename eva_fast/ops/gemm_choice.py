"""Whose GEMM a CPU uses while no run has measured its own shapes: PyTorch's library or csrc's.

Which is faster depends on the CPU's maker more than on the shape: csrc's uses every vendor's cores
alike, a vendor's library favours its own. So the three products of a small layer are timed once a
machine, a fifth of a second, and the answer is kept on disk beside the measured choices of runs.
"""

import functools
import logging
import statistics
import time
from collections.abc import Callable

import torch

from eva_fast.ops import dispatch
from eva_fast.ops.linear import plain_gemm
from eva_fast.ops.measure import cache_file, read_choices, write_choices

log = logging.getLogger(__name__)
ROWS, WIDTH, HIDDEN, ROUNDS = 514, 384, 1536, 5  # two images of a ViT-S


@functools.cache
def fastest_gemm() -> str:
    """ "torch" or "native": whose products are faster here, measured at the first call."""
    path = cache_file(torch.device("cpu"), {"gemm": (ROWS, WIDTH, HIDDEN)})
    found = read_choices(path)
    if found is None:
        medians = _race()
        kind = min(medians, key=medians.__getitem__)
        found = {"gemm": {"kind": kind, "milliseconds": medians}}
        write_choices(path, found)
        log.info("gemm: %s", ", ".join(f"{k} {ms:.1f} ms" for k, ms in medians.items()))
    return found["gemm"]["kind"]


def _race() -> dict[str, float]:
    """{kind: median milliseconds of the forward product and both gradients}, taken in turn."""
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
    return {kind: statistics.median(values) * 1e3 for kind, values in times.items()}


def _seconds(function: Callable[..., torch.Tensor], products: tuple) -> float:
    start = time.perf_counter()
    for a, b, bias in products:
        function(a, b, bias)
    return time.perf_counter() - start
