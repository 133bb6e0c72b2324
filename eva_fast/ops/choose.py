"""Which implementation of an op runs. One answer from, strongest first,

1. the force: `set_kernels` and `force`, for a person who knows better;
2. what a run settled on (`settle`): each op timed in a real step, or what a resumed run had before;
3. a trial, where an op declares one: its candidates are raced when a shape is met first;
4. the op's order of preference: Triton on NVIDIA GPUs, C++ on CPUs, else PyTorch.

Measurements are kept on disk (`kept`) and logged with their timings. An op's body calls
`chosen(OP, tensor)(...)`, a lookup in a dictionary. An op without an implementation of the forced
family runs on PyTorch, and so does float64.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eva_fast.ops import kept, registry
from eva_fast.ops.kept import Choice
from eva_fast.ops.race import Calls, race
from eva_fast.ops.registry import FAMILIES, Case, Implementation, Obstacle, Op, Runs

log = logging.getLogger(__name__)

_mode = "auto"
_forced: dict[str, str] = {}
_settled: dict[str, str] = {}
_functions: dict[Any, Callable[..., Any]] = {}
_measured: dict[Any, Choice] = {}
_note: Callable[..., Any] | None = None


def set_kernels(mode: str = "auto", overrides: dict[str, str] | None = None) -> None:
    """Forces implementations for the whole process, and forgets what a run settled on.

    mode: "torch", "native" (C++) or "triton" force one family; "auto" none. overrides: {op: an
    implementation of it, or a family}, stronger than the mode; what holds for an op holds for its
    backward too, unless that is named. ValueError for what there is not.
    """
    global _mode
    if mode != "auto" and mode not in FAMILIES:
        raise ValueError(f"unknown kernels {mode!r}: choose from {('auto', *FAMILIES)}")
    overrides = dict(overrides or {})
    for op, name in overrides.items():
        _check(op, name)
    _mode = mode
    _forced.clear()
    _forced.update(overrides)
    _settled.clear()
    _functions.clear()
    log.info("kernels: %s%s", mode, f", except {overrides}" if overrides else "")


def force(op: str, implementation: str = "auto") -> None:
    """Forces one op, as an override of `set_kernels` would, and leaves the others as they are; "auto"
    takes that back. It outlasts what runs settle on. ValueError for what there is not."""
    if implementation == "auto":
        _forced.pop(op, None)
    else:
        _check(op, implementation)
        _forced[op] = implementation
    _functions.clear()
    log.info("kernels: %s of %s", implementation, op)


def register(
    op: str, implementation: str, function: Callable[..., Any], limits: Obstacle | None = None
) -> Callable[..., Any]:
    """Adds an implementation of an op, or replaces the one of that name. limits: why it cannot run a
    case, see `registry.Implementation`. Returns the function."""
    registry.find(op).add(implementation, function, limits=limits)
    _functions.clear()
    return function


def demanded(op: str) -> str | None:
    """The implementation or family that is forced for an op or that a run settled on, else None."""
    base = op.removesuffix("_backward")
    mode = None if _mode == "auto" else _mode
    for found in (_forced.get(op), _forced.get(base), mode, _settled.get(op), _settled.get(base)):
        if found is not None:
            return found
    return None


def implementation(op: str, device_type: str, dtype: torch.dtype | None = None) -> str:
    """What runs `op` on this device type; dtype: float32 on CPUs and bfloat16 elsewhere unless given.

    ValueError where what is forced cannot run there, and for an unknown op.
    """
    return decide(registry.find(op), _any_case(device_type, dtype)).name


def can_run(op: str, name: str, device_type: str) -> bool:
    """Whether `op` has an implementation `name`, or one of that family, that may run there unless
    something else is forced."""
    candidates = _usual(registry.find(op), _any_case(device_type, None))
    return any(name in (c.name, c.family) for c in candidates)


def chosen(
    op: Op, tensor: Tensor, sizes: tuple[int, ...] = (), name: str = "auto"
) -> Callable[..., Any]:
    """The function that runs `op` for tensors like this one.

    sizes: what the choice may depend on beside device and dtype. name: an implementation that is
    asked for in this call alone; ValueError where it cannot run.
    """
    key = (op, tensor.device, tensor.dtype, sizes, name)
    function = _functions.get(key)
    if function is None:
        function = _function(key, Case(tensor.device, tensor.dtype, sizes))
    if _note is None:
        return function
    return _note(op, Case(tensor.device, tensor.dtype, sizes), function)


def _function(key: tuple, case: Case) -> Callable[..., Any]:
    op, name = key[0], key[-1]
    if name != "auto":
        return _functions.setdefault(key, op.named(name, case).load())
    function = decide(op, case).load()
    if not _capturing(case):  # nothing could be measured now; perhaps later
        _functions[key] = function
    return function


def decide(op: Op, case: Case) -> Implementation:
    """The implementation that runs `op` for a case. ValueError where what is forced cannot."""
    among = allowed(op, case)
    if len(among) == 1:
        return among[0]
    by_name = {candidate.name: candidate for candidate in among}
    forward = op.backward_of
    if forward is not None and raced_by_shape(forward, case):
        name = decide(forward, case).name
        if name in by_name:
            return by_name[name]
    if _raced(op, case) and not _capturing(case) and not _to_be_measured(op, case):
        racing = [c.name for c in among if not c.last_resort]
        if len(racing) > 1:
            return by_name[_trial(op, case, racing).implementation]
    estimate = op.estimate(case) if op.estimate is not None else None
    return by_name.get(estimate or "", among[0])


def allowed(op: Op, case: Case) -> list[Implementation]:
    """The candidates of a case that the force leaves, in order of preference; never none."""
    wanted = demanded(op.name) if case.dtype != torch.float64 else "torch"
    if wanted is None:
        return _usual(op, case)
    if wanted in FAMILIES:
        obstacle = registry.family_obstacle(wanted, case.device.type)
        if obstacle is not None:
            raise ValueError(
                f"kernels={wanted!r} cannot run {op.name} on {case.device.type} tensors: it "
                f"{obstacle}; 'torch' and 'auto' run everywhere"
            )
    candidates = op.candidates(case)
    found = [c for c in candidates if wanted in (c.name, c.family)]
    return found or [c for c in candidates if c.family == "torch"]


def _usual(op: Op, case: Case) -> list[Implementation]:
    """All candidates, but for Triton's interpreter, which runs where it is asked for."""
    interpreted = case.device.type == "cpu"
    return [c for c in op.candidates(case) if not (interpreted and c.family == "triton")]


