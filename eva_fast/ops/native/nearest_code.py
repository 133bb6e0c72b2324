"""C++ kernel of `nearest_code`: csrc/ops/nearest_code.h."""

import torch

from eva_fast.ops.checks import nothing
from eva_fast.ops.native.calls import (
    KERNELS,
    at,
    empty,
    float32_vectors,
    native_op,
    row_stride,
)


@native_op("nearest_code", limits=float32_vectors)
def _forward(z, codebook, want_sums):
    (rows, width), codes = z.shape, len(codebook)
    index = empty(z, rows, dtype=torch.int64)
    counts = empty(z, codes) if want_sums else None
    sums = empty(z, codes, width) if want_sums else None
    KERNELS["nearest_code"](
        rows, codes, width, at(z), row_stride(z), at(codebook), row_stride(codebook), at(index),
        at(counts), at(sums), torch.get_num_threads(),
    )  # fmt: skip
    if not want_sums:
        return index, nothing(z), nothing(z)
    return index, counts, sums
