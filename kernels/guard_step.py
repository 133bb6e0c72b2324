"""Triton kernel of `guard_step`: see eva_fast/ops/guard_step.py for the maths."""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, plan, planned, triton_op
from eva_fast.ops.guard_step import LARGEST_SCALE, LEAST_DEVIATION

WARPS = 1
"""All threads have read a number before one of them writes it, which warps would not wait for."""


@triton.jit
def judge(p_spikes, loss, finite, LIMIT: tl.constexpr, STEPS: tl.constexpr, OWN: tl.constexpr):
    """Whether the step is applied; keeps what it was. OWN: of mean^2 in the variance."""
    steps, number = tl.load(p_spikes), tl.load(p_spikes + 1)
    mean, square = tl.load(p_spikes + 2), tl.load(p_spikes + 3)
    limit = tl.sqrt(square + mean * OWN * mean) * LIMIT + mean
    spike = finite & (loss >= limit) & (steps >= STEPS)
    applied = finite & (spike == 0)
    tl.store(p_spikes + 1, number + 1.0, mask=spike)
    tl.store(p_spikes + 4, loss, mask=spike)
    tl.store(p_spikes + 5, mean, mask=spike)
    tl.store(p_spikes + 6, square, mask=spike)
    weight = 1.0 / tl.minimum(steps + 1.0, STEPS)
    tl.store(p_spikes, steps + 1.0, mask=applied)
    tl.store(p_spikes + 2, towards(mean, loss, weight), mask=applied)
    tl.store(p_spikes + 3, towards(square, loss * loss, weight), mask=applied)
    return applied


@triton.jit
def towards(start, end, weight):
    """As torch.lerp rounds."""
    way = end - start
    return tl.where(weight < 0.5, start + weight * way, end - way * (1.0 - weight))


@kernel
@triton.jit
def guard_step_kernel(
    p_loss, p_norm, p_state, p_spikes, p_applied, p_factor,
    CLIP: tl.constexpr, GROWTH_STEPS: tl.constexpr, LIMIT: tl.constexpr, SPIKE_STEPS: tl.constexpr,
    OWN: tl.constexpr, LARGEST_SCALE: tl.constexpr,
):  # fmt: skip
    """One program of one warp."""
    loss, norm = tl.load(p_loss), tl.load(p_norm).to(tl.float32)
    finite = (tl.abs(loss) < float("inf")) & (tl.abs(norm) < float("inf"))
    applied = finite
    if p_spikes is not None:
        applied = judge(p_spikes, loss.to(tl.float64), finite, LIMIT, SPIKE_STEPS, OWN)
    scale = tl.load(p_state + 3)
    factor = tl.div_rn(1.0, scale)
    if CLIP > 0:
        factor *= tl.minimum(tl.div_rn(1.0, norm + 1e-6) * CLIP, 1.0)
    tl.store(p_factor, tl.where(applied, factor, float("nan")))
    tl.store(p_applied, applied)
    streak = tl.where(applied, 0.0, tl.load(p_state + 1) + 1.0)
    longest = tl.maximum(tl.load(p_state + 2), streak)
    tl.store(p_state, tl.load(p_state) + 1.0, mask=applied == 0)
    tl.store(p_state + 1, streak)
    tl.store(p_state + 2, longest)
    if GROWTH_STEPS > 0:
        steady = tl.where(finite, tl.load(p_state + 4) + 1.0, 0.0)
        grow = steady >= GROWTH_STEPS
        scale = tl.where(finite, scale, scale * 0.5) * tl.where(grow, 2.0, 1.0)
        tl.store(p_state + 3, tl.minimum(tl.maximum(scale, 1.0), LARGEST_SCALE))
        tl.store(p_state + 4, tl.where(grow, 0.0, steady))


def constants(clip: float, growth_steps: int, limit: float, spike_steps: int) -> dict[str, float]:
    """What a run's steps have in common."""
    kept = {"CLIP": clip, "GROWTH_STEPS": growth_steps, "LIMIT": limit, "SPIKE_STEPS": spike_steps}
    return kept | {"OWN": LEAST_DEVIATION**2 - 1, "LARGEST_SCALE": LARGEST_SCALE}


@triton_op("guard_step")
def _step(loss, norm, state, clip, growth_steps, spikes, limit, spike_steps):
    applied, factor = torch.empty_like(loss, dtype=torch.bool), torch.empty_like(norm)
    _plan(clip, growth_steps, limit, spike_steps)(loss, norm, state, spikes, applied, factor)
    return applied, factor


@planned
def _plan(*settings):
    return plan(guard_step_kernel, (1,), **constants(*settings), num_warps=WARPS)


def aot_cases(shape: AotShape) -> list[AotCase]:
    """With a limit for spikes, and in fp16, whose loss is scaled, without."""
    pointers = {f"p_{name}": "*fp32" for name in ("loss", "norm", "state", "factor")}
    pointers |= {"p_applied": "*i1"}
    return [
        AotCase(
            guard_step_kernel,
            pointers | {"p_spikes": "*fp64"},
            constants(3.0, 0, 7.0, 128),
            num_warps=WARPS,
            small_tiles=True,  # numbers
            label="spikes",
        ),
        AotCase(
            guard_step_kernel,
            pointers,
            {"p_spikes": None, **constants(3.0, 2000, 0.0, 128)},
            num_warps=WARPS,
            small_tiles=True,
            label="scaled loss",
        ),
    ]
