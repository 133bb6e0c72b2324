"""The 8-bit weights of blocks: who has them, and when they are quantised.

`use_fp8(model)` has the four Linears of every block (qkv, proj, fc1, fc2) compute in 8 bits where the
compute dtype is bfloat16: products alone, of forward and backward. All else, attention, norms, GELU,
patches and head, is as in bfloat16, and parameters stay float32.

A weight is quantised once for each value that the parameter has, from float32, as rows and as columns;
no bfloat16 copy of it is kept. As with all kept copies (`eva_fast.layers.linear`), that is after
`keep_copies`; before, it is quantised in each call. Its largest magnitude is what the optimiser left
when it wrote the value (`keep_largest`); only of a value that came otherwise is it found anew.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eva_fast.layers.block import Block
from eva_fast.layers.linear import Linear
from eva_fast.layers.products import FORMAT, EightBitWeight
from eva_fast.ops import copies, largest
from eva_fast.ops.largest_row_norm import row_norm_unchecked
from eva_fast.ops.quantise_fp8 import MULTIPLE, Quantised, quantise_unchecked

Lengths = Callable[[Quantised], Tensor]
"""The part of a weight, by rows or by columns, whose longest row is asked for."""


class EightBits:
    """The 8-bit form of one weight, kept while the weight does not change where `keep` says so.

    What is written while a CUDA graph is captured has its value only when that runs: it is read by
    that capture alone, and what was written before is not read in one. So a captured step quantises
    the weights that its replay finds. Replays change a parameter uncounted: from a capture on, whoever
    reads the weight outside has it quantised anew."""

    def __init__(self, lengths: Lengths | None = None) -> None:
        self.keep = False
        self.largest: Tensor | None = None
        """Parts of the parameter's largest magnitude, for the optimiser to write; None: nobody does."""
        self._lengths = lengths
        self._kept: tuple[EightBitWeight, bool] | None = None

    def __reduce__(self):
        return EightBits, (self._lengths,)  # a copied or pickled module has parameters of its own

    def forget(self) -> None:
        self.keep, self._kept, self.largest = False, None, None

    def of(self, weight: Tensor) -> EightBitWeight:
        """`weight` [N, K], quantised."""
        if not self.keep or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return self._quantised(weight)
        capturing = weight.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._kept is not None:
            found, captured = self._kept
            if captured and not capturing:
                return self._quantised(weight)
            if captured == capturing and copies.is_current(found.rows, weight):
                return found
            self._kept = None  # the memory goes before more is taken
        found = self._quantised(weight)
        copies.mark(found.rows, weight)
        self._kept = found, capturing
        return found

    @torch.no_grad()
    def _quantised(self, weight: Tensor) -> EightBitWeight:
        parts = self.largest
        if parts is not None:
            if not copies.is_copy_of(parts, weight):  # scaled by another parameter, say
                parts = None
            elif not copies.is_current(parts, weight):
                largest.fill(parts, weight)
        q = quantise_unchecked(weight.detach(), None, FORMAT, True, True, parts)
        norm = self._lengths and row_norm_unchecked(self._lengths(q), q.scale)
        return EightBitWeight(*q, norm)


def keep_largest(module: nn.Module) -> dict[Tensor, Tensor]:
    """Has the largest magnitudes of kept 8-bit weights kept beside them; {parameter: its parts}, for
    `make_optimizer(largest=...)`. Call it after `keep_copies`."""
    found: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        if isinstance(layer, Linear) and layer.eight_bits is not None and layer.eight_bits.keep:
            layer.eight_bits.largest = found[layer.weight] = largest.parts_of(layer.weight)
    return found


def _rows(q: Quantised) -> Tensor:
    return q.rows


def _rows_of_v(q: Quantised) -> Tensor:
    return q.rows[len(q.rows) // 3 * 2 :]


def _columns(q: Quantised) -> Tensor:
    return q.columns


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
        linears: dict[str, tuple[Linear, Lengths | None]] = {
            "attn.qkv": (block.attn.qkv, _rows_of_v), "attn.proj": (block.attn.proj, None),
            "mlp.fc1": (block.mlp.fc1, _rows), "mlp.fc2": (block.mlp.fc2, _columns),
        }  # fmt: skip
        for own, (linear, lengths) in linears.items():
            found = obstacle(linear.weight)
            if found is None:
                linear.eight_bits = EightBits(lengths)
            else:
                left[f"{name}.{own}"] = found
    return left
