"""Host time of a training step: what Python, PyTorch and the launchers cost when the device costs
nothing.

    python -m bench.host [--depth 12 40] [--rounds 9] [--steps 3]

All steps run as on an sm_90, every launch taken by `bench.stub`, which does nothing. Printed for
each: milliseconds of processor time a step, of all threads (the host's share of a step on a GPU;
unlike wall time it does not grow with what else the machine does), wall time, and what was
launched. "eva_fast" is a run's step in bfloat16 with float32 masters, guard and sums, as it is and
as a CUDA graph; "tuned" (float32 parameters, autocast) and "tuned half" are `bench.step`'s. Rounds
take turns.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench.stub import build, device

WIDTH, HEADS, HIDDEN, BATCH = 64, 2, 256, 2
VARIANTS = ("tuned", "tuned half", "eva_fast", "eva_fast captured")


def steps(depth: int, attention: str = "flash") -> dict[str, Callable[[], object]]:
    """{variant: one step} of a student that deep. attention: the implementation that eva_fast runs;
    the tuned step's is PyTorch's "flash"."""
    from bench.kit import Kit
    from bench.shapes import Shape
    from bench.step import make
    from eva_fast.model import sizes_of
    from eva_fast.ops import choose

    choose.force("packed_attention", attention)
    # The stub stands for no cuDNN: attention is flash in both, and one convolution a step is another.
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    sizes = replace(
        sizes_of("eva_ti_patch16_96"),
        embed_dim=WIDTH, num_heads=HEADS, mlp_hidden=HIDDEN, depth=depth,
    )  # fmt: skip
    shape = Shape(name="host", sizes=sizes, batch=BATCH, device="cuda", dtype=torch.bfloat16)
    kit = Kit("step", timed=False, quick=True)
    return {name: make(name, shape, kit).call for name in VARIANTS}


def measure(calls: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, Any]:
    """{variant: processor and wall milliseconds a step, medians and least of rounds in turn; and
    what one step launched}."""
    found: dict[str, Any] = {}
    for name, call in calls.items():
        for _ in range(10):  # until memory comes back at the same addresses
            call()
        device.forget()
        call()
        found[name] = {"cpu_ms": [], "wall_ms": [], **device.counts()}
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            wall, own = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                call()
            found[name]["cpu_ms"].append((time.process_time() - own) / repeats * 1e3)
            found[name]["wall_ms"].append((time.perf_counter() - wall) / repeats * 1e3)
    gc.enable()
    for row in found.values():
        row["least_cpu_ms"] = min(row["cpu_ms"])
        for key in ("cpu_ms", "wall_ms"):
            row[key] = statistics.median(row[key])
    return found


def _table(depth: int, found: dict[str, Any]) -> str:
    base = found["tuned"]["cpu_ms"]
    lines = [
        f"{f'{depth} blocks':<18} {'processor ms':>13} {'least':>7} {'wall ms':>8} {'of tuned':>9} "
        f"{'launches':>9} {'graphs':>7} {'host copies':>12} {'waits':>6}"
    ]
    for name, row in found.items():
        lines.append(
            f"{name:<18} {row['cpu_ms']:13.1f} {row['least_cpu_ms']:7.1f} {row['wall_ms']:8.1f} "
            f"{row['cpu_ms'] / base:9.2f} {row['launches']:9} {row['graph_launches']:7} "
            f"{row['host_copies']:12} {row['waits']:6}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--depth", type=int, nargs="+", default=[12, 40])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--attention", default="flash", help="what eva_fast runs: flash, triton")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    obstacle = build.obstacle()
    if obstacle is not None:
        print(f"the host time cannot be measured here: {obstacle}", file=sys.stderr)
        return 1
    if not build.is_loaded():
        command = [sys.executable, "-m", "bench.host", *sys.argv[1:]]
        return subprocess.run(command, env=build.environment()).returncode
    results = {}
    for depth in options.depth:
        calls = steps(depth, options.attention)
        results[depth] = measure(calls, options.rounds, options.steps)
        if not options.json:
            print(_table(depth, results[depth]), flush=True)
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
