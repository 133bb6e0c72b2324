"""The formulations that EVA's step can be counted and timed in, built on meta tensors for any size."""

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
from eva_fast.planning.flash import FlashAttention
from eva_fast.planning.rates import FP8, wide

OURS = "eva_fast"
FORMULATIONS = ("official", "tuned", OURS)


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
    if eight_bits and formulation != OURS:
        raise UsageError(f"fp8 is counted for eva_fast alone, not for {formulation}")
    with torch.device("meta"):
        target = torch.empty(batch * masked, sizes.predict_dim, dtype=dtype)
        mask = torch.empty(batch, sizes.num_patches, dtype=torch.bool)
        if formulation == OURS:
            kernels = "triton" if device == "cuda" else "native"
            model = EvaViT(sizes, kernels=kernels).to(dtype)
            if eight_bits:
                use_fp8(model)
            keep_copies(model, dtype)  # as a run does, whose optimiser writes them
            model.set_grad_checkpointing(recompute > 0, recompute or 1.0)
            kind = torch.uint8 if sizes.channels == 3 else torch.float32
            raw = torch.empty(batch, sizes.channels, side, side, dtype=kind)
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


def parameter_count(sizes: ModelSizes) -> int:
    """Parameters of the student with its head, in official naming (k has no bias)."""
    d, h, n = sizes.embed_dim, sizes.mlp_hidden, sizes.num_patches
    block = 4 * d * d + 3 * d + 2 * d * h + h + d + 4 * d
    embed = sizes.channels * sizes.patch_size**2 * d + d + 2 * d + (n + 1) * d
    return sizes.depth * block + embed + 2 * d + (d + 1) * sizes.predict_dim


def model_flops(sizes: ModelSizes, batch: int, masked: int) -> int:
    """Arithmetic the step needs: every token through every block, forward and twice that for the
    backward, nothing recomputed, no gradient of the images. What MFU counts, for all
    formulations alike, so that images/s and MFU always rank them the same."""
    d, n = sizes.embed_dim, sizes.num_patches
    tokens = n + 1
    block = 2 * tokens * (4 * d * d + 2 * d * sizes.mlp_hidden) + 4 * tokens * tokens * d
    embed = 2 * n * sizes.channels * sizes.patch_size**2 * d
    head = 2 * masked * d * sizes.predict_dim
    return batch * (3 * (sizes.depth * block + head) + 2 * embed)
