"""Triton kernel of `branch_scales`: see eva_fast/ops/branch_scales.py for the maths."""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, triton_op
from eva_fast.kernels.quantise_fp8 import LEAST_CAPABILITY, limits, scale_of
from eva_fast.ops.branch_scales import FORMAT, SLACK
from eva_fast.ops.quantise_fp8 import LARGEST_EXPONENT

BLOCK_N = 1024


@triton.jit
def largest(b_x):
    """Of a block, as its bits order: what is not finite is the largest."""
    bits = b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@kernel
@triton.jit
def branch_scales_kernel(
    p_weight, p_bias, p_norm, p_linear_bias, p_y_scale, p_h_scale, N, root,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, SLACK: tl.constexpr,
    EXPONENT: tl.constexpr,
):  # fmt: skip
    """One program: both scales. root: of D."""
    o_d = tl.arange(0, BLOCK)
    b_weight = tl.abs(tl.load(p_weight + o_d, mask=o_d < D, other=0.0).to(tl.float32))
    b_bias = tl.abs(tl.load(p_bias + o_d, mask=o_d < D, other=0.0).to(tl.float32))
    tl.store(p_y_scale, scale_of(largest(b_weight * root + b_bias), EXPONENT))
    length = root * largest(b_weight) + tl.sqrt_rn(tl.sum(b_bias * b_bias, 0))
    most = length * tl.load(p_norm) * SLACK
    if p_linear_bias is not None:
        b_most = tl.zeros([BLOCK_N], tl.int32)
        for start in range(0, N, BLOCK_N):
            o_n = start + tl.arange(0, BLOCK_N)
            b_linear = tl.load(p_linear_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)
            b_most = tl.maximum(b_most, b_linear.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        most += tl.max(b_most, 0).to(tl.float32, bitcast=True)
    tl.store(p_h_scale, scale_of(most, EXPONENT))


@triton_op("branch_scales", limits=limits)
def _scales(weight, bias, norm, linear_bias):
    width = weight.shape[0]
    y_scale, h_scale = torch.empty_like(norm), torch.empty_like(norm)
    branch_scales_kernel[(1,)](
        weight, bias, norm, linear_bias, y_scale, h_scale,
        0 if linear_bias is None else linear_bias.shape[0], width**0.5,
        D=width, BLOCK=row_block(width), BLOCK_N=BLOCK_N, SLACK=SLACK,
        EXPONENT=LARGEST_EXPONENT[FORMAT], num_warps=4,
    )  # fmt: skip
    return y_scale, h_scale


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Of an MLP."""
    if shape.capability < LEAST_CAPABILITY:
        return []
    pointers = ("weight", "bias", "norm", "linear_bias", "y_scale", "h_scale")
    constants = {"BLOCK_N": BLOCK_N, "SLACK": SLACK, "EXPONENT": LARGEST_EXPONENT[FORMAT]}
    return [
        AotCase(
            branch_scales_kernel,
            {f"p_{name}": "*fp32" for name in pointers} | {"N": shape.mlp_hidden, "root": 37.5},
            {"D": shape.width, "BLOCK": row_block(shape.width), **constants},
        )
    ]
