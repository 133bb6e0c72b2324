"""Where a run computes, and in which state of torch: its own, whatever the caller's is."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from eva_fast import native
from eva_fast.errors import UsageError

_PAUSE_SOFT = 1  # omp_pause_soft: ends the threads, keeps the settings
_paused = True
_threads_lost = False


def choose_device(name: str) -> torch.device:
    """The device of "auto" (an NVIDIA GPU if there is one), "cpu", "cuda" or "cuda:1". ValueError
    where there is no such device."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    if kind == "cuda" and not found:
        raise UsageError(f"device={name!r}, but torch sees no NVIDIA GPU; use 'cpu' or 'auto'")
    if kind == "cuda" and int(index or 0) >= found:
        raise UsageError(f"device={name!r}, but there are {found} NVIDIA GPUs, counted from 0")
    return torch.device(name)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """The block runs with gradients, without autocast, with float32 and the CPU as defaults, whatever
    the caller has set; afterwards all of that, and torch's random state, is the caller's again. A
    process that is forked later can compute too; UsageError in one where that is too late."""
    if _threads_lost and torch.get_num_threads() > 1:
        raise UsageError(
            "this process was forked from one that had computed with several threads, which do not "
            "live on in it: it would wait for them for ever. Start it by multiprocessing's 'spawn' or "
            "'forkserver', or call torch.set_num_threads(1) before anything else"
        )
    _let_forks_compute()
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        )
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", device.type}:
            # Not `torch.autocast`: inside any region of it, what it casts of weights is kept until
            # the outermost region ends, so that modules with autocast of their own would read the
            # weights of the first step for the whole run.
            stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        if (
            torch.get_default_device().type != "cpu"
        ):  # entered only then: it slows each call a little
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


@functools.cache
def _let_forks_compute() -> None:
    """Ends OpenMP's threads before every fork; the next parallel region starts new ones, here and in
    the child. GNU's runtime believes its threads alive in a child, where there are none, and the
    first matrix product waits for them for ever."""
    runtime = native.openmp()
    pause = getattr(runtime, "omp_pause_resource_all", None)  # OpenMP 5.0

    def before() -> None:
        global _paused
        _paused = pause is not None and pause(_PAUSE_SOFT) == 0

    def in_child() -> None:
        global _threads_lost
        _threads_lost = not _paused

    os.register_at_fork(before=before, after_in_child=in_child)


def seed(number: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and `device` alone: other GPUs are none of a run's business."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
