"""AdamW with EVA-01's parameter groups."""

from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.ops import FusedAdamW

NO_DECAY = ("pos_embed", "cls_token")


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """(names that decay, names that do not): 1-D parameters, biases, `pos_embed` and `cls_token`
    do not decay; `mask_token`, which is [1,1,D], does (EVA-01's optim_factory)."""
    decay: list[str] = []
    no_decay: list[str] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        spared = p.ndim <= 1 or name.endswith(".bias") or name.rsplit(".")[-1] in NO_DECAY
        (no_decay if spared else decay).append(name)
    return decay, no_decay


def make_optimizer(
    model: nn.Module,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.05,
    copies: dict[Tensor, Tensor] | None = None,
) -> FusedAdamW:
    """AdamW over `model` in two groups, decayed and not, in one pass over memory (`ops.adamw`).

    `copies` maps parameters to 16-bit tensors that every step rewrites
    (`eva_fast.layers.keep_copies`). Its state dict and torch.optim.AdamW's are interchangeable.
    """
    parameters = dict(model.named_parameters())
    decay, no_decay = decay_groups(model)
    groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in decay], "weight_decay": weight_decay},
        {"params": [parameters[n] for n in no_decay], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return FusedAdamW(groups, lr=lr, betas=betas, eps=eps, copies=copies)


def gradient_norm(model: nn.Module) -> Tensor:
    """Global L2 norm of all gradients, on their device."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads, foreach=True)


class Ema:
    """Exponential moving average of the parameters, float32, updated in place after each step."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {n: p.detach().clone().float() for n, p in model.named_parameters()}
        self._sources = [p.detach() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.weights.values()), self._sources, 1 - self.decay)
