"""uint8 images to normalised patch rows, the left side of the patch embedding's GEMM.

    out[b, i w + j, (c P + u) P + v] = (images[b, c, i P + u, j P + v] / 255 - mean[c]) / std[c]

A convolution whose kernel equals its stride is a GEMM over these rows (Dosovitskiy et al. 2020,
ViT); the columns follow the order of the convolution's weight (c, ph, pw). Images take no gradient.

With `kept`, row k of an image is that of its patch kept[b, k]: a network that sees only some patches
(MAE, He et al. 2021) embeds no others, so the gather stands before the GEMM. With `columns` the rows
are that wide and end in zeros: of 16 bits, 588 of patches of 14 are no multiple of the 16 bytes that
tensor cores are fed by (`linear` takes such rows).

An implementation gets images as a contiguous uint8 [B, 3, H, W], kept int32 [B, K] contiguous or None
and the number of columns, and returns [B, N, columns], with `kept` [B, K, columns].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eva_fast.ops.checks import FLOATS, check
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import unwatched
from eva_fast.ops.registry import define

__all__ = ["patchify"]
_NAME = "patchify"


def aligned_columns(patch_size: int, dtype: torch.dtype, device_type: str) -> int:
    """Columns of a patch row: 3 P P, or the next multiple of 16 bytes where tensor cores read it."""
    columns = 3 * patch_size**2
    return columns + -columns % 8 if device_type == "cuda" and dtype.itemsize == 2 else columns


def reference(
    images: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    kept: Tensor | None = None,
    columns: int | None = None,
) -> Tensor:
    """`patchify` in plain PyTorch; computes in float32, or float64 if that is asked for."""
    batch, channels, height, width = images.shape
    h, w = height // patch_size, width // patch_size
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    shift, scale = (
        torch.tensor(v, dtype=compute, device=images.device)[:, None, None] for v in (mean, std)
    )
    normalised = ((images.to(compute) / 255 - shift) / scale).to(dtype)
    tiles = normalised.view(batch, channels, h, patch_size, w, patch_size)
    rows = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, channels * patch_size**2)
    if columns is not None and columns > rows.shape[2]:
        rows = torch.nn.functional.pad(rows, (0, columns - rows.shape[2]))
    if kept is None:
        return rows
    return rows.gather(1, kept.long()[:, :, None].expand(-1, -1, rows.shape[2]))


def _patchify(
    images: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    kept: Tensor | None = None,
    columns: int | None = None,
) -> Tensor:
    # float64 exists in plain PyTorch only; the probe carries the output's dtype.
    probe = images.new_empty((0,), dtype=dtype)
    kept = kept.contiguous() if kept is not None else None
    columns = columns or images.shape[1] * patch_size**2
    return chosen(OP, probe)(images.contiguous(), patch_size, mean, std, dtype, kept, columns)


_op = torch.library.custom_op("eva_fast::patchify", mutates_args=())(_patchify)


@_op.register_fake
def _(images, patch_size, mean, std, dtype, kept=None, columns=None):
    batch, channels, height, width = images.shape
    patches = (height // patch_size) * (width // patch_size) if kept is None else kept.shape[1]
    return images.new_empty((batch, patches, columns or channels * patch_size**2), dtype=dtype)


def patchify(
    images: Tensor,
    patch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    kept: Tensor | None = None,
    columns: int | None = None,
) -> Tensor:
    """Normalised patch rows [B, N, 3 P P] of uint8 images [B, 3, H, W]; of the patches `kept` alone,
    [B, K, 3 P P].

    H and W are multiples of patch_size; mean and std: three values each, in units of a [0, 1]
    image. kept: int32 [B, K], indices in [0, N), no index twice in a row (on a GPU the values are
    not read, so not checked). columns: width of a row, zeros behind its values; at most a patch row
    more than those, 3 P P unless given. Raises ValueError naming what does not fit.
    """
    check(_NAME, "images", images, shape=(None, 3, None, None), dtypes=(torch.uint8,))
    height, width = images.shape[2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"{_NAME}: images have shape {tuple(images.shape)}, expected a height and width that "
            f"patch_size {patch_size} divides"
        )
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"{_NAME}: mean and std have {len(mean)} and {len(std)} values, expected 3"
        )
    if dtype not in FLOATS:
        raise ValueError(f"{_NAME}: dtype {dtype} is not a floating point type of the ops")
    if kept is not None:
        check(_NAME, "kept", kept, shape=(len(images), None), dtypes=(torch.int32,), like=images)
    if columns is not None and not 0 <= columns - 3 * patch_size**2 <= patch_size:
        raise ValueError(
            f"{_NAME}: columns is {columns}, expected {3 * patch_size**2} and up to {patch_size} more"
        )
    run = _patchify if unwatched(images) else _op  # bytes have no gradient
    return run(images, patch_size, mean, std, dtype, kept, columns)


OP = define(_NAME, part="elementwise", reference=reference, plain=reference)
patchify.reference = reference  # type: ignore[attr-defined]
