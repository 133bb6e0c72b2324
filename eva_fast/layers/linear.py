"""A Linear, and any other weight that products read, with its copy in the compute dtype.

Parameters stay float32; 16-bit products read a rounded copy. Without further ado the copy is made
for each call. `keep_copies` has every layer of a module keep its own, for an optimiser that writes
them in its own pass (`FusedAdamW(copies=...)`): then nothing is rounded twice. A kept copy is
checked at each use: a parameter that changed otherwise (loaded weights, another optimiser, an
edit) is rounded anew. See `eva_fast.ops.copies` for what such a check can see.

Under torch.compile, for sharded parameters and for parameters that were swapped (functional calls)
the kept copies are left alone and the weight is rounded in the call.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.layers.members import parameter
from eva_fast.layers.sharding import is_sharded
from eva_fast.ops import copies
from eva_fast.ops.linear import linear
from eva_fast.ops.shards import is_shard

if TYPE_CHECKING:
    from eva_fast.layers.fp8 import EightBits


class Matrix(NamedTuple):
    """A weight [N, K] and what the products read: itself, or its copy in the compute dtype."""

    weight: Tensor
    copy: Any = None
    """A tensor or, in the branches of blocks, an 8-bit one; None: the weight itself."""


class KeepsCopies:
    """A module that can keep copies of some of its parameters in the dtype it computes in."""

    _kept: Any = None

    def keep_copies(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        """Makes and keeps the copies; {parameter: copy}, empty where none is needed."""
        raise NotImplementedError

    def drop_copies(self) -> None:
        """Forgets them: from now on each call makes its own."""
        self._kept = None

    def __getstate__(self):
        # A copied or pickled module has parameters of its own: it starts without copies.
        return {k: v for k, v in self.__dict__.items() if k != "_kept"}


class RoundedWeight(KeepsCopies):
    """A module whose `weight` is read in the compute dtype."""

    weight: Tensor
    _kept: Tensor | None = None

    def keep_copies(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        self.drop_copies()
        if self.weight.dtype == dtype or not can_keep(self.weight):
            return {}
        self._kept = copies.write(torch.empty_like(self.weight, dtype=dtype), self.weight)
        return {self.weight: self._kept}

    def matrix(self, dtype: torch.dtype) -> Matrix:
        """The weight as products in `dtype` read it, with all dimensions but the first as one."""
        weight = parameter(self, "weight")  # type: ignore[arg-type]
        copy = None if weight.dtype == dtype else self._rounded(weight, dtype)
        if weight.ndim > 2:
            weight, copy = weight.flatten(1), None if copy is None else copy.flatten(1)
        return Matrix(weight, copy)

    def _rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        kept = self._kept
        if kept is not None and kept.dtype == dtype and refreshed(kept, weight):
            return kept
        return weight.detach().to(dtype)


class Linear(RoundedWeight, nn.Linear):
    """torch's Linear by the project's products: x [..., K] in any floating dtype -> [..., N]."""

    eight_bits: "EightBits | None" = None
    """Set by `eva_fast.layers.fp8.use_fp8`."""
    scaled = False
    """Whether products read it times a LayerScale (`eva_fast.layers.layer_scale`): then nobody reads a
    copy of it alone, and none is kept."""

    def forward(self, x: Tensor) -> Tensor:
        weight, copy = self.matrix(x.dtype)
        return linear(x, weight, parameter(self, "bias"), copy)

    def operand(self, dtype: torch.dtype) -> Matrix:
        """The weight as the branch of a block reads it: in 8 bits where it has them."""
        if self.eight_bits is None or dtype != torch.bfloat16:
            return self.matrix(dtype)
        return Matrix(self.weight, self.eight_bits.of(self.weight))

    def keep_copies(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        if self.scaled:
            self.drop_copies()
            return {}
        if self.eight_bits is None or dtype != torch.bfloat16:
            return super().keep_copies(dtype)
        self.drop_copies()
        self.eight_bits.keep = can_keep(self.weight)
        if self.eight_bits.keep:
            self.eight_bits.of(self.weight)
        return {}

    def drop_copies(self) -> None:
        super().drop_copies()
        if self.eight_bits is not None:
            self.eight_bits.forget()


def refreshed(kept: Tensor, source: Tensor) -> bool:
    """Whether `kept` may be read as `source`: it is current, or was rounded anew just now."""
    if torch.compiler.is_compiling():
        return False
    if copies.is_current(kept, source):
        return True
    if not copies.is_copy_of(kept, source) or kept.device != source.device:
        return False
    copies.write(kept, source)
    return True


def can_keep(source: Tensor) -> bool:
    """Whether changes of this parameter can be counted, and a copy made now be read by a step that
    trains: not so in inference mode. A shard is not what products read."""
    if source.is_inference() or torch.is_inference_mode_enabled():
        return False
    return not is_shard(source)


def keep_copies(module: nn.Module, dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """Has every layer in `module` keep what it reads in `dtype`; {parameter: copy} of all, for
    `make_optimizer(copies=...)`. Call it once the parameters are on their device. Modules under
    `fully_shard` keep none: their unsharded weights come and go uncounted."""
    if any(is_sharded(m) for m in module.modules()):
        return {}
    kept: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        if isinstance(layer, KeepsCopies):
            kept.update(layer.keep_copies(dtype))
    return kept


def drop_copies(module: nn.Module) -> None:
    """Has every layer in `module` forget its kept copies: less memory, and no need for anyone who
    changes parameters to be seen doing so."""
    for layer in module.modules():
        if isinstance(layer, KeepsCopies):
            layer.drop_copies()
