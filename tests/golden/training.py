"""The steps of training that a file has: AdamW on its one batch with its own learning rates."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.train import make_optimizer
from tests.golden import Check, relative, worst


class Course(NamedTuple):
    """One value a step."""

    losses: Tensor
    norms: Tensor
    """Of the gradients, before clipping."""


def train(
    model: nn.Module,
    rates: Tensor,
    meta: Mapping[str, str],
    loss: Callable[[], Tensor],
    after_step: Callable[[], None] = lambda: None,
) -> Course:
    """Steps with the file's betas, eps and decay; the norm clipped but where that is 0."""
    betas = tuple(float(b) for b in meta["betas"].split(","))
    optimizer = make_optimizer(
        model, betas=betas, eps=float(meta["eps"]), weight_decay=float(meta["weight_decay"])
    )
    clip = float(meta["clip_grad"]) or math.inf
    losses, norms = [], []
    for rate in rates.tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss()
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step(grad_scale=(clip / (norm + 1e-6)).clamp_max(1.0))
        after_step()
        losses.append(value.detach())
        norms.append(norm)
    return Course(torch.stack(losses), torch.stack(norms))


def worst_of(
    what: str,
    found: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    prefix: str,
    bound: float,
    error: Callable[[Tensor, Tensor], float] = relative,
) -> Check:
    """The tensor that is furthest from the file's of that name behind `prefix`."""
    name, off = worst({n: error(value, tensors[f"{prefix}{n}"]) for n, value in found.items()})
    return Check(f"{what} (worst: {name})", off, bound)


def apart(found: Tensor, official: Tensor) -> float:
    """Largest relative difference of single values."""
    return (found / official - 1).abs().max().item()
