"""What a run pays for checkpoints, and one process for the code of many, in the processor's seconds.

    python -m bench.overhead checkpoints [--pairs N] [--every STEPS]
    python -m bench.overhead processes [--pairs N]

checkpoints: ViT-S/14 at 224 pixels, batch 8. Two steps beside which a checkpoint of weights, moments and
the rest is copied, written, checked and flushed to disk as in a run, in turn with two steps without.
processes: a small run as the one process of torchrun, between two that were started without it.

Processor's seconds of all threads, pair by pair: on a busy machine the clock says little.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SMALL: dict[str, Any] = dict(
    model="eva_ti_patch16_96", depth=4, batch_size=16, teacher="hog", workers=0, steps=60,
    device="cpu", kernels="native", progress=False, checkpoint_minutes=0,
)  # fmt: skip
FIRST = 20
"""Steps of a small run before those that count."""
STEPS = 2
"""Beside which a checkpoint is written."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")


def checkpoints(pairs: int, every: int) -> str:
    """The share of `every` steps that a checkpoint takes, and how long a step waits for it."""
    import torch

    from bench.shapes import vit
    from bench.step import step_and_batch
    from eva_fast.model import EvaViT
    from eva_fast.train.checkpoint_writer import Writer

    shape = vit("s", 8, "cpu", torch.float32)
    torch.manual_seed(0)
    target = shape.randn(shape.batch * shape.masked, shape.sizes.predict_dim)
    loader = SimpleNamespace(state_dict=dict)
    step, batch = step_and_batch(EvaViT(shape.sizes), shape, target, loader)
    shares, waits, size = [], [], 0
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder), keep=2) as writer:

        def steps(saved: bool) -> float:
            start = time.process_time()
            if saved:
                begin = time.perf_counter()
                step.state.save(writer, {})
                waits.append(time.perf_counter() - begin)
            for _ in range(STEPS):
                step(batch, rate=1e-3)
            writer.wait()
            return time.process_time() - start

        for saved in (False, True):
            steps(saved)
        for _ in range(pairs):
            without, beside = steps(False), steps(True)
            shares.append((beside - without) / (without / STEPS * every))
            print(
                f"{without / STEPS:.2f} s a step, {beside - without:.2f} s a checkpoint", flush=True
            )
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) // 2
    low, middle, high = quartiles(shares)
    return (
        f"a checkpoint of {size / 1e6:.0f} MB every {every} steps: {100 * middle:.2f} % "
        f"({100 * low:.2f} to {100 * high:.2f}) of the steps' time; a step waits "
        f"{statistics.median(waits):.2f} s for its copy"
    )


def processes(pairs: int) -> str:
    """What a step takes as the one process of torchrun, in terms of one without, and what two without
    differ by."""
    ratios, alike = [], []
    for number in range(pairs):
        before, under, after = (_step_seconds(way) for way in ((), TORCHRUN, ()))
        ratios.append(2 * under / (before + after))
        alike.append(after / before)
        told = ", ".join(f"{1e3 * seconds:.1f}" for seconds in (before, under, after))
        print(f"{number}: {told} ms a step", flush=True)
    found = [quartiles(values) for values in (ratios, alike)]
    one, two = (f"{middle:.4f} ({low:.4f} to {high:.4f})" for low, middle, high in found)
    return f"a step under torchrun is {one} of one without; of two without the second is {two}"


def _step_seconds(way: Sequence[str]) -> float:
    """Median of the steps of a small run, started this way."""
    words = [sys.executable, *way, "-m", "bench.overhead", "worker"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"^steps (\[.*\])$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(done.stderr[-2000:])
    return statistics.median(json.loads(found[1]))


def _worker() -> None:
    from eva_fast.config import Config
    from eva_fast.recipes.pretrain import run

    marks: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        options = Config.from_options({**SMALL, "out": f"{out}/run"})
        run(options, on_step=lambda _: marks.append(time.process_time()))
    print("steps", [b - a for a, b in zip(marks[FIRST:], marks[FIRST + 1 :])], flush=True)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("what", choices=("checkpoints", "processes", "worker"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--every", type=int, default=50)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.what == "worker":
        _worker()
    elif asked.what == "processes":
        print(processes(asked.pairs))
    else:
        print(checkpoints(asked.pairs, asked.every))


if __name__ == "__main__":
    main()
