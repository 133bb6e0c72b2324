"""C++ kernel of `embed_kept`: csrc/ops/embed_kept.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, check_indices, empty, native_op, vector


@native_op("embed_kept")
def _forward(patches, kept, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    check_indices("embed_kept", kept, pos_embed.shape[0] - 1, name="kept")
    out = empty(patches, batch, count + 1, width)
    vectors = [vector(t) for t in (cls_token, pos_embed, patch_bias)]
    KERNELS["embed_kept"](
        CODES[patches.dtype], batch, count, width, at(patches), *patches.stride()[:2], at(kept),
        *map(at, vectors), at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out
