"""Times one objective's step beside timm's, in turns."""

import argparse
import json

import torch

from bench.harness import Settings, measure
from bench.objectives import NAMES, pair
from eva_fast.ops.settle import settle


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.objectives", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--model", help="a name of the objective's students")
    parser.add_argument("--depth", type=int, help="blocks, by default the model's own")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--processor", action="store_true", help="the process's CPU seconds, not the clock's"
    )
    parser.add_argument("--json", action="store_true", help="all that was measured")
    given = parser.parse_args()
    case = pair(given.name, given.model, given.depth, given.batch_size).case()
    what = {"bench": [case.subject, case.mode], "shape": case.shape}
    chosen = settle(case.variants["eva_fast"].call, torch.device(case.device), what)
    case = pair(given.name, given.model, given.depth, given.batch_size).case()
    found = measure(case, Settings(seconds=given.seconds, processor=given.processor))
    if given.json:
        print(json.dumps({**found, "kernels": {k: str(v) for k, v in chosen.items()}}, indent=1))
        return
    clock = "CPU" if given.processor else "wall"
    print(f"{found['subject']}, {found['shape']}: {torch.get_num_threads()} threads, {clock} time")
    for name, row in found["variants"].items():
        ratio = row["speedup"].get("reference")
        beside = "" if ratio is None else (
            f", {ratio['median']:.3f} ({ratio['q1']:.3f}-{ratio['q3']:.3f}) times as fast"
        )  # fmt: skip
        print(f"{name:10} {1e3 * row['seconds']['p50']:8.1f} ms ({row['rounds']} rounds){beside}")


if __name__ == "__main__":
    main()