def _raced(op: Op, case: Case) -> bool:
    """Whether this machine measures which candidate is the fastest."""
    if op.trial is None or op.trial.device_type != case.device.type:
        return False
    if case.device.type == "cuda" and not torch.cuda.is_available():
        return False  # fake tensors
    return op.trial.once or bool(case.sizes)


def raced_by_shape(op: Op, case: Case) -> bool:
    """Whether the candidates are measured for this very shape when it is met first."""
    return op.trial is not None and not op.trial.once and _raced(op, case)


def _to_be_measured(op: Op, case: Case) -> bool:
    """Whether the step that is noted is about to be raced with this op's own arguments: the usual
    ones are not measured as well."""
    return _note is not None and not raced_by_shape(op, case)


def _capturing(case: Case) -> bool:
    """While a CUDA graph is captured nothing can be measured."""
    return (
        case.device.type == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.is_current_stream_capturing()
    )


def _trial(op: Op, case: Case, names: list[str]) -> Choice:
    """The fastest candidate for a case."""
    trial = op.trial
    assert trial is not None
    subject = {"op": op.name, "among": names}
    return measured(case.device, subject, trial.label(case), names, lambda: trial.runs(case, names))


def measured(
    device: torch.device,
    subject: dict[str, Any],
    label: str,
    names: Sequence[str],
    runs: Callable[[], Runs],
) -> Choice:
    """The fastest of `names`, measured at the first call on this machine, then read from disk.

    subject names the file, label the entry in it. runs: gives what is timed, {name: call}. The first
    name where all fail.
    """
    path = kept.file(device, subject)
    known = _measured.get((path, label))
    choice = known or (kept.read(path) or {}).get(label)
    if choice is None or choice.implementation not in names:
        with random_state_kept(device):
            timed = {name: once(run) for name, run in runs().items()}
            seconds = race(label, timed, device)
        choice = Choice(names[0])
        if seconds:
            choice = Choice.fastest(seconds)
            kept.write(path, {**(kept.read(path) or {}), label: choice})
    _measured[path, label] = choice
    if choice is not known:
        log.info("%s on %s: %s", label, device, choice)
    return choice


def raced() -> dict[str, Choice]:
    """{op and shape: choice} of what this process has raced, or read of its races on disk."""
    return {label: choice for (_, label), choice in _measured.items()}


def forget_measured() -> None:
    """Reads measurements from disk again, as another process would."""
    _measured.clear()
    _functions.clear()


def settle_on(choices: dict[str, str]) -> None:
    """Runs these {op: implementation or family} from now on, where nothing else is forced. Takes back
    a forced family, but not what is forced for single ops."""
    global _mode
    _mode = "auto"
    _settled.clear()
    _settled.update(choices)
    _functions.clear()


def forced() -> dict[str, str]:
    """What is forced for single ops."""
    return dict(_forced)


@contextlib.contextmanager
def noting(note: Callable[..., Any]) -> Iterator[None]:
    """While this is open, `note(op, case, function, *arguments)` is called in place of every op's
    function and gives its result; except for ops that are raced shape by shape."""
    global _note

    def wrap(op: Op, case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
        if raced_by_shape(op.backward_of or op, case):
            return function
        return functools.partial(note, op, case, function)

    _note = wrap
    try:
        yield
    finally:
        _note = None


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """What is measured inside draws no random numbers from the run."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def once(run: Callable[[], Any]) -> Calls:
    """A turn of a race that is one call."""
    return lambda: [(1, run)]


def _any_case(device_type: str, dtype: torch.dtype | None) -> Case:
    usual = torch.float32 if device_type == "cpu" else torch.bfloat16
    return Case(torch.device(device_type), dtype or usual)


def _check(op: str, name: str) -> None:
    known = registry.find(op).implementations
    if name not in known and name not in FAMILIES:
        choices = tuple(dict.fromkeys((*FAMILIES, *known)))
        raise ValueError(f"unknown kernels {name!r} for {op}: choose from {choices}")
