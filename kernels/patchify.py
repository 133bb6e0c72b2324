"""Triton kernel of `patchify`: see eva_fast/ops/patchify.py for the maths.

A row of patches of one channel is P whole image rows, P W contiguous bytes: they are read 16 bytes
a thread and scattered to their places, in runs of P elements of a patch row. The other way round,
every load would be a single byte. Of images of which only some patches are wanted the same is read,
and each patch finds its row, if it has one, in a table that a first kernel makes.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, row_block, triton_op

BLOCK = 4096  # bytes a program: 32 for each of 128 threads
PATCHES = 32


@kernel
@triton.jit
def place_kernel(p_kept, p_place, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One program: where BLOCK_N patches of one image stand in `kept`; -1: nowhere."""
    blocks = tl.cdiv(N, BLOCK_N)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    o_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    b_kept = tl.load(p_kept + image * K + o_k, mask=o_k < K, other=-1)
    found = b_kept[None, :] == o_n[:, None]  # [BLOCK_N, BLOCK_K]
    b_place = tl.sum(tl.where(found, o_k[None, :] + 1, 0), 1) - 1
    tl.store(p_place + image * N + o_n, b_place, mask=o_n < N)


@kernel
@triton.jit
def patchify_kernel(
    p_images, p_place, p_out, K, mean_0, mean_1, mean_2, rstd_0, rstd_1, rstd_2,
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK pixels of the P image rows behind one row of patches of one channel."""
    blocks = tl.cdiv(P * W, BLOCK)
    strip = tl.program_id(0) // blocks  # (image, channel, row of patches)
    o_pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m_pixel = o_pixel < P * W
    b_pixel = tl.load(p_images + strip.to(tl.int64) * (P * W) + o_pixel, mask=m_pixel, other=0)
    channel = strip // (H // P) % 3
    mean = tl.where(channel == 0, mean_0, tl.where(channel == 1, mean_1, mean_2))
    rstd = tl.where(channel == 0, rstd_0, tl.where(channel == 1, rstd_1, rstd_2))
    b_out = (b_pixel.to(tl.float32) / 255.0 - mean) * rstd
    image = (strip // (H // P) // 3).to(tl.int64)
    patch = strip % (H // P) * (W // P) + o_pixel % W // P
    column = channel * P * P + o_pixel // W * P + o_pixel % W % P
    if p_place is None:
        o_out = (image * ((H // P) * (W // P)) + patch) * COLUMNS + column
    else:
        p_row = p_place + image * ((H // P) * (W // P)) + patch
        patch = tl.load(p_row, mask=m_pixel, other=-1)
        m_pixel &= patch >= 0
        o_out = (image * K + patch) * COLUMNS + column
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_pixel)
    if COLUMNS > 3 * P * P:  # who has a patch's last channel writes the zeros behind it
        further: tl.constexpr = COLUMNS - 3 * P * P
        m_last = m_pixel & (column >= 3 * P * P - further)
        b_zero = tl.zeros_like(b_out).to(p_out.dtype.element_ty)
        tl.store(p_out + o_out + further, b_zero, mask=m_last)


def _places(kept, patches):
    """int32 [B, N]: each patch's place in `kept`, or -1."""
    batch, count = kept.shape
    place = kept.new_empty((batch, patches))
    place_kernel[(batch * cdiv(patches, PATCHES),)](
        kept, place, patches, count, BLOCK_N=PATCHES, BLOCK_K=row_block(count), num_warps=4
    )
    return place


@triton_op("patchify")
def _forward(images, patch_size, mean, std, dtype, kept, columns):
    batch, channels, height, width = images.shape
    h, w = height // patch_size, width // patch_size
    rows = h * w if kept is None else kept.shape[1]
    out = images.new_empty((batch, rows, columns), dtype=dtype)
    if out.numel():
        place = None if kept is None else _places(kept, h * w)
        grid = (batch * channels * h * cdiv(patch_size * width, BLOCK),)
        patchify_kernel[grid](
            images, place, out, rows, *map(float, mean), *(1.0 / s for s in std),
            H=height, W=width, P=patch_size, COLUMNS=columns, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def aot_cases(shape: AotShape) -> list[AotCase]:
    size = shape.grid * shape.patch_size
    scalars = {f"{name}_{i}": 0.5 for name in ("mean", "rstd") for i in range(3)}
    arguments = {"p_images": "*u8", "p_out": f"*{shape.dtype}", **scalars}
    columns = 3 * shape.patch_size**2
    columns += -columns % 8 if shape.tensor_cores else 0
    sizes = {"H": size, "W": size, "P": shape.patch_size, "COLUMNS": columns}
    constants = {**sizes, "BLOCK": BLOCK}
    patches = shape.tokens - 1
    kept = patches // 4
    return [
        AotCase(patchify_kernel, {**arguments, "K": patches}, {**constants, "p_place": None}),
        AotCase(
            patchify_kernel, {**arguments, "K": kept, "p_place": "*i32"}, constants, label="kept"
        ),
        AotCase(
            place_kernel,
            {"p_kept": "*i32", "p_place": "*i32", "N": patches, "K": kept},
            {"BLOCK_N": PATCHES, "BLOCK_K": row_block(kept)},
        ),
    ]
