"""The code nearest to each row: product with the codebook and a running argmax.

    index[m] = argmax_c z_m . w_c              the first of equals
    counts[c] = #{m: index[m] = c},  sums[c] = sum of z_m over these m

The codes are unit rows, so the largest product is the least distance (Peng et al. 2022, BEiT v2,
section 3.1, VQ-KD). The published code keeps the rows x codes matrices of distances and of one-hot
rows, 0.8 GB each at 128 images; here no product outlives its tile. `counts` and `sums` are what a
codebook's moving average and k-means need, added in a fixed order. Nothing has a gradient.

An implementation gets z [M, d] and codebook [C, d] with last stride 1, and whether sums are wanted;
and returns (index int64 [M], counts [C], sums [C, d]), the last two as z, empty where not wanted.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, nothing
from eva_fast.ops.choose import chosen
from eva_fast.ops.registry import define

__all__ = ["nearest_code"]
_NAME = "nearest_code"
ROWS = 256  # whose products plain PyTorch has at a time: 8 MB of them at 8,192 codes


def reference(
    z: Tensor, codebook: Tensor, want_sums: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`nearest_code` as published: all products, and one-hot rows for the sums."""
    index = (z @ codebook.t()).argmax(1)
    if not want_sums:
        return index, nothing(z), nothing(z)
    one_hot = torch.nn.functional.one_hot(index, len(codebook)).to(z.dtype)
    return index, one_hot.sum(0), one_hot.t() @ z


@torch.library.custom_op("eva_fast::nearest_code", mutates_args=())
def _op(z: Tensor, codebook: Tensor, want_sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    return chosen(OP, z, (z.shape[1],))(z, codebook, want_sums)


@_op.register_fake
def _(z, codebook, want_sums):
    index = z.new_empty(len(z), dtype=torch.int64)
    if not want_sums:
        return index, nothing(z), nothing(z)
    return index, z.new_empty(len(codebook)), z.new_empty(codebook.shape)


def nearest_code(
    z: Tensor, codebook: Tensor, want_sums: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(index int64 [M], counts [C], sums [C, d]): the codes with the largest products.

    z: [M, d], codebook: [C, d], float32 (or float64), last stride 1, no gradients; lower precision
    would choose other codes. counts and sums are empty unless `want_sums`. A row that is not finite
    gets some code. Raises ValueError naming what does not fit.
    """
    dtypes = (torch.float32, torch.float64)
    check(_NAME, "z", z, shape=(None, None), dtypes=dtypes)
    check(_NAME, "codebook", codebook, shape=(None, z.shape[1]), dtypes=(z.dtype,), like=z)
    if not len(codebook):
        raise ValueError(f"{_NAME}: codebook has no codes")
    check_constant(_NAME, "z", z)
    check_constant(_NAME, "codebook", codebook)
    return _op(z, codebook, want_sums)


def _forward_torch(z, codebook, want_sums):
    parts = [(rows @ codebook.t()).argmax(1) for rows in z.split(ROWS)]
    index = torch.cat(parts) if len(z) else z.new_empty(0, dtype=torch.int64)
    if not want_sums:
        return index, nothing(z), nothing(z)
    counts, sums = z.new_zeros(len(codebook)), z.new_zeros(codebook.shape)
    if z.is_cuda:  # by sorting: index_add_ would add in another order each time
        counts.index_put_((index,), counts.new_ones(()), accumulate=True)
        sums.index_put_((index,), z, accumulate=True)
    else:
        counts.index_add_(0, index, torch.ones_like(z[:, 0]))
        sums.index_add_(0, index, z)
    return index, counts, sums


def _flops(z, codebook, *_, **__) -> int:
    return 2 * len(z) * codebook.numel()


OP = define(_NAME, part="head", kernels=2, reference=reference, plain=_forward_torch, flops=_flops)
nearest_code.reference = reference  # type: ignore[attr-defined]
