"""What the ops are. Each declares itself here once, and everything that lists ops reads it from here:
the choice of what runs (`choose`), `eva-fast doctor`, the benchmarks, the counted step.

    OP = define("bias_gelu", part="gelu", reference=reference, plain=_forward_torch)
    BACKWARD = define("bias_gelu_backward", part="gelu", kernels=2, plain=_backward_torch,
                      backward_of=OP)

An op has several *implementations*, known by name. Those of one name with a *family*, "torch",
"native" (C++) or "triton", are found by the op's name: `eva_fast.ops.native.NAME` and
`eva_fast.kernels.NAME` are imported when first needed and announce themselves with `Op.add`. Others
(the libraries of attention, an op of somebody else's package) are added where they are at home.
Each says itself why it cannot run a *case*: a device, a dtype, sizes. Those that can are the
*candidates*, in order of preference.

A backward is an op of its own, since another implementation may be the faster one there.
"""

import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from eva_fast import native
from eva_fast.ops.unguarded import leave_compiler_out

FAMILIES = ("torch", "native", "triton")
_HOMES = {"native": "eva_fast.ops.native", "triton": "eva_fast.kernels"}
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a call before it runs."""

    device: torch.device
    dtype: torch.dtype
    sizes: tuple[int, ...] = ()
    """The sizes that a choice of this op may depend on; empty where it does not, or for any."""


Obstacle = Callable[[Case], str | None]
Runs = dict[str, Callable[[], Any]]


@dataclass(slots=True)
class Implementation:
    """One way to compute an op."""

    name: str
    family: str
    """One of `FAMILIES`, or "library" for what comes from a package beside PyTorch."""
    function: Callable[..., Any] | None = None
    """None until the module `home` has been imported."""
    home: str | None = None
    limits: Obstacle | None = None
    """Why it cannot run a case, beyond what holds for its family; None where it can. The words go on
    from "it": "takes float32"."""
    last_resort: bool = False
    """Right everywhere and never fast: runs where nothing else does, and is not worth a race."""

    def obstacle(self, case: Case) -> str | None:
        """None where it runs, else why not."""
        found = family_obstacle(self.family, case.device.type)
        if found is None and self.family in _HOMES and case.dtype not in _KERNEL_DTYPES:
            found = "takes float32, bfloat16 and float16"
        if found is None and not self._loaded():
            found = f"has no function in {self.home}"
        if found is None and self.limits is not None:
            found = self.limits(case)
        return found

    def load(self) -> Callable[..., Any]:
        """The function; RuntimeError where its home does not bring it."""
        if not self._loaded():
            raise RuntimeError(f"{self.home} brings no implementation {self.name!r}")
        assert self.function is not None
        return self.function

    def _loaded(self) -> bool:
        if self.function is None and self.home is not None:
            importlib.import_module(self.home)
        return self.function is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How the candidates of an op are raced when a call first meets a shape."""

    device_type: str
    """Where; elsewhere the first candidate runs."""
    label: Callable[[Case], str]
    """Says what was measured; cases with the same label share the answer."""
    runs: Callable[[Case, Sequence[str]], Runs]
    """{candidate: what is timed} for these candidates."""
    once: bool = False
    """One answer for the machine, which a run's own measurement replaces; else one for each label,
    which stays."""


@dataclass(eq=False, kw_only=True, slots=True)
class Op:
    """One op: see `define` for the fields."""

    name: str
    part: str
    reference: Callable[..., Any] | None
    flops: Callable[..., int] | None
    again: Callable[..., int] | None
    kernels: int
    operator: str
    backward_of: "Op | None"
    trial: Trial | None
    estimate: Callable[[Case], str] | None
    backward: "Op | None" = None
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def add(
        self,
        name: str,
        function: Callable[..., Any] | None = None,
        *,
        family: str | None = None,
        home: str | None = None,
        limits: Obstacle | None = None,
        last_resort: bool = False,
    ) -> None:
        """Adds an implementation, or gives one that is there its function.

        family: `name` where that is one, else "library". home: the module that, when imported, adds
        the function. What is added after the plain implementation comes before it.
        """
        known = self.implementations.get(name)
        if known is not None:
            known.function = function
            known.limits = limits or known.limits
            return
        family = family or (name if name in FAMILIES else "library")
        new = Implementation(name, family, function, home, limits, last_resort)
        plain = self.implementations.pop("torch", None)
        self.implementations[name] = new
        if plain is not None:
            self.implementations["torch"] = plain

    def prefer(self, *names: str) -> None:
        """Puts the implementations in this order of preference."""
        rest = {n: i for n, i in self.implementations.items() if n not in names}
        self.implementations = {n: self.implementations[n] for n in names} | rest

    def function(self, name: str) -> Callable[..., Any]:
        """The implementation `name`; KeyError where there is none."""
        return self.implementations[name].load()

    def obstacles(self, case: Case) -> dict[str, str | None]:
        """{implementation: None where it runs, else why not}, in order of preference."""
        return {name: i.obstacle(case) for name, i in self.implementations.items()}

    def candidates(self, case: Case) -> list[Implementation]:
        """The implementations that can run, in order of preference."""
        return [i for i in self.implementations.values() if i.obstacle(case) is None]

    def named(self, name: str, case: Case) -> Implementation:
        """The implementation `name`; ValueError where it is unknown or cannot run the case."""
        if name not in self.implementations:
            known = ", ".join(self.implementations)
            raise ValueError(
                f"{self.name}: unknown implementation {name!r}: choose from auto, {known}"
            )
        found = self.implementations[name]
        obstacle = found.obstacle(case)
        if obstacle is not None:
            sizes = f" of sizes {tuple(case.sizes)}" if case.sizes else ""
            raise ValueError(
                f"{self.name}: implementation {name!r} cannot run {case.dtype}{sizes} on "
                f"{case.device}: it {obstacle}"
            )
        return found


