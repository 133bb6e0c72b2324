"""Compares, times and weighs the variants of a subject, all from one set-up.

Timing: the variants take turns, so that whatever else the machine does hits all of them; a round
gives one sample of each, and the ratio of a variant to a baseline is taken within rounds: median
and quartiles. First calls (compilation included) are recorded apart. On GPUs a sample is the device's
time with launches hidden, after the L2 cache was overwritten; wall and host time are given beside it.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.clock import DeviceClock, sample
from eva_fast.planning.counter import Recorder

MODES = ("forward", "backward", "both")
REFERENCE, TUNED, OURS = "reference", "tuned", "eva_fast"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the work: `call` is timed, `values` gives what it computes for comparison."""

    call: Callable[[], Any]
    values: Callable[[], Sequence[Tensor]] | None = None


@dataclass(kw_only=True, slots=True)
class Case:
    """A subject in one mode at one shape, ready to run."""

    subject: str
    mode: str
    shape: str
    device: str
    variants: dict[str, Variant]
    """By name; "reference" is the baseline and must be there, "tuned" is the second one."""
    missing: dict[str, str] = field(default_factory=dict)
    """Variants that cannot run here, and why."""
    tolerance: float = 1e-4
    """Largest relative L2 difference from the reference."""
    batch: int | None = None
    """Images a call, where that makes sense."""
    warm: bool = True
    """False where a call is a process of its own: nothing to warm up, two rounds."""
    weigh: bool = True
    """False where the memory is another process's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How long to measure."""

    seconds: float = 2.0
    """Rough budget of a case's timed rounds."""
    rounds: int = 30
    """Most rounds."""
    least_rounds: int = 5
    sample_seconds: float = 2e-3
    """A sample repeats the call until it is about this long."""
    processor: bool = False
    """On a CPU, count the seconds that the process had it: on a machine that others load too."""


class Disagreement(AssertionError):
    """Variants of a subject computed different numbers."""


def check_agreement(case: Case) -> None:
    """Compares every variant's values with the reference's. Disagreement names the variant, which
    value, and by how much."""
    if case.variants[REFERENCE].values is None:
        return
    expected = [t.detach().double().cpu() for t in case.variants[REFERENCE].values()]
    for name, variant in case.variants.items():
        if name == REFERENCE or variant.values is None:
            continue
        found = [t.detach().double().cpu() for t in variant.values()]
        if len(found) != len(expected):
            raise Disagreement(
                f"{case.subject}: {name} gives {len(found)} values, reference {len(expected)}"
            )
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a.shape != b.shape:
                raise Disagreement(
                    f"{case.subject} {case.mode}: value {i} of {name} has shape "
                    f"{tuple(a.shape)}, the reference {tuple(b.shape)}"
                )
            error = ((a - b).norm() / b.norm().clamp_min(1e-30)).item() if b.numel() else 0.0
            if not error <= case.tolerance:
                raise Disagreement(
                    f"{case.subject} {case.mode}: value {i} of {name} differs from the reference "
                    f"by {error:.2e} (relative L2), more than {case.tolerance:.0e}"
                )


def _first_call(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"p20": at(0.2), "p50": statistics.median(ordered), "p80": at(0.8)}


