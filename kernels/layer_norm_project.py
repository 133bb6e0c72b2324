"""Triton kernels of `layer_norm_project`: see eva_fast/ops/layer_norm_project.py for the maths.

The forward is a matrix product whose left operand is normalised on its way from memory to the tensor
cores: a pass over the rows leaves their mean and rstd (8 bytes a row), the product reads x itself.
The normalised values are rounded to the compute dtype before the product, as LayerNorm's output
would be. Operands keep the input's dtype with fp32 sums; fp32 uses full fp32 products ("ieee"),
never TF32. The backward writes the normalised rows once, for the library's GEMMs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import DTYPE_BYTES, AotCase, AotShape
from eva_fast.kernels.gather_norm import (
    gather_norm,
    norm_scatter,
    row_offsets,
    rows_of,
    strides_of,
)
from eva_fast.kernels.launch import cdiv, kernel, triton_op


@triton.jit
def normalised_product(
    p_x, p_w, p_c, p_weight, p_mean, p_rstd, o_rows, o_m, m_m, o_n,
    D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x) weight^T, fp32 [BM, BN]: rows at offsets o_rows of x, rows o_n of weight [C, D]."""
    b_mean = tl.load(p_mean + o_m, mask=m_m, other=0.0)
    b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, D, BK):
        o_k = start + tl.arange(0, BK)
        m_x = m_m[:, None]
        m_weight = o_n[:, None] < C
        m_k = o_k < D
        if D % BK != 0:
            m_x = m_x & m_k[None, :]
            m_weight = m_weight & m_k[None, :]
        b_x = tl.load(p_x + o_rows[:, None] + o_k[None, :], mask=m_x, other=0.0)
        b_weight = tl.load(p_weight + o_n[:, None] * D + o_k[None, :], mask=m_weight, other=0.0)
        b_w = tl.load(p_w + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_c = tl.load(p_c + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_xhat = (b_x.to(tl.float32) - b_mean[:, None]) * b_rstd[:, None]
        b_y = (b_xhat * b_w[None, :] + b_c[None, :]).to(b_weight.dtype)
        acc = tl.dot(b_y, tl.trans(b_weight), acc, input_precision="ieee")
    return acc


@kernel
@triton.jit
def layer_norm_project_kernel(
    p_x, p_mask, p_w, p_c, p_weight, p_bias, p_mean, p_rstd, p_out, M, K, s_image, s_row,
    D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """One program: BM rows by BN columns of the projection."""
    columns = tl.cdiv(C, BN)
    o_m = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    o_n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    m_m = o_m < M
    o_rows = row_offsets(o_m, p_mask, m_m, K, s_image, s_row, HAS_MASK)
    acc = normalised_product(p_x, p_w, p_c, p_weight, p_mean, p_rstd, o_rows, o_m, m_m, o_n, D, C,
                             BM, BN, BK)  # fmt: skip
    acc += tl.load(p_bias + o_n, mask=o_n < C, other=0.0).to(tl.float32)[None, :]
    p_tile = p_out + o_m[:, None].to(tl.int64) * C + o_n[None, :]
    tl.store(p_tile, acc.to(p_out.dtype.element_ty), mask=m_m[:, None] & (o_n < C)[None, :])


def product_config(width: int, predict: int, element_size: int) -> dict[str, Any]:
    """Tile sizes and launch options: constants BM, BN, BK, num_warps, num_stages."""
    wide = predict > 64
    return {
        "BM": 64, "BN": 128 if wide else 64, "BK": 64 if element_size == 2 else 32,
        "num_warps": 8 if wide else 4, "num_stages": 3,
    }  # fmt: skip


@triton_op("layer_norm_project")
def _forward(x, mask, ln_w, ln_b, weight, bias, eps):
    rows, predict = rows_of(x, mask), weight.shape[0]
    out = x.new_empty((rows, predict))
    _, mean, rstd = gather_norm(x, mask, ln_w, ln_b, eps, write=False)
    if rows:
        config = product_config(x.shape[-1], predict, x.element_size())
        grid = (cdiv(rows, config["BM"]) * cdiv(predict, config["BN"]),)
        layer_norm_project_kernel[grid](
            x, mask, ln_w, ln_b, weight, bias, mean, rstd, out, rows,
            1 if mask is None else mask.shape[1], *strides_of(x),
            D=x.shape[-1], C=predict, HAS_MASK=mask is not None, **config,
        )  # fmt: skip
    return out


@triton_op("layer_norm_project_backward")
def _backward(dout, x, mask, ln_w, ln_b, weight, eps):
    y, mean, rstd = gather_norm(x, mask, ln_w, ln_b, eps, write=True)
    return project_backward(dout, y, x, mask, ln_w, weight, mean, rstd)


def project_backward(
    dout: Tensor, y: Tensor, x: Tensor, mask: Tensor | None, ln_w: Tensor, weight: Tensor,
    mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dln_w, dln_b, dweight, dbias) from dout [M, C] and the normalised rows y [M, D]."""
    dbias = dout.sum(0, dtype=torch.float32).to(dout.dtype)
    dx, dln_w, dln_b = norm_scatter(dout @ weight, x, mask, ln_w, mean, rstd)
    return dx, dln_w, dln_b, dout.t() @ y, dbias


def product_args(shape: AotShape) -> dict[str, str | int | float]:
    """Arguments of a fused product of the student's head."""
    element = f"*{shape.dtype}"
    return {
        "p_x": element, "p_mask": "*i32", "p_w": element, "p_c": element, "p_weight": element,
        "p_bias": element, "p_mean": "*fp32", "p_rstd": "*fp32", "M": shape.batch * shape.masked,
        "K": shape.masked, "s_image": shape.tokens * shape.width, "s_row": shape.width,
    }  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    config = product_config(shape.width, shape.predict_dim, DTYPE_BYTES[shape.dtype])
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    constants = {"D": shape.width, "C": shape.predict_dim, "HAS_MASK": True, **config}
    args = product_args(shape) | {"p_out": f"*{shape.dtype}"}
    return [AotCase(layer_norm_project_kernel, args, constants, warps, stages, shape.tensor_cores)]
