"""Activation checkpointing: what a block computed for the backward is computed again there, not kept.

A checkpointed block keeps its inputs alone. The same ops run on the same inputs, so every number stays
as it is; random factors are drawn before and are inputs, so that no random state has to be kept and
set back, which a captured graph could not do. Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"; by torch.utils.checkpoint.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_branches(block: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """`run(*inputs)`, kept for the backward or, where `block.recompute`, computed again in it.
    Tensors among the inputs must stand by themselves: those are what is kept."""
    if block.recompute and torch.is_grad_enabled():
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
    return run(*inputs)


def spread(depth: int, share: float) -> list[int]:
    """Which of `depth` blocks are checkpointed: round(share depth) of them, at least one, evenly spread
    from the first on."""
    count = max(1, round(share * depth))
    return [i * depth // count for i in range(count)]
