"""Every library of attention and our kernels: error against float64, device time in both directions."""

import torch

from bench.session.child import Bench
from bench.session.stages.ceilings import median
from eva_fast.ops.packed_attention import BACKWARD, OP, AttentionShape
from eva_fast.ops.registry import Case

SHAPES = (
    AttentionShape(32, 257, 257, 16, 88),
    AttentionShape(32, 257, 257, 12, 64),
    AttentionShape(32, 105, 257, 16, 88),
    AttentionShape(128, 257, 257, 6, 64),
)
MICRO = AttentionShape(2, 18, 18, 2, 24)
EXACT = 2
"""Images whose numbers are compared: their float64 scores fit beside everything else."""


def run(bench: Bench) -> None:
    for shape in (MICRO,) if bench.tiny else SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            if bench.left() < 0.1 * bench.seconds:
                bench.skip(f"attention {shape} {dtype}")
                continue
            _compare(bench, shape, dtype)
            bench.free()


def _compare(bench: Bench, shape: AttentionShape, dtype: torch.dtype) -> None:
    batch, queries, keys, heads, dim = shape
    torch.manual_seed(0)
    packed = torch.randn(batch, keys, 3, heads, dim, dtype=dtype, device=bench.device)
    q, k, v = packed.unbind(2)
    q = q[:, :queries]
    dout = torch.randn(batch, queries, heads, dim, dtype=dtype, device=bench.device)
    scale = dim**-0.5
    few = [t[:EXACT].double() for t in (q, k, v, dout)]
    out, lse = OP.function("math")(*few[:3], scale)
    exact = [torch.empty_like(t) for t in few[:3]]
    BACKWARD.function("math")(few[3], *few[:3], out, lse, scale, *exact, None)
    case = Case(bench.device, dtype, shape)
    for candidate in OP.candidates(case):
        name = candidate.name
        if candidate.last_resort and not bench.tiny:
            continue
        with bench.attempt(f"attention {name} {tuple(shape)} {dtype}"):
            gradients = torch.full_like(packed, float("nan")).unbind(2)
            gradients = (gradients[0][:, :queries], *gradients[1:])
            forward, backward = OP.function(name), BACKWARD.function(name)
            found = forward(q, k, v, scale)
            rest = (dout, q, k, v, *found, scale, *gradients)
            backward(*rest, None)
            pairs = zip((found[0], *gradients), (out, *exact), strict=True)
            error = [((a[:EXACT].double() - b).norm() / b.norm()).item() for a, b in pairs]
            bench.notes.add(
                "attention", implementation=name, shape=list(shape), dtype=str(dtype)[6:],
                error=error,
                forward_us=1e6 * median(bench, lambda f=forward: f(q, k, v, scale)),
                backward_us=1e6 * median(bench, lambda b=backward, r=rest: b(*r, None)),
            )  # fmt: skip
