"""AdamW over all parameters at once, with gradient scale, fp32 masters and 16-bit copies.

    g = grad * grad_scale                            clipping and loss scaling, one device scalar
    p = p (1 - lr wd)                                Loshchilov & Hutter 2019, decoupled decay
    m = m + (1 - b1) (g - m),  v = b2 v + (1 - b2) g^2
    p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    copy = p                                         rounded to the compute dtype
    largest = max |p| of each chunk                  for 8-bit copies (`eva_fast.ops.largest`)

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
from torch.autograd.graph import increment_version

from eva_fast.ops.checks import FLOATS, check
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.largest import CHUNK, write
from eva_fast.ops.registry import define

__all__ = ["adamw"]
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
    largest: Sequence[Tensor] = (),
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
        if largest:
            write(largest[i], p)


def _adamw(
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
    largest: Sequence[Tensor],
) -> None:
    if params:
        if not all(map(Tensor.is_contiguous, grads)):
            grads = [g.contiguous() for g in grads]
        chosen(OP, params[0])(
            params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr,
            beta1, beta2, eps, grad_scale, largest,
        )  # fmt: skip


_adamw_op = torch.library.custom_op(
    "eva_fast::adamw", mutates_args=("params", "copies", "exp_avgs", "exp_avg_sqs", "largest")
)(_adamw)


@_adamw_op.register_fake
def _(*_args):
    return None


def adamw_unchecked(params, copies, grads, exp_avgs, exp_avg_sqs, *settings) -> None:
    """`adamw` without the checks: steps, weight_decays, lr, beta1, beta2, eps, grad_scale, largest
    follow."""
    if not (params and direct(params[0])):
        _adamw_op(params, copies, grads, exp_avgs, exp_avg_sqs, *settings)
        return
    _adamw(params, copies, grads, exp_avgs, exp_avg_sqs, *settings)
    increment_version([*params, *copies])  # as the dispatcher does; moments are in no graph


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
    largest: Sequence[Tensor] = (),
) -> None:
    """One AdamW step on all tensors, in place.

    params, exp_avgs, exp_avg_sqs: float32, contiguous. grads: float32, bfloat16 or float16.
    copies: tensors that receive the new parameters in their own dtype, one each or none at all.
    steps: float32 [] each, the number of this step (1 at the first), already incremented.
    weight_decays: one each. lr, grad_scale: float32 [] on the parameters' device, so that a
    captured CUDA graph sees new values; grad_scale None is 1. largest: float32 tensors that receive
    the largest magnitude of each 16384 elements of the new parameter, one each or none at all.
    Raises ValueError naming what does not fit.
    """
    check_tensors(params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, largest)
    adamw_unchecked(
        list(params), list(copies), list(grads), list(exp_avgs), list(exp_avg_sqs), list(steps),
        list(weight_decays), lr, *betas, eps, grad_scale, list(largest),
    )  # fmt: skip


def check_tensors(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, largest=()
) -> None:
    """ValueError that names what does not fit `adamw`."""
    lists = dict(grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps)
    lists["weight_decays"] = weight_decays
    if copies:
        lists["copies"] = copies
    if largest:
        lists["largest"] = largest
    for name, values in lists.items():
        if len(values) != len(params):
            raise ValueError(f"{_NAME}: {len(values)} {name} for {len(params)} params")
    for i, (p, parts) in enumerate(zip(params, largest)):
        check(
            _NAME, f"largest[{i}]", parts, shape=(-(-p.numel() // CHUNK),), dtypes=(torch.float32,),
            like=p,
        )  # fmt: skip
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
    grad_scale, largest,
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
    for parts, p in zip(largest, params):
        write(parts, p)


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
