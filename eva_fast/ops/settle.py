"""`kernels="auto"`: every op is timed once for the run's real shapes, and the faster one runs.

One real training step is run while the arguments of every op are noted; then each op is replayed by
its candidates in turn, and the smaller median wins. The choice is kept on disk for this device,
shape and versions, so that the next start costs nothing, and is logged with its timings.
"""

import functools
import logging
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from eva_fast.ops import choose, kept, registry
from eva_fast.ops.kept import Choice, Choices
from eva_fast.ops.race import Calls, race
from eva_fast.ops.registry import FAMILIES, Case, Op, Runs

log = logging.getLogger(__name__)
SAMPLE_BYTES = 1 << 30
"""An op over lists of tensors, as the optimiser's over all parameters, is raced on a sample of them of
about this size: the race copies its arguments."""
_settled: Choices = {}
_resumed = False


def settle(
    step: Callable[[], Any],
    device: torch.device,
    subject: dict[str, Any],
    parts: dict[str, Runs] | None = None,
) -> Choices:
    """Times every op that `step` runs, with its real arguments, and runs the fastest from now on.

    Args:
        step: one training step that leaves no trace: forward, backward, a step of no length.
        device: where it runs.
        subject: names the shapes; the same values take the choice that is kept on disk.
        parts: {op: {implementation or family: forward and backward}} of ops that replace a part of
            the step, which the step itself does not run.

    Returns {op: choice}. Ops that are forced stay as they are, and those that are raced shape by
    shape wherever they meet one are left to that. The random state is left as it was.
    """
    choose.settle_on({})
    path = kept.file(device, {**subject, "forced": choose.forced()})
    choices = kept.read(path)
    if choices is None or not all(_exists(op, c.implementation) for op, c in choices.items()):
        log.info(
            "measuring which kernels are the fastest for this run, once for this machine%s ...",
            "; Triton compiles its own first, which takes a while" if device.type == "cuda" else "",
        )
        with choose.random_state_kept(device):
            choices = {op: _race_calls(op, calls) for op, calls in sorted(_calls_of(step).items())}
            for name, runs in (parts or {}).items():
                found = race(name, {n: choose.once(run) for n, run in runs.items()}, device)
                if found:
                    choices[name] = Choice.fastest(found)
        kept.write(path, choices)
        log.info("kernels measured, kept in %s", path)
        for op, choice in choices.items():
            log.info("  %-28s %s", op, choice)
    else:
        log.info("kernels as measured before (%s): %s", path, _by_implementation(choices))
        if any(choice.implementation == "triton" for choice in choices.values()):
            log.info("the first step compiles Triton kernels that Triton has not kept ...")
    choose.settle_on({op: choice.implementation for op, choice in choices.items()})
    _remember(choices, resumed=False)
    return choices


def take_over(before: dict[str, str], device_type: str) -> None:
    """Settles on {op: implementation or family} of the run that is resumed, as far as this machine
    has it: another implementation may round otherwise, and the run would not end as it would have."""
    found = {
        op: name
        for op, name in before.items()
        if registry.known(op) and choose.can_run(op, name, device_type)
    }
    choose.settle_on(found)
    _remember({op: Choice(name) for op, name in found.items()}, resumed=True)
    log.info("kernels as before the interruption: %s", found)
    lost = {op: name for op, name in before.items() if op not in found}
    if lost:
        log.warning("kernels of before that cannot run here, others round otherwise: %s", lost)


def record() -> dict[str, dict[str, Any]]:
    """What a run writes down of its kernels under `kernels="auto"`: {op, or op and shape:
    {"implementation", "why", "milliseconds": {candidate: median}}}. "why" is measured, forced, alone
    (nothing else can run it there) or resumed (as before an interruption)."""
    found = {}
    forced = choose.forced()
    for op, choice in {**_settled, **choose.raced()}.items():
        why = "measured" if len(choice.milliseconds) > 1 else "alone"
        if op in forced or op.removesuffix("_backward") in forced:
            why = "forced"
        elif _resumed and op in _settled:
            why = "resumed"
        found[op] = {
            "implementation": choice.implementation,
            "why": why,
            "milliseconds": {name: round(ms, 4) for name, ms in choice.milliseconds.items()},
        }
    return found


