"""C++ kernels of `unshuffle_tokens`: csrc/ops/unshuffle_tokens.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, check_indices, empty, native_op, vector


@native_op("unshuffle_tokens")
def _forward(rows, kept, mask_token, pos_embed):
    batch, count, width = rows.shape
    patches = pos_embed.shape[0] - 1
    check_indices("unshuffle_tokens", kept, patches, name="kept")
    out = empty(rows, batch, patches + 1, width)
    vectors = [vector(t) for t in (mask_token, pos_embed)]
    KERNELS["unshuffle_tokens"](
        CODES[rows.dtype], batch, patches, width, at(rows), *rows.stride()[:2], at(kept),
        count - 1, *map(at, vectors), at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


@native_op("unshuffle_tokens_backward")
def _backward(dout, kept, parameter_dtype):
    batch, tokens, width = dout.shape
    check_indices("unshuffle_tokens", kept, tokens - 1, name="kept")
    drows, dmask_token = empty(dout, batch, kept.shape[1] + 1, width), torch.empty(width)
    KERNELS["unshuffle_tokens_backward"](
        CODES[dout.dtype], batch, tokens - 1, width, at(dout), *dout.stride()[:2], at(kept),
        kept.shape[1], at(drows), at(dmask_token), torch.get_num_threads(),
    )  # fmt: skip
    return drows, dmask_token.to(parameter_dtype)
