"""Result files of `pytest bench/ --benchmark` as tables, Markdown and plots.

    python -m bench.report [FILE.json ...] [--out bench/results]

A result file holds a machine header and entries: one subject in one mode at one shape, every
variant timed in the same run as its baselines. Plots are in `plots.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eva_fast.errors import MissingFileError, UsageError

OURS = "eva_fast"
HEADER_FIELDS = (
    "device",
    "capability",
    "threads",
    "driver",
    "cuda",
    "torch",
    "triton",
    "python",
    "git",
    "date",
)


def _key(entry: dict) -> tuple[str, str, str]:
    return entry["subject"], entry["mode"], entry["shape"]


def merge(
    old: dict | None, machine: dict, entries: list[dict], predictions: Sequence[dict] = ()
) -> dict:
    """A results file: what this run measured, and what `old` holds that it did not measure again.
    Every entry carries the commit and time it was measured at."""
    stamp = {"git": machine.get("git"), "date": machine.get("date")}
    before = old or {}

    def joined(kind: str, fresh: Sequence[dict], key: Callable[[dict], tuple]) -> list[dict]:
        seen = {key(e) for e in fresh}
        kept = [e for e in before.get(kind, []) if key(e) not in seen]
        return kept + [{**e, **stamp} for e in fresh]

    return {
        "format": 1,
        "machine": machine,
        "entries": joined("entries", entries, _key),
        "predictions": joined("predictions", predictions, lambda p: (p["shape"], p["formulation"])),
    }


def read_results(path: Path) -> dict:
    """A results file. FileNotFoundError or ValueError says what is wrong with it."""
    if not path.is_file():
        raise MissingFileError(f"no results file {path}: run pytest bench/ --benchmark first")
    try:
        data = json.loads(path.read_text())
        data["machine"]["device"], data["entries"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a results file of pytest bench/: {error!r}") from None
    return data


def seconds_text(seconds: float | None) -> str:
    """A duration in the unit that suits it."""
    if seconds is None:
        return ""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def time_text(variant: dict) -> str:
    """The median; on a GPU that is the device's time, and wall time stands beside it."""
    text = seconds_text(variant["seconds"]["p50"])
    wall = variant.get("wall_seconds")
    return text if wall is None else f"{text}, wall {seconds_text(wall)}"


def bytes_text(size: int | None) -> str:
    """A size in MB."""
    return "" if size is None else f"{size / 1e6:.1f}"


def speedup_text(variant: dict, baseline: str) -> str:
    """Median with quartiles, e.g. 1.42x (1.38-1.45)."""
    ratio = variant["speedup"].get(baseline)
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f}x ({ratio['q1']:.2f}-{ratio['q3']:.2f})"


COLUMNS = ("subject", "shape", "variant", "time", "over reference", "over tuned", "peak MB")


