"""C++ kernels of `embed_tokens`: csrc/ops/embed_tokens.h."""

import torch

from eva_fast.ops.checks import nothing
from eva_fast.ops.native.calls import (
    CODES,
    KERNELS,
    at,
    check_indices,
    empty,
    native_op,
    vector,
)


@native_op("embed_tokens")
def _forward(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    check_indices("embed_tokens", mask, count)
    out = empty(patches, batch, count + 1, width)
    vectors = [vector(t) for t in (mask_token, cls_token, pos_embed, patch_bias)]
    KERNELS["embed_tokens"](
        CODES[patches.dtype], batch, count, width, at(patches), *patches.stride()[:2], at(mask),
        0 if mask is None else mask.shape[1], *map(at, vectors), at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


@native_op("embed_tokens_backward")
def _backward(dout, mask, parameter_dtype, want_bias):
    batch, tokens, width = dout.shape
    check_indices("embed_tokens", mask, tokens - 1)
    dpatches = empty(dout, batch, tokens - 1, width)
    sums, dpos = torch.empty(2, width), torch.empty(tokens, width)
    KERNELS["embed_tokens_backward"](
        CODES[dout.dtype], batch, tokens - 1, width, at(dout), *dout.stride()[:2], at(mask),
        0 if mask is None else mask.shape[1], at(dpatches), at(sums), at(dpos),
        torch.get_num_threads(),
    )  # fmt: skip
    dmask_token, dbias = (row.to(parameter_dtype, copy=True) for row in sums)
    return (
        dpatches,
        dmask_token,
        dpos[0].to(parameter_dtype, copy=True),
        dpos.to(parameter_dtype),
        dbias if want_bias else nothing(dbias),
    )
