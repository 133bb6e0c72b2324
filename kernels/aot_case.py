"""How a kernel file declares what `eva_fast.inspect.aot` compiles for GPUs that are not here.

A kernel file has a function `aot_cases(shape: AotShape) -> list[AotCase]` that returns its kernels
with the arguments, constants and launch options which its launcher would use at that shape, so that
what is inspected is what runs.
"""

from dataclasses import dataclass, replace
from typing import Any

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class AotShape:
    """Sizes of one student's training step, and the target it is compiled for.

    `capability` is the compute capability times ten (80, 90, 100); `dtype` is Triton's name of the
    compute dtype ("bf16", "fp16", "fp32").
    """

    name: str
    batch: int
    grid: int
    patch_size: int
    width: int
    heads: int
    mlp_hidden: int
    masked: int
    predict_dim: int
    dtype: str = "bf16"
    capability: int = 90

    @property
    def tokens(self) -> int:
        """Sequence length: the patches and CLS."""
        return self.grid * self.grid + 1

    @property
    def tensor_cores(self) -> bool:
        """Whether products are the tensor cores' work: those of fp32 inputs are full fp32 products."""
        return self.dtype != "fp32"

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class AotCase:
    """One kernel launch.

    `args` maps each run-time argument to a pointer type ("*bf16", "*fp32", "*i32", "*u8") or to a
    value as the launcher would pass it: integers get Triton's own specialisation (1 becomes a
    constant, multiples of 16 are marked so), floats become fp32. Pointers count as 16-byte aligned.
    `constants` are the constexpr arguments (an absent optional pointer is the constant None).
    `dot`: the kernel multiplies matrices, so it must use the tensor cores. `small_tiles`: among its
    tiles are some too small to give every thread 16 bytes (the one row of CLS, a row's last piece).
    """

    kernel: Any
    args: dict[str, str | int | float]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    dot: bool = False
    label: str = ""
    small_tiles: bool = False


VIT_B = AotShape("vit_b", 32, 14, 16, 768, 12, 3072, 78, 768)
VIT_G = AotShape("vit_g", 32, 16, 14, 1408, 16, 6144, 105, 768)
VIT_G_FP32 = replace(VIT_G, name="vit_g fp32", dtype="fp32")