def _remember(choices: Choices, resumed: bool) -> None:
    global _settled, _resumed
    _settled, _resumed = choices, resumed


class _Call:
    """Arguments of an op's first call of a kind, and how many of such calls a step is worth."""

    def __init__(self, op: Op, case: Case, arguments: tuple):
        arguments, self.share = _sample(arguments)
        # a view of the same storage keeps the strides; the race works on copies
        self.arguments = pytree.tree_map_only(Tensor, Tensor.detach, arguments)
        self.op, self.case, self.calls = op, case, 1

    @property
    def count(self) -> float:
        """Calls a step, in calls with these arguments."""
        return self.calls / self.share

    def run(self, name: str) -> Callable[[], Any]:
        """The call by one implementation, on copies of the arguments; by PyTorch's where that one
        cannot run it."""
        op, case = self.op, self.case
        chosen_one = op.implementations[name]
        if chosen_one.obstacle(case) is not None:
            chosen_one = next(c for c in op.candidates(case) if c.family == "torch")
        arguments = pytree.tree_map_only(Tensor, _copy, self.arguments)
        return functools.partial(chosen_one.load(), *arguments)


def _calls_of(step: Callable[[], Any]) -> dict[str, list[_Call]]:
    """{op: calls} of everything `step` runs that is not raced by shape."""
    calls: dict[str, dict[str, _Call]] = {}

    def note(op: Op, case: Case, function: Callable[..., Any], *arguments: Any) -> Any:
        shapes = pytree.tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), arguments)
        seen = calls.setdefault(op.name, {})
        if str(shapes) in seen:
            seen[str(shapes)].calls += 1
        else:
            seen[str(shapes)] = _Call(op, case, arguments)
        return function(*arguments)

    with choose.noting(note):
        step()
    return {op: list(kinds.values()) for op, kinds in calls.items()}


def _race_calls(name: str, calls: list[_Call]) -> Choice:
    """Races one op over its calls of a step."""
    op, device = calls[0].op, calls[0].case.device
    names: dict[str, None] = {}
    for call in calls:
        names.update({c.name: None for c in choose.allowed(op, call.case) if not c.last_resort})

    def turn(candidate: str) -> Calls:
        return lambda: ((call.count, call.run(candidate)) for call in calls)

    seconds = race(name, {n: turn(n) for n in names}, device)
    return Choice.fastest(seconds) if seconds else Choice(choose.decide(op, calls[0].case).name)


def _sample(arguments: tuple) -> tuple[tuple, float]:
    """The arguments with some of the tensors of their lists, and which share of the bytes that is. All
    lists of the longest one's length keep the same places, drawn so that every kind has its part."""
    length = max((len(a) for a in arguments if isinstance(a, (list, tuple))), default=0)
    lists = [a for a in arguments if isinstance(a, (list, tuple)) and len(a) == length]
    sizes = [sum(t.nbytes for t in row if isinstance(t, Tensor)) for row in zip(*lists)]
    total = sum(sizes)
    if total <= SAMPLE_BYTES:
        return arguments, 1.0
    places, taken = list(range(length)), 0
    kept: list[int] = []
    random.Random(0).shuffle(places)
    for place in places:
        if not kept or taken + sizes[place] <= SAMPLE_BYTES:
            kept.append(place)
            taken += sizes[place]
    kept.sort()
    return tuple(
        [a[i] for i in kept] if isinstance(a, (list, tuple)) and len(a) == length else a
        for a in arguments
    ), taken / total


def _copy(tensor: Tensor) -> Tensor:
    """The same values and strides in new memory: an op may write to its arguments."""
    once = tensor
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:  # expanded: these elements are one
            once = once.narrow(dim, 0, 1)
    copy = torch.empty_strided(once.shape, once.stride(), dtype=once.dtype, device=once.device)
    return copy.copy_(once).expand(tensor.shape)


def _by_implementation(choices: Choices) -> str:
    """In one line, since the timings were told when they were made."""
    found: dict[str, list[str]] = {}
    for op, choice in choices.items():
        found.setdefault(choice.implementation, []).append(op)
    return "; ".join(f"{name} for {', '.join(ops)}" for name, ops in found.items())


def _exists(op: str, name: str) -> bool:
    return registry.known(op) and (name in FAMILIES or name in registry.find(op).implementations)
