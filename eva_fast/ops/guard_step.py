"""Whether a training step counts, the factor of its gradients, and what is kept of both, in one pass.

    finite  = loss and norm are finite
    spike   = finite, after `spike_steps` applied steps: loss >= mean + limit deviation
              deviation = sqrt(square - mean^2 + (mean / 1000)^2)
    applied = finite and no spike
    factor  = min(clip / (norm + 1e-6), 1) / loss scale        where applied, else NaN

then, of an applied step, with w = 1 / min(n, spike_steps) at the n-th of them,

    mean <- mean + w (loss - mean),  square <- square + w (loss^2 - square)

and the counters. With `growth_steps` the loss scale halves where a step is not finite and doubles after
that many finite ones (Micikevicius et al. 2018, Mixed Precision Training), from 1 to 2^24. The clipping
is that of torch.nn.utils.clip_grad_norm_. Nothing is read on the host: NaN skips the step of `adamw`.

    state:  float32 [5], skipped steps, present streak, longest streak, loss scale, finite steps since it
            last changed
    spikes: float64 [7], applied steps, number of spikes, mean of the loss and of its square; of the last
            spike its loss, and both means then

An implementation gets the custom op's arguments; state and spikes are contiguous.
"""

import math

import torch
from torch import Tensor

from eva_fast.ops.checks import check
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["guard_step"]
_NAME = "guard_step"
LEAST_DEVIATION = 1e-3
"""Of the mean: for losses that stand still."""
LARGEST_SCALE = 2.0**24
_VALUES = (torch.float32, torch.float64)


def reference(
    loss: Tensor,
    norm: Tensor,
    state: Tensor,
    clip: float = 0.0,
    growth_steps: int = 0,
    spikes: Tensor | None = None,
    limit: float = 0.0,
    spike_steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """`guard_step` in plain PyTorch, in place as well."""
    # x - x is 0 of what is finite, else NaN, which equals nothing
    applied = finite = (loss - loss) == (norm - norm)
    if spikes is not None:
        spike = _among(loss, spikes, limit, spike_steps) & finite
        applied = finite > spike
        _take(loss, spikes, spike, applied, spike_steps)
    scale = 1 / state[3]
    if clip > 0:
        scale = scale * (clip / (norm + 1e-6)).clamp_max(1.0)
    factor = torch.where(applied, scale, math.nan).to(norm.dtype)
    _count(state, (~applied).float(), (~finite).float(), growth_steps)
    return applied, factor


def _among(loss: Tensor, spikes: Tensor, limit: float, spike_steps: int) -> Tensor:
    """Whether a loss is a spike, as long as it is finite."""
    steps, _, mean, square, *_ = spikes.unbind()
    deviation = torch.addcmul(square, mean, mean, value=LEAST_DEVIATION**2 - 1).sqrt_()
    return (loss >= deviation.mul_(limit).add_(mean)) & (steps >= spike_steps)


def _take(loss: Tensor, spikes: Tensor, spike: Tensor, applied: Tensor, spike_steps: int) -> None:
    """Counts a spike, or takes the loss of an applied step into the statistic."""
    loss, (steps, number), means, last = loss.double(), spikes[:2].unbind(), spikes[2:4], spikes[4:]
    torch.where(spike, torch.cat([loss[None], means]), last, out=last)
    number += spike
    weight = (steps + 1).clamp_(max=spike_steps).reciprocal_()
    means.lerp_(torch.where(applied, torch.stack([loss, loss * loss]), means), weight)
    steps += applied


def _count(state: Tensor, missed: Tensor, bad: Tensor, growth_steps: int) -> None:
    skipped, streak, longest, scale, steady = state.unbind()
    streak = (streak + 1) * missed
    if growth_steps:
        steady = (steady + 1) * (1 - bad)
        grow = (steady >= growth_steps).float()
        scale = (scale * (1 - 0.5 * bad) * (1 + grow)).clamp(1.0, LARGEST_SCALE)
        steady = steady * (1 - grow)
    longest = torch.maximum(longest, streak)
    state.copy_(torch.stack([skipped + missed, streak, longest, scale, steady]))


def _step(
    loss: Tensor,
    norm: Tensor,
    state: Tensor,
    clip: float,
    growth_steps: int,
    spikes: Tensor | None,
    limit: float,
    spike_steps: int,
) -> tuple[Tensor, Tensor]:
    return chosen(OP, loss)(loss, norm, state, clip, growth_steps, spikes, limit, spike_steps)


_step_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=("state", "spikes"))(_step)


@_step_op.register_fake
def _(loss, norm, *_args):
    return torch.empty_like(loss, dtype=torch.bool), torch.empty_like(norm)


def guard_unchecked(loss, norm, *rest) -> tuple[Tensor, Tensor]:
    """`guard_step` without the checks and with all its arguments."""
    return (_step if direct(loss) else _step_op)(loss, norm, *rest)


def guard_step(
    loss: Tensor,
    norm: Tensor,
    state: Tensor,
    clip: float = 0.0,
    growth_steps: int = 0,
    spikes: Tensor | None = None,
    limit: float = 0.0,
    spike_steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """(applied, factor): whether the step counts, bool [], and the factor of its gradients, [] in norm's
    dtype, NaN where it does not.

    loss: [], float32 (float64 in plain PyTorch). norm: [], float32 or float64, of the gradients without
    loss scale. state: float32 [5] and spikes: float64 [7] or None, for no limit, are changed in place.
    clip: largest norm, 0 for any. growth_steps: 0 where the loss is not scaled. limit, spike_steps: of
    `spikes`. Not differentiable. ValueError naming what does not fit.
    """
    check(_NAME, "loss", loss, shape=(), dtypes=_VALUES)
    check(_NAME, "norm", norm, shape=(), dtypes=_VALUES, like=loss)
    check(_NAME, "state", state, shape=(5,), dtypes=(torch.float32,), like=loss)
    if spikes is not None:
        check(_NAME, "spikes", spikes, shape=(7,), dtypes=(torch.float64,), like=loss)
        if spike_steps < 1:
            raise ValueError(f"{_NAME}: spike_steps is {spike_steps}, expected at least 1")
    return guard_unchecked(
        loss.detach(), norm.detach(), state, clip, growth_steps, spikes, limit, spike_steps
    )


OP = define(_NAME, part="optimizer", reference=reference, plain=reference)
guard_step.reference = reference  # type: ignore[attr-defined]
