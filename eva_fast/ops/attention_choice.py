"""Which attention library runs: measured once for a run's real shape, then a dictionary lookup.

On an NVIDIA GPU every backend that supports the dtype and head size is timed, forward and backward,
the first time a shape is met; the fastest one runs from then on, and the answer is kept on disk for
this GPU and these versions. Elsewhere, and while a CUDA graph is captured, the first supported one
in the order of `BACKENDS` runs. `set_backend` forces one.
"""

import functools
import importlib.metadata
import logging
import statistics
import time
from typing import NamedTuple

import torch

from eva_fast.ops import dispatch
from eva_fast.ops.attention_backends import BACKENDS, Backend
from eva_fast.ops.measure import measured_choice

logger = logging.getLogger(__name__)
OP = "packed_attention"
# What comes with PyTorch: all that kernels="torch" allows.
STOCK = ("cudnn", "flash", "efficient", "cpu_flash", "math")


class AttentionShape(NamedTuple):
    """Sizes of one attention call; the batch is no part of a choice."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int


_choices: dict[tuple, str] = {}
_forced: str | None = None


def set_backend(name: str = "auto") -> None:
    """Forces one backend for the process ("auto": choose again). ValueError if it is unknown."""
    global _forced
    _check(name)
    _forced = None if name == "auto" else name
    _choices.clear()
    logger.info("attention: %s", name)


def backends(head_dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, str | None]:
    """{backend: None where it runs, else the reason why not}, in order of preference."""
    return {name: b.obstacle(head_dim, dtype, device) for name, b in BACKENDS.items()}


def choose_backend(
    shape: AttentionShape | tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """The name of the backend for (batch, queries, keys, heads, head_dim)."""
    shape = AttentionShape(*shape)
    forced = _forced or {"triton": "triton"}.get(dispatch.forced(OP) or "")
    if forced is not None and BACKENDS[forced].obstacle(shape.head_dim, dtype, device) is None:
        return forced
    stock_only = dispatch.forced(OP) == "torch"
    key = (*shape[1:], dtype, device.type, device.index, stock_only)
    if key in _choices:
        return _choices[key]
    names = [
        name
        for name, obstacle in backends(shape.head_dim, dtype, device).items()
        if obstacle is None and (name in STOCK or not stock_only)
    ]
    if device.type == "cpu" and "triton" in names:
        names.remove("triton")  # the interpreter is no candidate, unless asked for
    if device.type != "cuda" or not torch.cuda.is_available():
        return _choices.setdefault(key, names[0])
    if torch.cuda.is_current_stream_capturing():
        return names[0]
    # math is always right and never fast: the last resort, not worth its memory in a race
    racing = [name for name in names if name != "math"] or names
    if len(racing) == 1:
        _choices[key] = racing[0]
        logger.info("attention on %s: %s, the only one", device, racing[0])
    else:
        _choices[key] = measured_choice(
            _label(shape, dtype), racing, device, {"attention": _versions()},
            functools.partial(measure_backends, racing, shape, dtype, device),
        )  # fmt: skip
    return _choices[key]


def _label(shape: AttentionShape, dtype: torch.dtype) -> str:
    _, queries, keys, heads, dim = shape
    return (
        f"attention {queries}x{keys}, {heads} heads of {dim}, {str(dtype).removeprefix('torch.')}"
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Of the libraries beside PyTorch and Triton, where installed."""
    wanted = ("flash-attn", "flash-attn-3", "xformers")
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {name: installed[name] for name in wanted if name in installed}


def measure_backends(
    names: list[str], shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Median seconds of forward and backward on packed projections; what fails is left out."""
    batch, queries, keys, heads, dim = shape
    packed = torch.randn((batch, keys, 3, heads, dim), dtype=dtype, device=device)
    q, k, v = packed.unbind(2)
    if queries != keys:
        q = torch.randn((batch, queries, heads, dim), dtype=dtype, device=device)
    dout, dq = torch.randn(q.shape, dtype=dtype, device=device), torch.empty_like(q)
    dk, dv = torch.empty_like(packed).unbind(2)[1:]
    scale = dim**-0.5

    def run(backend: Backend) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(3):
            out, lse = backend.forward(q, k, v, scale)
            backend.backward(dout, q, k, v, out, lse, scale, dq, dk, dv)
        _wait(device)
        return (time.perf_counter() - start) / 3

    found: dict[str, list[float]] = {}
    for name in names:
        try:
            run(BACKENDS[name])  # compiles, allocates
            found[name] = []
        except Exception as error:  # a library may refuse a shape in ways of its own
            logger.info("attention: %s cannot run %s %s: %s", name, tuple(shape), dtype, error)
    for _ in range(5):  # in turns, so that a slow moment of the machine hits all of them
        for name, times in found.items():
            times.append(run(BACKENDS[name]))
    return {name: statistics.median(times) for name, times in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def backend_of(name: str, q: torch.Tensor, k: torch.Tensor) -> Backend:
    """The backend `name`, or the chosen one for "auto"; ValueError where it cannot run."""
    batch, queries, heads, dim = q.shape
    if name == "auto":
        shape = AttentionShape(batch, queries, k.shape[1], heads, dim)
        return BACKENDS[choose_backend(shape, q.dtype, q.device)]
    _check(name)
    obstacle = BACKENDS[name].obstacle(dim, q.dtype, q.device)
    if obstacle is not None:
        raise ValueError(
            f"attention: backend {name!r} cannot run {q.dtype} heads of {dim} on {q.device}: it "
            f"{obstacle}"
        )
    return BACKENDS[name]


def _check(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"attention: unknown backend {name!r}: choose from auto, "
                         f"{', '.join(BACKENDS)}")  # fmt: skip
