"""AdamW with EVA-01's parameter groups, the gradient norm, the moving average of the weights."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.ops import FusedAdamW
from eva_fast.ops.gradient_norm import gradient_norm_unchecked
from eva_fast.ops.shards import is_shard, local


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """(names that decay, names that do not) of the parameters that train.

    1-D parameters and biases do not decay, nor what `no_weight_decay()` of the model, or of a
    module in it, lists: names within that module, as timm and the official codes have it."""
    spared = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", tuple)()
    }
    decay: list[str] = []
    no_decay: list[str] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        kept = p.ndim <= 1 or name.endswith(".bias") or name in spared
        (no_decay if kept else decay).append(name)
    return decay, no_decay


def make_optimizer(
    model: nn.Module,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.05,
    copies: dict[Tensor, Tensor] | None = None,
    largest: dict[Tensor, Tensor] | None = None,
) -> FusedAdamW:
    """AdamW over `model` in two groups, decayed and not, in one pass over memory (`ops.adamw`).

    `copies` maps parameters to 16-bit tensors that every step rewrites
    (`eva_fast.layers.keep_copies`), `largest` to their largest magnitudes, for 8-bit copies
    (`eva_fast.layers.keep_largest`). Its state dict and torch.optim.AdamW's are interchangeable.
    """
    parameters = dict(model.named_parameters())
    decay, no_decay = decay_groups(model)
    groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in decay], "weight_decay": weight_decay},
        {"params": [parameters[n] for n in no_decay], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return FusedAdamW(groups, lr=lr, betas=betas, eps=eps, copies=copies, largest=largest)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Global L2 norm of the gradients of `parameters`, on their device; of sharded ones over the
    processes that have the shards."""
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    if len(set(map(_KIND, grads))) == 1 and type(grads[0]) is Tensor:
        return gradient_norm_unchecked(grads)
    if not grads or not is_shard(grads[0]):
        return torch.nn.utils.get_total_norm(grads, foreach=True)
    import torch.distributed as dist

    group = grads[0].device_mesh.get_group(mesh_dim=-1)  # type: ignore[attr-defined]
    squares = torch.nn.utils.get_total_norm([local(g) for g in grads], foreach=True) ** 2
    dist.all_reduce(squares, group=group)
    return squares.sqrt()


_KIND = operator.attrgetter("dtype", "device")


class Ema:
    """Exponential moving average of the parameters, float32, updated in place after each step."""

    def __init__(self, model: nn.Module, decay: float):
        self.weights = {n: p.detach().clone().float() for n, p in model.named_parameters()}
        self._sources = [local(p.detach()) for p in model.parameters()]
        self._averages = [local(w) for w in self.weights.values()]
        self._share = torch.full((), 1 - decay, device=self._sources[0].device)

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Moves the average towards the weights where `applied`, bool [], is True."""
        share = self._share * applied
        torch._foreach_lerp_(self._averages, self._sources, [share] * len(self._sources))