def rows(entries: Sequence[dict]) -> list[tuple[str, ...]]:
    """One row a variant, in the order of `COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for entry in entries:
        for name, variant in entry["variants"].items():
            found.append(
                (
                    f"{entry['subject']} {entry['mode']}",
                    entry["shape"],
                    name,
                    time_text(variant),
                    speedup_text(variant, "reference"),
                    speedup_text(variant, "tuned"),
                    bytes_text(variant["peak_bytes"]),
                )
            )
    return found


def table(entries: Sequence[dict], width: int = 130) -> str:
    """The entries for a terminal."""
    drawn = Table()
    for i, name in enumerate(COLUMNS):
        drawn.add_column(name, justify="left" if i < 3 else "right")
    last = None
    for row in rows(entries):
        if last not in (None, row[:2]):
            drawn.add_section()
        drawn.add_row(*(("", "") if row[:2] == last else row[:2]), *row[2:])
        last = row[:2]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


CHOICE_COLUMNS = ("subject", "shape", "op", "runs", "PyTorch ms", "fused ms")


def choice_rows(entries: Sequence[dict]) -> list[tuple[str, ...]]:
    """One row an op that was raced before a subject was timed, in the order of `CHOICE_COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for entry in entries:
        for op, choice in entry.get("kernels", {}).items():
            taken = choice["milliseconds"]
            fused = [f"{ms:.3f}" for kind, ms in taken.items() if kind != "torch"]
            subject = f"{entry['subject']} {entry['mode']}"
            plain, own = f"{taken['torch']:.3f}", "".join(fused)
            found.append((subject, entry["shape"], op, choice["kind"], plain, own))
    return found


PREDICTION_COLUMNS = ("shape", "formulation", "measured", "predicted", "predicted / measured")


def prediction_rows(predictions: Sequence[dict]) -> list[tuple[str, ...]]:
    """One row a step, in the order of `PREDICTION_COLUMNS`."""
    return [
        (
            p["shape"],
            p["formulation"],
            seconds_text(p["measured_seconds"]),
            seconds_text(p["predicted_seconds"]),
            f"{p['predicted_over_measured']:.2f}",
        )
        for p in predictions
    ]


def prediction_table(predictions: Sequence[dict], width: int = 100) -> str:
    """Predicted against measured, for a terminal."""
    drawn = Table()
    for name in PREDICTION_COLUMNS:
        drawn.add_column(name)
    for row in prediction_rows(predictions):
        drawn.add_row(*row)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join(" --- " if i < 3 else " ---: " for i in range(len(header))) + "|",
    ]
    return lines + ["| " + " | ".join(row) + " |" for row in body]


def markdown(data: dict, plots: dict[str, Path]) -> str:
    """One results file as Markdown. `plots`: caption to PNG, linked by file name."""
    machine: dict[str, Any] = data["machine"]
    lines = [
        f"# Measured on {machine['device']}",
        "",
        "Times are medians of interleaved rounds. Speed-ups compare within a round: median and, "
        "in brackets, quartiles. Peak MB: tensors of one call at its peak, less those there "
        "before. `reference` computes as the official EVA-01 code does, `tuned` is well-written "
        "plain PyTorch.",
        "",
    ]
    known = [(name, machine[name]) for name in HEADER_FIELDS if machine.get(name) is not None]
    lines += ["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in known), ""]
    for caption, path in plots.items():
        lines += [f"![{caption}]({path.name})", ""]
    lines += _markdown_table(COLUMNS, rows(data["entries"]))
    if choices := choice_rows(data["entries"]):
        lines += [
            "",
            "## Which kernels eva_fast ran",
            "",
            "Before a subject was timed, as before a run, each of its ops was raced: plain PyTorch "
            "against the fused kernel (`native` is C++) with the arguments of that subject. The "
            "faster one ran. Times of all calls of the op in one call of the subject.",
            "",
            *_markdown_table(CHOICE_COLUMNS, choices),
        ]
    if data.get("predictions"):
        lines += [
            "",
            "## Predicted against measured",
            "",
            "The whole training step. The prediction is a roofline over counted operators with "
            "this CPU's rates, measured right before and after the steps.",
            "",
            *_markdown_table(PREDICTION_COLUMNS, prediction_rows(data["predictions"])),
        ]
    missing: dict[str, set[str]] = {}
    for entry in data["entries"]:
        for name, reason in entry["missing"].items():
            missing.setdefault(f"{name}: {reason}", set()).add(entry["subject"])
    if missing:
        lines += ["", "Not run:", ""]
        for what, subjects in sorted(missing.items()):
            lines.append(f"- {what} ({', '.join(sorted(subjects))})")
    commits = sorted({str(e.get("git")) for e in data["entries"]})
    if len(commits) > 1:
        lines += ["", f"Measured at commits {', '.join(commits)}."]
    return "\n".join(lines) + "\n"


def write_report(results: Sequence[Path], out: Path) -> list[Path]:
    """Markdown and PNG plots of every results file, into `out`; returns the files written.

    FileNotFoundError for a missing file, ValueError for one that is no results file or where
    matplotlib is not installed."""
    from bench.plots import draw_all

    written: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    for path in results:
        data = read_results(path)
        plots = draw_all(data, out, path.stem)
        page = out / f"{path.stem}.md"
        page.write_text(markdown(data, plots))
        written += [page, *plots.values()]
    return written


def main() -> None:
    """Turn result files of `pytest bench/ --benchmark` into Markdown and PNG plots."""
    words = argparse.ArgumentParser(prog="python -m bench.report", description=main.__doc__)
    words.add_argument("results", nargs="*", type=Path, help="by default every JSON in --out")
    words.add_argument(
        "--out", type=Path, default=Path("bench/results"), help="folder of the pages"
    )
    results, out = vars(words.parse_args()).values()
    found = list(results) or sorted(out.glob("*.json"))
    if not found:
        raise MissingFileError(f"no result files in {out}: run pytest bench/ --benchmark first")
    for path in write_report(found, out):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
