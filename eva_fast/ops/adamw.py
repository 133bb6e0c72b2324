"""AdamW over all parameters at once, with gradient scale, fp32 masters and 16-bit copies.

    g = grad * grad_scale                            clipping and loss scaling, one device scalar
    p = p (1 - lr wd)                                Loshchilov & Hutter 2019, decoupled decay
    m = m + (1 - b1) (g - m),  v = b2 v + (1 - b2) g^2
    p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    copy = p                                         rounded to the compute dtype

in the order of torch.optim.AdamW, so the numbers agree. Plain PyTorch reads and writes the
gradient once to scale it and the master once more to round it; here each tensor is touched once.
A grad_scale that is not finite (an overflow in fp16) leaves everything as it was, with no
synchronisation.

An implementation gets the custom op's arguments; every tensor of the lists is contiguous.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eva_fast.ops import copies as kept
from eva_fast.ops.checks import FLOATS
from eva_fast.ops.choose import chosen
from eva_fast.ops.registry import define

__all__ = ["adamw", "gradient_scale"]
_NAME = "adamw"
MASTERS: tuple[torch.dtype, ...] = (torch.float32, torch.float64)


def reference(
    params: Sequence[Tensor],
    copies: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    weight_decays: Sequence[float],
    lr: Tensor,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    grad_scale: Tensor | None = None,
) -> None:
    """`adamw` in plain PyTorch, tensor by tensor; reads its scalars on the host."""
    if grad_scale is not None and not math.isfinite(grad_scale.item()):
        return
    rate = lr.item()
    for i, (p, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs)):
        g = grad.to(p.dtype) if grad_scale is None else grad.to(p.dtype) * grad_scale.to(p.dtype)
        step = steps[i].item()
        p.mul_(1 - rate * weight_decays[i])
        m.lerp_(g, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        denominator = (v.sqrt() / math.sqrt(1 - betas[1] ** step)).add_(eps)
        p.addcdiv_(m, denominator, value=-rate / (1 - betas[0] ** step))
        if copies:
            copies[i].copy_(p)


@torch.library.custom_op(
    "eva_fast::adamw", mutates_args=("params", "copies", "exp_avgs", "exp_avg_sqs")
)
def _op(
    params: Sequence[Tensor],
    copies: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    weight_decays: Sequence[float],
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: Tensor | None,
) -> None:
    if params:
        grads = [g.contiguous() for g in grads]
        chosen(OP, params[0])(
            params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr,
            beta1, beta2, eps, grad_scale,
        )  # fmt: skip


@_op.register_fake
def _(*_args):
    return None


def adamw(
    params: Sequence[Tensor],
    copies: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    weight_decays: Sequence[float],
    lr: Tensor,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    grad_scale: Tensor | None = None,
) -> None:
    """One AdamW step on all tensors, in place.

    params, exp_avgs, exp_avg_sqs: float32, contiguous. grads: float32, bfloat16 or float16.
    copies: tensors that receive the new parameters in their own dtype, one each or none at all.
    steps: float32 [] each, the number of this step (1 at the first), already incremented.
    weight_decays: one each. lr, grad_scale: float32 [] on the parameters' device, so that a
    captured CUDA graph sees new values; grad_scale None is 1. Raises ValueError naming what does
    not fit.
    """
    _check(params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays)
    _op(
        list(params), list(copies), list(grads), list(exp_avgs), list(exp_avg_sqs), list(steps),
        list(weight_decays), lr, *betas, eps, grad_scale,
    )  # fmt: skip


def gradient_scale(
    grads: Sequence[Tensor], max_norm: float | None, loss_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(norm, scale) of gradients that still carry `loss_scale`; both float32 [] on the device.

    norm is the global L2 norm without the loss scale; scale brings the gradients to it and clips
    it at max_norm (None: no clipping), as torch.nn.utils.clip_grad_norm_ does. scale is NaN where
    the norm is not finite, which makes `adamw` skip the step.
    """
    norms = torch._foreach_norm(list(grads), 2, dtype=torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    unscale = 1 / loss_scale if loss_scale is not None else torch.ones_like(norm)
    norm = norm * unscale
    clip = torch.clamp(max_norm / (norm + 1e-6), max=1.0) if max_norm is not None else 1.0
    return norm, torch.where(torch.isfinite(norm), unscale * clip, math.nan)


class _Call:
    """The parameters of one call of `adamw` and all that belongs to them, in lists."""

    def __init__(self, group: int):
        self.group = group
        self.params: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.exp_avgs: list[Tensor] = []
        self.exp_avg_sqs: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.decays: list[float] = []
        self.noted: list[tuple[Tensor, Tensor]] = []
        """Copies, each with the parameter that the call rounds into it."""
        self.sharded = False

    def add(
        self, p: Tensor, copy: Tensor | None, state: dict[str, Tensor], weight_decay: float
    ) -> None:
        self.params.append(p)
        self.sharded |= _is_sharded(p)
        self.exp_avgs.append(state["exp_avg"])
        self.exp_avg_sqs.append(state["exp_avg_sq"])
        self.steps.append(state["step"])
        self.decays.append(weight_decay)
        if copy is not None:
            self.copies.append(copy)
            self.noted.append((copy, p))

    def arguments(self) -> list[Any]:
        """The lists as `adamw` takes them, with the gradients as they are now; of sharded tensors
        this process's shards."""
        lists: list[Any] = [
            *(self.params, self.copies, [p.grad for p in self.params]),
            *(self.exp_avgs, self.exp_avg_sqs),
        ]
        if self.sharded:
            lists = [[t.to_local() if _is_sharded(t) else t for t in tensors] for tensors in lists]
        return [*lists, self.steps, self.decays]


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW in one pass over memory; its state dict and torch's are interchangeable.

    Parameters are float32 masters. copies: {parameter: tensor of the compute dtype} that each step
    rewrites, and notes as current (`eva_fast.ops.copies`). `step(grad_scale=...)` takes the factor
    of `gradient_scale`. Groups with the same lr, betas and eps run in one call. For a captured CUDA
    graph give lr as a tensor on the device.
    Sharded parameters (DTensor) are updated shard by shard.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        copies: dict[Tensor, Tensor] | None = None,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.copies = dict(copies or {})
        self._key: Any = None
        self._calls: list[_Call] = []

    @torch.no_grad()
    def step(self, closure=None, *, grad_scale: Tensor | None = None):  # type: ignore[override]
        """Updates every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for call in self._ready_calls():
            group, steps = self.param_groups[call.group], call.steps
            lr = self._rate(group["lr"], steps[0].device)
            # a skipped step (scale not finite) does not count
            taken = 1 if grad_scale is None else torch.isfinite(grad_scale).float()
            torch._foreach_add_(steps, taken)
            _op(*call.arguments(), lr, *group["betas"], group["eps"], grad_scale)
            for copy, parameter in call.noted:
                kept.note(copy, parameter)
        return loss

    def allocate(self) -> None:
        """Makes the moments of every parameter now, 0 as at their first step: a checkpoint then
        holds all of them, and a captured step finds them where they stay."""
        for group in self.param_groups:
            for p in group["params"]:
                self._state(p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._key = None  # other moments

    def _ready_calls(self) -> list["_Call"]:
        """The calls of `adamw` that make up a step: gathered and checked when something changed, as
        which parameters have gradients or which groups share their settings; else the last step's."""
        groups, grads = self.param_groups, []
        settings = []
        for group in groups:
            grads += [p.grad is not None for p in group["params"]]
            lr = group["lr"]
            lr = id(lr) if isinstance(lr, Tensor) else lr
            settings.append((lr, tuple(group["betas"]), group["eps"]))
        key = (
            [settings.index(s) for s in settings],
            [group["weight_decay"] for group in groups],
            grads,
            len(self.state),
        )
        if key != self._key:
            self._calls = self._gather(key[0])
            self._key = (*key[:3], len(self.state))
        return self._calls

    def _gather(self, shares: list[int]) -> list["_Call"]:
        """shares: of each group, the first one with the same settings."""
        calls: dict[Any, _Call] = {}
        for first, group in zip(shares, self.param_groups):
            for p in group["params"]:
                if p.grad is None:
                    continue
                copy = self.copies.get(p)
                call = calls.setdefault((first, p.device, copy is not None), _Call(first))
                call.add(p, copy, self._state(p), group["weight_decay"])
        for call in calls.values():
            _check(*call.arguments())
        return list(calls.values())

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        elif state["step"].device != p.device:  # torch's default AdamW keeps steps on the host
            state["step"] = state["step"].to(p.device)
        return state

    def _rate(self, lr: float | Tensor, device: torch.device) -> Tensor:
        if isinstance(lr, Tensor):
            return lr.to(device, torch.float32)
        return torch.full((), lr, device=device)


def _is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor; asked for without importing torch.distributed."""
    return hasattr(tensor, "to_local")


def _check(params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays) -> None:
    lists = dict(grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps)
    lists["weight_decays"] = weight_decays
    if copies:
        lists["copies"] = copies
    for name, values in lists.items():
        if len(values) != len(params):
            raise ValueError(f"{_NAME}: {len(values)} {name} for {len(params)} params")
    for i, p in enumerate(params):
        for name in ("params", "exp_avgs", "exp_avg_sqs", "copies", "grads"):
            values = params if name == "params" else lists.get(name)
            if values is None:
                continue
            tensor = values[i]
            allowed = FLOATS if name in ("grads", "copies") else MASTERS
            if tensor.shape != p.shape:
                shapes = f"{tuple(tensor.shape)}, expected {tuple(p.shape)}"
                raise ValueError(f"{_NAME}: {name}[{i}] has shape {shapes}")
            if tensor.dtype not in allowed:
                names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
                raise ValueError(f"{_NAME}: {name}[{i}] has dtype {tensor.dtype}, expected {names}")
            if tensor.device != p.device:
                raise ValueError(f"{_NAME}: {name}[{i}] is on {tensor.device}, expected {p.device}")
            if name != "grads" and not tensor.is_contiguous():
                strides = tuple(tensor.stride())
                raise ValueError(f"{_NAME}: {name}[{i}] has strides {strides}, expected contiguous")


_BATCH = 1 << 26  # elements whose scaled gradients exist at once, in plain PyTorch


def _step_torch(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale,
):  # fmt: skip
    """torch's fused AdamW on batches of tensors with one weight decay."""
    overflow = None
    if grad_scale is not None:
        overflow = torch.logical_not(torch.isfinite(grad_scale)).float()
    for batch in _batches(params, weight_decays):
        scaled = [grads[i].to(params[i].dtype) for i in batch]
        if grad_scale is not None:
            scaled = torch._foreach_mul(scaled, grad_scale.to(scaled[0].dtype))
        first, second, counts = (
            [values[i] for i in batch] for values in (exp_avgs, exp_avg_sqs, steps)
        )
        torch._fused_adamw_(
            [params[i] for i in batch], scaled, first, second, [], counts, lr=lr, beta1=beta1,
            beta2=beta2, weight_decay=weight_decays[batch[0]], eps=eps, amsgrad=False,
            maximize=False, found_inf=overflow,
        )  # fmt: skip
    if copies:
        torch._foreach_copy_(copies, params)


def _batches(params: Sequence[Tensor], weight_decays: Sequence[float]) -> list[list[int]]:
    """Indices of tensors that share dtype and weight decay, in batches of bounded size."""
    batches: dict[Any, list[int]] = {}
    elements: dict[Any, int] = {}
    for i, p in enumerate(params):
        kind = (weight_decays[i], p.dtype)
        number = elements.get(kind, 0) // _BATCH
        batches.setdefault((*kind, number), []).append(i)
        elements[kind] = elements.get(kind, 0) + p.numel()
    return list(batches.values())


OP = define(_NAME, part="optimizer", reference=reference, plain=_step_torch)
adamw.reference = reference  # type: ignore[attr-defined]
