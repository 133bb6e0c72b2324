"""C++ kernel of `patchify`: csrc/ops/patchify.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, check_indices, native_op


@native_op("patchify")
def _forward(images, patch_size, mean, std, dtype, kept, columns):
    batch, _, height, width = images.shape
    patches = height * width // patch_size**2
    check_indices("patchify", kept, patches, name="kept")
    rows = patches if kept is None else kept.shape[1]
    make = torch.empty if columns == 3 * patch_size**2 else torch.zeros
    out = make(batch, rows, columns, dtype=dtype)
    if not out.numel():
        return out  # also: the address of no indices at all is that of no argument
    # every byte of every channel once, by the same arithmetic as the reference
    shift, scale = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (mean, std))
    table = ((torch.arange(256) / 255 - shift) / scale).contiguous()
    KERNELS["patchify"](
        CODES[dtype], batch, height, width, patch_size, at(images), at(kept), rows, at(table),
        at(out), columns, torch.get_num_threads(),
    )  # fmt: skip
    return out
