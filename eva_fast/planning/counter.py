"""Counts what a training step does, on meta tensors: nothing is computed, any size counts anywhere.

Conventions, the same for every formulation:

- an operator is what reaches PyTorch's dispatcher below autograd; views and allocations are free;
- bytes: each tensor argument read once, each tensor result written once, in full; an op of ours may
  say that it reads one again;
- a launch is one operator, and `kernels` beside it says where one is known to run as more;
- flash attention is one operator whose backward recomputes the scores: 2.5 forwards of FLOPs;
- saved activations: distinct storages that autograd keeps for the backward and that are not
  parameters, at the end of the forward;
- FLOPs: two for each multiply-add of matrix products and attention, nothing for the rest.

`scaled_dot_product_attention` is led to the flash operator of the device that is counted for
(`flash.py`).
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes
from eva_fast.ops.fp8_gemm import FORMATS
from eva_fast.planning import formulas
from eva_fast.planning.count import Operator, StepCount, at_batch
from eva_fast.planning.flash import FlashAttention
from eva_fast.planning.rates import FP8
from eva_fast.planning.students import (
    FORMULATIONS,
    build,
    check_formulation,
    model_flops,
    parameter_count,
)

aten = torch.ops.aten

# Reserve memory without touching it, or only describe other memory.
FREE = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
    | {"_reshape_alias", "detach", "alias", "lift_fresh"}
)


class Recorder(TorchDispatchMode):
    """Collects every operator that runs under it into `operators`.

    `masked` is the number of masked patches of the whole batch: how many rows a boolean index
    finds, which meta tensors cannot tell; real ones need it not."""

    def __init__(self, masked: int = 0, phase: str = "forward"):
        super().__init__()
        self.masked = masked
        self.phase = phase
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten.index.Tensor:
            args = (args[0], self._rows_of(args[1]))
        out = func(*args, **kwargs)
        self._record(func, args, kwargs, out)
        return out

    def _rows_of(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Boolean indices as the rows they find; finding them is an operator of its own."""
        rows: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool:
                rows.append(index)
                continue
            found = (
                torch.empty(self.masked, index.ndim, dtype=torch.int64, device="meta")
                if index.is_meta
                else index.nonzero()
            )
            self._add("nonzero", 0, index.numel() + 8 * found.numel(), "int64", found.numel())
            rows += found.unbind(1)
        return rows

    def _record(self, func, args, kwargs, out) -> None:
        namespace, name = func._schema.name.split("::")
        if func.is_view or (namespace == "aten" and name in FREE):
            return
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if not results:
            return
        tensors = results + [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        label = name if namespace == "aten" else f"{namespace}::{name}"
        size = sum(t.numel() * t.element_size() for t in tensors)
        size += formulas.bytes_again(label, args, kwargs)
        self._add(
            label,
            formulas.flops(func, args, kwargs, out),
            size,
            str(_arithmetic(formulas.part_of(label), results + tensors)).removeprefix("torch."),
            sum(t.numel() for t in results),
        )

    def _add(self, name: str, flops: int, size: int, dtype: str, elements: int) -> None:
        part, kernels = formulas.part_of(name), formulas.kernels(name)
        self.operators.append(
            Operator(self.phase, name, part, flops, size, kernels, dtype, elements)
        )


def _arithmetic(part: str, tensors: list[Tensor]) -> torch.dtype:
    """What an operator on these computes in: that of its first result, but 8-bit products give 16."""
    products = part == "gemm" and any(t.dtype in FORMATS for t in tensors)
    return FP8 if products else tensors[0].dtype


@contextmanager
def saved_storages(
    model: torch.nn.Module, copies: Iterable[Tensor] = ()
) -> Iterator[dict[int, int]]:
    """Bytes of each storage autograd keeps while inside, parameters, their copies and buffers left
    out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), *copies)}
    saved: dict[int, int] = {}
    alive = []  # holding the storages keeps their addresses from being used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def default_masked(sizes: ModelSizes) -> int:
    """Masked patches an image: EVA-01's 105 of 256, the same share of any other grid."""
    return max(1, round(sizes.num_patches * 105 / 256))


@functools.lru_cache(maxsize=64)
def count_step(
    formulation: str,
    sizes: ModelSizes,
    batch: int,
    *,
    masked: int | None = None,
    dtype: torch.dtype = torch.float16,
    device: str = "cuda",
    backward: bool = True,
    recompute: float = 0.0,
) -> StepCount:
    """One student step, forward and backward, without teacher and optimiser, counted exactly.

    Args:
        formulation: "official", "tuned" or "eva_fast".
        sizes: shapes of the model.
        batch: images on one device.
        masked: masked patches an image; EVA-01's share when None.
        dtype: dtype of weights and activations; float8_e4m3fn: of the blocks' products, beside bfloat16.
        device: "cuda" or "cpu": whose flash attention and kernels.
        backward: False counts the forward alone, without keeping anything for a backward.
        recompute: share of the blocks that are checkpointed; what they compute again is of the
            backward.

    ValueError for an unknown formulation, a batch below 1 or a mask that does not fit.
    """
    check_formulation(formulation)
    if batch < 1:
        raise UsageError(f"batch must be at least 1 image, got {batch}")
    masked = default_masked(sizes) if masked is None else masked
    if not 1 <= masked <= sizes.num_patches:
        raise UsageError(f"masked must be 1 to {sizes.num_patches} patches an image, got {masked}")
    student = build(formulation, sizes, batch, masked, dtype, device, recompute)
    recorder = Recorder(masked * batch)
    kept = 0
    with FlashAttention(device), recorder:
        if backward:
            with saved_storages(student.model) as saved:
                loss = student.loss()
            kept = sum(saved.values())
            recorder.phase = "backward"
            loss.backward()
        else:
            with torch.no_grad():
                student.loss()
    return StepCount(
        formulation, sizes, batch, masked, dtype, tuple(recorder.operators), kept,
        parameter_count(sizes), model_flops(sizes, batch, masked),
    )  # fmt: skip


def count_step_at(formulation: str, sizes: ModelSizes, batch: int, **options) -> StepCount:
    """`count_step` for many batch sizes: counts at 2 and 3 images, and continues each operator
    along the line through both, which is exact because every size is affine in the batch."""
    if batch < 1:
        raise UsageError(f"batch must be at least 1 image, got {batch}")
    return at_batch(batch, *(count_step(formulation, sizes, b, **options) for b in (2, 3)))


def compare(sizes: ModelSizes, batch: int, **options) -> list[dict]:
    """Summaries of every formulation, in the order of `FORMULATIONS`."""
    return [count_step(name, sizes, batch, **options).summary() for name in FORMULATIONS]
