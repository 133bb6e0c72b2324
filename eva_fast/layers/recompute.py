"""Activation checkpointing: what a block computed for the backward is computed again there, not kept.

A checkpointed block keeps its inputs alone. The same ops run on the same inputs, so every number stays
as it is; random factors are drawn before and are inputs, so that no random state has to be kept and
set back, which a captured graph could not do. Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"; by torch.utils.checkpoint.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


def run_branches(block: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """`run(*inputs)`, kept for the backward or, where `block.recompute`, computed again in it.
    Tensors among the inputs must stand by themselves: those are what is kept."""
    if block.recompute and torch.is_grad_enabled():
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if not torch.compiler.is_compiling() and _get_current_function_mode_stack():
            options["context_fn"] = _modes_again
        return checkpoint(run, *inputs, **options)
    return run(*inputs)


def _modes_again() -> tuple[Any, Any]:
    """Contexts of the forward, and of what is computed again: with the function modes of the forward,
    which the autograd engine does not have."""
    return contextlib.nullcontext(), _within(_get_current_function_mode_stack())


@contextlib.contextmanager
def _within(modes: list[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield


def spread(depth: int, share: float) -> list[int]:
    """Which of `depth` blocks are checkpointed: round(share depth) of them, at least one, evenly spread
    from the first on."""
    count = max(1, round(share * depth))
    return [i * depth // count for i in range(count)]
