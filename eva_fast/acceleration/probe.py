"""A block against its library's own forward, before anything is changed.

A library's next version may compute something else from the same parts. So one block of each kind is
copied to the CPU in float64, given random parameters, and run both ways on a few tokens.
"""

import copy
from typing import Any

import torch
from torch import nn

from eva_fast.acceleration.classes import accelerated_class
from eva_fast.acceleration.family import Family

TOKENS = 5
TOLERANCE = 1e-5
"""Of the largest value: some libraries compute norms and scores in float32 whatever they are given."""


def disagreement(block: nn.Module, family: Family) -> float:
    """How far the fused forward is from the library's, as a share of the largest value. 0 where the
    parameters are not there yet (on the meta device)."""
    if any(p.is_meta for p in block.parameters()):
        return 0.0
    twin = _twin(block)
    family.prepare(twin)
    x = torch.randn(
        (2, _tokens(twin), _width(twin)),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
    )
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = family.own(twin, x)
        twin.__class__ = accelerated_class(type(twin), family.forward)
        found = family.own(twin, x)
    return float((found - expected).abs().max() / expected.abs().max())


def _twin(block: nn.Module) -> Any:
    """A copy on the CPU in float64 with random parameters, without hooks, in evaluation."""
    twin = copy.deepcopy(block).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.data.normal_(0, spread, generator=generator)
        if parameter.dim() == 1:
            parameter.data += 1
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return twin


def _tokens(block: nn.Module) -> int:
    """As many as a bias by relative positions has rows; some that have a place."""
    for name, buffer in block.named_buffers():
        if name.endswith("relative_position_index"):
            return int(buffer.shape[0])
    return TOKENS + max(getattr(m, "num_prefix_tokens", 0) for m in block.modules())


def _width(block: Any) -> int:
    """Of the tokens, which the first norm says."""
    first = next(m for m in block.modules() if hasattr(m, "normalized_shape"))
    return int(first.normalized_shape[0])


def refuses(difference: float) -> bool:
    """Whether a `disagreement` is one; what is not finite is."""
    return not difference <= TOLERANCE