_ops: dict[str, Op] = {}
_by_operator: dict[str, Op] = {}


def define(
    name: str,
    *,
    part: str,
    reference: Callable[..., Any] | None = None,
    plain: Callable[..., Any] | None = None,
    flops: Callable[..., int] | None = None,
    again: Callable[..., int] | None = None,
    kernels: int = 1,
    operator: str | None = None,
    backward_of: Op | None = None,
    trial: Trial | None = None,
    estimate: Callable[[Case], str] | None = None,
    families: Sequence[str] = tuple(_HOMES),
) -> Op:
    """Declares an op.

    Args:
        name: as its modules are called; a backward's is that of the forward and "_backward".
        part: the share of a training step it belongs to, one of `eva_fast.planning.formulas.PARTS`.
        reference: the op in plain, differentiable PyTorch.
        plain: the implementation named "torch", which runs where no other does.
        flops: floating-point operations of a call, from the operator's arguments (tensors, meta
            tensors too): two for each multiply-add of a matrix product. None: nothing counts.
        again: bytes that a call reads a second time, from the operator's arguments.
        kernels: device kernels that a GPU runs it as.
        operator: its name with torch's dispatcher, "eva_fast::NAME" unless given.
        backward_of: the op whose gradients this one computes; what is chosen for that one holds for
            this one too, unless this one is named itself.
        trial: how its candidates are raced at the first call of a shape.
        estimate: the candidate to take where nothing was measured; the first one unless given.
        families: those whose implementation is found by the op's name.

    ValueError if there is an op of that name.
    """
    if name in _ops:
        raise ValueError(f"there is an op {name!r} already")
    op = Op(
        name=name, part=part, reference=reference, flops=flops, again=again, kernels=kernels,
        operator=operator or f"eva_fast::{name}", backward_of=backward_of, trial=trial,
        estimate=estimate,
    )  # fmt: skip
    base = name if backward_of is None else backward_of.name
    for family in families:
        package = _HOMES[family]
        module = name if name in _modules(package) else base
        if module in _modules(package):
            op.add(family, home=f"{package}.{module}")
    if plain is not None:
        op.add("torch", plain)
    if backward_of is not None:
        backward_of.backward = op
    if flops is not None:
        counted = _packet(op)

        def formula(*arguments, out_val=None, **options) -> int:
            return flops(*arguments, **options)

        register_flop_formula(counted, get_raw=True)(formula)
    leave_compiler_out(op.operator)
    _ops[name] = _by_operator[op.operator] = op
    return op


def forget(op: Op) -> None:
    """Undoes `define`, for an op that came from outside the package."""
    del _ops[op.name], _by_operator[op.operator]
    if op.flops is not None:
        del flop_registry[_packet(op)]


def find(name: str) -> Op:
    """The op of that name; ValueError that lists all where there is none."""
    if name not in _ops:
        raise ValueError(f"there is no op {name!r}: choose from {', '.join(_ops)}")
    return _ops[name]


def known(name: str) -> bool:
    """Whether there is an op of that name."""
    return name in _ops


def of_operator(operator: str) -> Op | None:
    """The op behind a name of torch's dispatcher, such as "eva_fast::gemm"; None where it is none."""
    return _by_operator.get(operator)


def ops() -> Iterator[Op]:
    """Every op, a backward right after its forward."""
    for op in list(_ops.values()):
        if op.backward_of is None:
            yield op
            if op.backward is not None:
                yield op.backward


def family_obstacle(family: str, device_type: str) -> str | None:
    """Why this machine cannot run implementations of a family on a device type; None where it can."""
    if family == "native":
        if device_type != "cpu":
            return "runs on CPUs"
        found = native.obstacle()
        return found and f"needs the C++ library, which {found}"
    if family == "triton":
        if not _installed("triton"):
            return "needs Triton, which is not installed"
        if device_type == "cuda" or (device_type == "cpu" and interpreted()):
            return None
        return "runs on NVIDIA GPUs (on CPUs only under TRITON_INTERPRET=1)"
    return None


@functools.cache
def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def _modules(package: str) -> frozenset[str]:
    """Names of the modules in a package."""
    path = importlib.import_module(package).__path__
    return frozenset(module.name for module in pkgutil.iter_modules(path))


def _packet(op: Op) -> Any:
    namespace, name = op.operator.split("::")
    return getattr(getattr(torch.ops, namespace), name)
