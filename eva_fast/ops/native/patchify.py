"""C++ kernel of `patchify`: csrc/ops/patchify.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, native_op


@native_op("patchify")
def _forward(images, patch_size, mean, std, dtype):
    batch, _, height, width = images.shape
    out = torch.empty(batch, height * width // patch_size**2, 3 * patch_size**2, dtype=dtype)
    # every byte of every channel once, by the same arithmetic as the reference
    shift, scale = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (mean, std))
    table = ((torch.arange(256) / 255 - shift) / scale).contiguous()
    KERNELS["patchify"](
        CODES[dtype], batch, height, width, patch_size, at(images), at(table), at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out
