"""Does it run at all: every op in every implementation that this machine has, a block, training steps,
a whole run with workers. Numbers are compared, at a tiny shape; nothing is timed."""

import importlib
import tempfile
import time

import torch

import eva_fast
from bench import optimizer, step
from bench.harness import check_agreement
from bench.kit import Kit
from bench.session.child import Bench
from bench.shapes import check_shape
from bench.subjects import subjects
from eva_fast.ops import choose, registry

STEPS = 6


def run(bench: Bench) -> None:
    _ops(bench)
    _steps(bench)
    _run(bench)


def _families(name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those that this machine can run the op as; a block, which is no op, runs as chosen."""
    if not registry.known(name):
        return ["auto"]
    candidates = registry.find(name).candidates(registry.Case(device, dtype))
    found = [c.family for c in candidates if c.family in registry.FAMILIES]
    return list(dict.fromkeys(found))


def _ops(bench: Bench) -> None:
    dtypes = [torch.float32] if bench.tiny else [torch.bfloat16, torch.float32]
    for name in subjects():
        module = importlib.import_module(f"bench.ops.{name}")
        for dtype in dtypes:
            for family in _families(name, bench.device, dtype):
                start, what = time.monotonic(), f"{name} as {family} in {dtype}"
                choose.set_kernels(family)
                with bench.attempt(what):
                    torch.manual_seed(0)
                    shape = check_shape(bench.device.type, dtype)
                    mode = module.MODES[-1]  # forward and backward, where there is one
                    check_agreement(module.subject(shape, mode, Kit(name, False, True)))
                    taken = round(time.monotonic() - start, 2)
                    bench.notes.add("smoke", what=what, seconds=taken)
    choose.set_kernels("auto")


def _steps(bench: Bench) -> None:
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    with bench.attempt("training steps"):
        start, shape = time.monotonic(), check_shape(bench.device.type, dtype)
        check_agreement(step.subject(shape, "step", Kit("step", False, True)))
        check_agreement(optimizer.subject(shape, "step", Kit("optimizer", False, True)))
        taken = round(time.monotonic() - start, 2)
        bench.notes.add("smoke", what="training steps and the optimiser", seconds=taken)


def _run(bench: Bench) -> None:
    with bench.attempt("pretrain"), tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        result = eva_fast.pretrain(
            out=f"{folder}/run", model="eva_ti_patch8_64", embed_dim=64, depth=2, num_heads=2,
            mlp_hidden=160, teacher="hog", steps=STEPS, batch_size=8, workers=2, log_every=2,
            progress=False,
        )  # fmt: skip
        metrics, taken = result.metrics, round(time.monotonic() - start, 2)
        bench.notes.add("smoke", what=f"pretrain, {STEPS} steps", metrics=metrics, seconds=taken)
