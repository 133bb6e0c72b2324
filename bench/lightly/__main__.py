"""Runs the comparison and keeps its figures in `bench/results/lightly`."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import lightly
from bench.lightly import imports, setting
from bench.lightly.cases import CASES, PRECISIONS, Case
from bench.lightly.race import HERE, Side, Turn, rounds
from bench.overhead import quartiles

RESULTS = HERE / "bench" / "results" / "lightly"
SOURCES = ("disk", "memory")


def ratios(found: Sequence[Sequence[Turn]], what: str) -> tuple[float, float, float]:
    """Quartiles of theirs over ours, round by round: above 1 ours is faster."""
    return quartiles([getattr(theirs, what) / getattr(ours, what) for theirs, ours in found])


def told(case: Case, found: dict[str, Any]) -> str:
    """A line for people."""
    rates = ", ".join(f"{name} {rate:.2f}" for name, rate in found["images_per_second"].items())
    wall, cpu = ("{1:.3f} ({0:.3f}-{2:.3f})".format(*found[k]) for k in ("times", "times_cpu"))
    flops = ", ".join(f"{name} {n / 1e9:.1f}" for name, n in found["flops_per_image"].items())
    return (
        f"{case.title}, {found['source']}, {found['precision']}: images/s {rates}; {wall} times as "
        f"fast, {cpu} by the processor's seconds; counted GFLOP an image {flops}"
    )


def figures(case: Case, begun: Sequence[Side], options: argparse.Namespace) -> dict[str, Any]:
    """Turns of both runs, then one counted step of each."""
    names = [side.name for side in begun]
    found = rounds(begun, options.rounds, options.steps, options.warm)
    counted = [side.flops() for side in begun]
    images = options.steps * case.batch_size
    rates = [
        quartiles([images / turns[i].seconds for turns in found])[1] for i in range(len(begun))
    ]
    return {
        "title": case.title, "batch": case.batch_size, "steps": options.steps,
        "workers": options.workers,
        "images_per_second": dict(zip(names, rates)),
        "times": ratios(found, "seconds"), "times_cpu": ratios(found, "cpu_seconds"),
        "first_step": {side.name: side.first_step._asdict() for side in begun},
        "flops_per_image": {
            name: sum(flops.values()) / case.batch_size for name, flops in zip(names, counted)
        },
        "flops": dict(zip(names, counted)),
        "rounds": [[turn._asdict() for turn in turns] for turns in found],
    }  # fmt: skip


def keep(name: str, found: dict[str, Any], folder: Path) -> Path:
    """Writes an entry into the results of this machine; others of it stay."""
    from bench.machine import header, slug

    machine = header()
    path = folder / f"{slug(machine)}.json"
    entries = json.loads(path.read_text())["entries"] if path.exists() else {}
    entries[name] = {**found, "machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"entries": dict(sorted(entries.items()))}, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lightly", description=lightly.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--their-python", required=True, help="a Python that has lightly_train")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--warm", type=int, default=3, help="steps before the first turn")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--imports", type=int, default=5, help="rounds of imports; 0: none")
    parser.add_argument("--photographs", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="where photographs and teachers are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "given"
        if not (folder / "photographs").exists():
            setting.write_photographs(folder / "photographs", options.photographs)
            setting.write_teachers(folder, CASES.values(), options.their_python)
        version = setting.their_version(options.their_python)
        for name in options.case:
            for source in options.source:
                for precision in options.precision:
                    run = f"{name}-{source}-{precision}"
                    begun = setting.sides(
                        CASES[name], folder, Path(temporary) / run, options.their_python,
                        precision, options.workers, source == "memory",
                    )  # fmt: skip
                    try:
                        found = figures(CASES[name], begun, options)
                    finally:
                        for side in begun:
                            side.end()
                    found |= {"source": source, "precision": precision, "lightly_train": version}
                    keep(run, found, options.out)
                    print(told(CASES[name], found), flush=True)
        if options.imports:
            environment = setting.their_environment(folder)
            taken = imports.measure(options.their_python, environment, options.imports)
            for what, found_rounds in taken.items():
                for clock in Turn._fields:
                    medians = [
                        quartiles([getattr(turns[i], clock) for turns in found_rounds])[1]
                        for i in range(2)
                    ]
                    print(f"{what}, {clock}: theirs {medians[0]:.2f}, ours {medians[1]:.2f}")
            kept = {
                what: [[t._asdict() for t in turns] for turns in r] for what, r in taken.items()
            }
            keep("imports", {"rounds": kept, "lightly_train": version}, options.out)
    lines = {name: setting.script_lines(name) for name in ("theirs", "ours")}
    print(f"lines to write: theirs {lines['theirs']}, ours {lines['ours']}")


if __name__ == "__main__":
    main()
