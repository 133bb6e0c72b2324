"""The 8-bit weights of blocks: who has them, and when they are quantised.

`use_fp8(model)` has the four Linears of every block (qkv, proj, fc1, fc2) compute in 8 bits where the
compute dtype is bfloat16: products alone, of forward and backward. All else, attention, norms, GELU,
patches and head, is as in bfloat16, and parameters stay float32.

A weight is quantised once for each value that the parameter has, from float32, as rows and as columns;
no bfloat16 copy of it is kept. As with all kept copies (`eva_fast.layers.linear`), that is after
`keep_copies`; before, it is quantised in each call.
"""

import torch
from torch import Tensor, nn

from eva_fast.layers.block import Block
from eva_fast.ops import copies
from eva_fast.ops.quantise_fp8 import MULTIPLE, Quantised, quantise_unchecked

WEIGHT = torch.float8_e4m3fn
DTYPE = torch.bfloat16
"""The compute dtype beside which 8-bit products run."""


class EightBits:
    """The 8-bit form of one weight, kept while the weight does not change where `keep` says so.

    What is written while a CUDA graph is captured has its value only when that runs: it is read by
    that capture alone, and what was written before is not read in one. So a captured step quantises
    the weights that its replay finds. Replays change a parameter uncounted: from a capture on, whoever
    reads the weight outside has it quantised anew."""

    def __init__(self) -> None:
        self.keep = False
        self._kept: tuple[Quantised, bool] | None = None

    def __reduce__(self):
        return EightBits, ()  # a copied or pickled module has parameters of its own

    def forget(self) -> None:
        self.keep, self._kept = False, None

    def of(self, weight: Tensor) -> Quantised:
        """`weight` [N, K], quantised."""
        if not self.keep or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return _quantised(weight)
        capturing = weight.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._kept is not None:
            found, captured = self._kept
            if captured and not capturing:
                return _quantised(weight)
            if captured == capturing and copies.is_current(found.rows, weight):
                return found
            self._kept = None  # the memory goes before more is taken
        found = _quantised(weight)
        copies.mark(found.rows, weight)
        self._kept = found, capturing
        return found


@torch.no_grad()
def _quantised(weight: Tensor) -> Quantised:
    return quantise_unchecked(weight.detach(), None, WEIGHT, True, True)


def obstacle(weight: Tensor) -> str | None:
    """Why no 8-bit product can read this weight; None where one can."""
    odd = [n for n in weight.shape if n % MULTIPLE]
    return f"{odd[0]} is not a multiple of {MULTIPLE}" if odd else None


def use_fp8(model: nn.Module) -> dict[str, str]:
    """Has the blocks of `model` multiply in 8 bits; {name of a Linear: why it stays as it is}."""
    left: dict[str, str] = {}
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        linears = {
            "attn.qkv": block.attn.qkv, "attn.proj": block.attn.proj,
            "mlp.fc1": block.mlp.fc1, "mlp.fc2": block.mlp.fc2,
        }  # fmt: skip
        for own, linear in linears.items():
            found = obstacle(linear.weight)
            if found is None:
                linear.eight_bits = EightBits()
            else:
                left[f"{name}.{own}"] = found
    return left
