"""The last step of every sum over rows: fp32 partials of a persistent grid, added in a fixed order.

    out_s[d] = sum over programs p of partials[p, s, d]

No atomics, so a sum has the same bits in every run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, plan, planned

PROGRAMS_A_STEP = 16
COLUMNS = 64


@kernel
@triton.jit
def partial_sums_kernel(
    p_partials, p_out_0, p_out_1, p_out_2, programs,
    D: tl.constexpr, SUMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_D columns of one of up to three sums."""
    blocks = tl.cdiv(D, BLOCK_D)
    which = tl.program_id(0) // blocks
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_sum = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for start in range(0, programs, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        p_tile = p_partials + o_p[:, None].to(tl.int64) * (SUMS * D) + which * D + o_d[None, :]
        b_sum += tl.load(p_tile, mask=(o_p[:, None] < programs) & m_d[None, :], other=0.0)
    b_out = tl.sum(b_sum, 0)  # [BLOCK_D]
    if which == 0:
        tl.store(p_out_0 + o_d, b_out.to(p_out_0.dtype.element_ty), mask=m_d)
    if SUMS > 1:  # noqa: SIM102 (a constant first: p_out_1 may be None)
        if which == 1:
            tl.store(p_out_1 + o_d, b_out.to(p_out_1.dtype.element_ty), mask=m_d)
    if SUMS > 2:  # noqa: SIM102
        if which == 2:
            tl.store(p_out_2 + o_d, b_out.to(p_out_2.dtype.element_ty), mask=m_d)


def partial_sums(partials: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Sums of float32 partials [programs, sums, D] over programs: up to three rows [D] in `dtype`."""
    _, sums, width = partials.shape
    outputs = [partials.new_empty(width, dtype=dtype) for _ in range(sums)]
    sum_into(outputs, partials)
    return outputs


def sum_into(outputs: Sequence[Tensor], partials: Tensor) -> None:
    """Sums of float32 partials [programs, sums, D] over programs, into up to three rows [D]."""
    _plan(*partials.shape)(partials, *outputs, *_ABSENT[len(outputs)])


_ABSENT = ((None,) * 3, (None,) * 2, (None,), ())


@planned
def _plan(programs, sums, width):
    return plan(
        partial_sums_kernel, (sums * cdiv(width, COLUMNS),), programs,
        D=width, SUMS=sums, BLOCK_P=PROGRAMS_A_STEP, BLOCK_D=COLUMNS, num_warps=4,
    )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    element = f"*{shape.dtype}"
    tile = {"BLOCK_P": PROGRAMS_A_STEP, "BLOCK_D": COLUMNS}
    return [
        AotCase(
            partial_sums_kernel,
            {"p_partials": "*fp32", "programs": 264} | {f"p_out_{i}": element for i in range(sums)},
            {"D": width, "SUMS": sums, **tile} | {f"p_out_{i}": None for i in range(sums, 3)},
            label=f"{sums} x {width}",
        )
        for sums, width in ((3, shape.width), (2, shape.width), (1, shape.mlp_hidden))
    ]