def _ratio(own: list[float], base: list[float]) -> dict[str, float]:
    """Speed-up over the baseline: its time over ours, round by round."""
    pairs = [b / a for a, b in zip(own, base, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def time_case(case: Case, settings: Settings) -> dict[str, dict]:
    """Samples of every variant in turns: {variant: seconds, rounds, speed-ups over baselines}."""
    clock = DeviceClock(case.device, settings.processor)
    first: dict[str, float | None] = dict.fromkeys(case.variants)
    repeats = dict.fromkeys(case.variants, 1)
    if not case.warm:
        settings = replace(settings, rounds=2, least_rounds=2)
    for name, variant in case.variants.items():
        if not case.warm:
            break
        first[name] = _first_call(variant.call, case.device)
        once = clock(variant.call, 1)
        if once < 0.3:
            once = clock(variant.call, 1)
        repeats[name] = max(1, min(1000, math.ceil(settings.sample_seconds / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in case.variants}
    names, end = list(case.variants), time.perf_counter() + settings.seconds
    gc.collect()
    gc.disable()
    try:
        for number in range(settings.rounds):
            if number >= settings.least_rounds and time.perf_counter() > end:
                break
            for name in names[number % len(names) :] + names[: number % len(names)]:
                samples[name].append(clock(case.variants[name].call, repeats[name]))
    finally:
        gc.enable()
    return {
        name: {
            "seconds": _quantiles(taken),
            "rounds": len(taken),
            "first_call_seconds": first[name],
            "speedup": {
                base: _ratio(taken, samples[base])
                for base in (REFERENCE, TUNED)
                if base in samples and base != name
            },
        }
        for name, taken in samples.items()
    }


def _wall(call: Callable[[], Any], device_seconds: float) -> dict[str, float]:
    """What the device's time leaves out: calls one by one from an idle device to an idle device, and
    the host's part of that."""
    repeats = max(1, min(50, int(0.02 / max(device_seconds, 1e-6))))
    found = [sample(call, torch.device("cuda"), repeats) for _ in range(5)]
    return {
        f"{clock}_seconds": statistics.median(getattr(s, clock) for s in found)
        for clock in ("wall", "host")
    }


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """Bytes of tensors that a call needs at its peak, beyond those there before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resident = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - resident
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        call()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [e for e in results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def count(call: Callable[[], Any]) -> tuple[int, int]:
    """(FLOPs, bytes) of one call: matrix products by formula and one FLOP for each element that any
    other operator writes; bytes as in `eva_fast.planning.counter`."""
    with Recorder() as recorder:
        call()
    flops = sum(op.flops or op.elements for op in recorder.operators)
    return flops, sum(op.bytes for op in recorder.operators)


def measure(case: Case, settings: Settings) -> dict:
    """Checks agreement, then times and weighs every variant: one entry of a results file."""
    check_agreement(case)
    timed = time_case(case, settings)
    flops = None
    for name in (REFERENCE, TUNED, OURS):
        if case.weigh and name in case.variants:
            counted, timed[name]["touched_bytes"] = count(case.variants[name].call)
            flops = counted if name == REFERENCE else flops
    for name, variant in case.variants.items():
        weight = peak_memory(variant.call, case.device) if case.weigh else None
        timed[name]["peak_bytes"] = weight
        if case.device == "cuda" and case.warm:
            timed[name] |= _wall(variant.call, timed[name]["seconds"]["p50"])
        if case.batch:
            timed[name]["images_per_second"] = case.batch / timed[name]["seconds"]["p50"]
    return {
        "kind": "measured",
        "subject": case.subject,
        "mode": case.mode,
        "shape": case.shape,
        "batch": case.batch,
        "flops": flops,
        "baseline": REFERENCE,
        "variants": timed,
        "missing": case.missing,
    }


def differentiable(
    subject: str,
    mode: str,
    shape: str,
    device: str,
    functions: dict[str, Callable[..., Tensor | Sequence[Tensor]]],
    inputs: Sequence[Any],
    *,
    tolerance: float = 1e-4,
    parameters: dict[str, Sequence[Tensor]] | None = None,
    missing: dict[str, str] | None = None,
    batch: int | None = None,
) -> Case:
    """A case of functions of the same inputs, each returning a tensor or several. Those inputs that
    require a gradient get one, and so do each function's own `parameters`, in the same order for
    all; upstream gradients are random and the same for all.

    forward runs the function as in training (autograd on), backward repeats the backward pass of
    one forward, both is the two together."""
    leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]

    def variant(name: str, function: Callable[..., Any]) -> Variant:
        wanted = [*leaves, *(parameters or {}).get(name, ())]

        def outputs() -> list[Tensor]:
            out = function(*inputs)
            return [out] if isinstance(out, Tensor) else list(out)

        def upstream(outs: list[Tensor]) -> list[Tensor]:
            generator = torch.Generator().manual_seed(3)
            return [torch.randn(o.shape, generator=generator).to(o) for o in outs]

        def gradients(outs: list[Tensor], grads: list[Tensor], keep: bool) -> list[Tensor]:
            return list(torch.autograd.grad(outs, wanted, grads, retain_graph=keep))

        if mode == "forward":
            return Variant(outputs, outputs)
        grads = upstream(outputs())
        if mode == "backward":
            once = outputs()

            def call() -> list[Tensor]:
                return gradients(once, grads, True)

            return Variant(call, call)

        def both() -> list[Tensor]:
            outs = outputs()
            return [*outs, *gradients(outs, grads, False)]

        return Variant(both, both)

    return Case(
        subject=subject,
        mode=mode,
        shape=shape,
        device=device,
        variants={name: variant(name, f) for name, f in functions.items()},
        missing=missing or {},
        tolerance=tolerance,
        batch=batch,
    )
