"""Triton kernel of `patchify`: see eva_fast/ops/patchify.py for the maths.

A row of patches of one channel is P whole image rows, P W contiguous bytes: they are read 16 bytes
a thread and scattered to their places, in runs of P elements of a patch row. The other way round,
every load would be a single byte.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, triton_op

BLOCK = 4096  # bytes a program: 32 for each of 128 threads


@kernel
@triton.jit
def patchify_kernel(
    p_images, p_out, mean_0, mean_1, mean_2, rstd_0, rstd_1, rstd_2,
    H: tl.constexpr, W: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
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
    o_out = image * (3 * H * W) + patch * (3 * P * P) + column
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_pixel)


@triton_op("patchify")
def _forward(images, patch_size, mean, std, dtype):
    batch, channels, height, width = images.shape
    h, w = height // patch_size, width // patch_size
    out = images.new_empty((batch, h * w, channels * patch_size**2), dtype=dtype)
    if out.numel():
        grid = (batch * channels * h * cdiv(patch_size * width, BLOCK),)
        patchify_kernel[grid](
            images, out, *map(float, mean), *(1.0 / s for s in std),
            H=height, W=width, P=patch_size, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def aot_cases(shape: AotShape) -> list[AotCase]:
    size = shape.grid * shape.patch_size
    scalars = {f"{name}_{i}": 0.5 for name in ("mean", "rstd") for i in range(3)}
    return [
        AotCase(
            patchify_kernel,
            {"p_images": "*u8", "p_out": f"*{shape.dtype}", **scalars},
            {"H": size, "W": size, "P": shape.patch_size, "BLOCK": BLOCK},
        )
    ]
