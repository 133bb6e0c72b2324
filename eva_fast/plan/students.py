"""The formulations a step can be counted and timed in, built on meta tensors for any size."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eva_fast.baselines import OfficialViT, TunedViT
from eva_fast.errors import UsageError
from eva_fast.layers import keep_copies, use_fp8
from eva_fast.layers.recompute import spread
from eva_fast.model import EvaViT
from eva_fast.model.sizes import ModelSizes
from eva_fast.plan.flash import FlashAttention
from eva_fast.plan.rates import FP8, wide

FORMULATIONS = ("official", "tuned", "eva_fast")


@dataclass(frozen=True, slots=True)
class MetaStudent:
    """A model without values and the call that gives its loss."""

    model: nn.Module
    loss: Callable[[], Tensor]


def check_formulation(name: str) -> None:
    """ValueError unless `name` is one of `FORMULATIONS`."""
    if name not in FORMULATIONS:
        raise UsageError(f"unknown formulation {name!r}: one of {', '.join(FORMULATIONS)}")


def build(
    formulation: str,
    sizes: ModelSizes,
    batch: int,
    masked: int,
    dtype: torch.dtype,
    device: str,
    recompute: float = 0.0,
) -> MetaStudent:
    """A student on meta tensors with `masked` patches an image, in the dtype it computes in.

    `device` ("cuda" or "cpu") chooses the kernels that eva_fast would run there; `recompute` is the
    share of its blocks that are checkpointed."""
    side, eight_bits, dtype = sizes.img_size, dtype == FP8, wide(dtype)
    if eight_bits and formulation != "eva_fast":
        raise UsageError(f"fp8 is counted for eva_fast alone, not for {formulation}")
    with torch.device("meta"):
        target = torch.empty(batch * masked, sizes.predict_dim, dtype=dtype)
        mask = torch.empty(batch, sizes.num_patches, dtype=torch.bool)
        if formulation == "eva_fast":
            kernels = "triton" if device == "cuda" else "native"
            model = EvaViT(sizes, kernels=kernels).to(dtype)
            if eight_bits:
                use_fp8(model)
            keep_copies(model, dtype)  # as a run does, whose optimiser writes them
            model.set_grad_checkpointing(recompute > 0, recompute or 1.0)
            raw = torch.empty(batch, 3, side, side, dtype=torch.uint8)
            indices = torch.empty(batch, masked, dtype=torch.int32)
            return MetaStudent(model, lambda: model.loss(raw, indices, target))
        plain = (OfficialViT if formulation == "official" else TunedViT)(sizes).to(dtype)
        for number in spread(sizes.depth, recompute) if recompute else ():
            block = plain.blocks[number]
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False,
                # the engine runs what is computed again without the modes of the forward
                context_fn=lambda: (contextlib.nullcontext(), FlashAttention(device)),
            )  # fmt: skip
        images = torch.empty(batch, 3, side, side, dtype=dtype)
        inputs: tuple[Tensor, ...] = (mask,)
        if isinstance(plain, TunedViT):
            inputs += (torch.empty(batch * masked, dtype=torch.int64),)
        return MetaStudent(plain, lambda: plain.loss(target, images, *inputs))
