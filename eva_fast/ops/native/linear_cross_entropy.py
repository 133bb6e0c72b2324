"""C++ kernel of `linear_cross_entropy`: csrc/ops/linear_cross_entropy.h."""

import torch

from eva_fast.ops.native.calls import KERNELS, at, float32_vectors, native_op, row_stride


@native_op("linear_cross_entropy", limits=float32_vectors)
def _rows(logits, target, statistics, factor):
    rows, codes = logits.shape
    low, high = (int(value) for value in target.aminmax())
    if low < 0 or high >= codes:
        raise ValueError(
            f"linear_cross_entropy: targets must be in 0..{codes - 1}, got {low} to {high}"
        )
    KERNELS["linear_cross_entropy_rows"](
        rows, codes, at(logits), at(target), at(statistics), row_stride(statistics), factor,
        torch.get_num_threads(),
    )  # fmt: skip
