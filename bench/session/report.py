"""The findings as JSON and Markdown, made again after every stage; plain text at the end."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.session.notes import read
from eva_fast.files import atomic_write

Row = tuple[Any, ...]
MACHINE = "machine.json"


def machine_of(out: Path) -> dict:
    """What `bench.machine.header` said, with the file name of this machine's results."""
    path = out / MACHINE
    return json.loads(path.read_text()) if path.exists() else {"slug": "results", "rates": {}}


def write(out: Path) -> tuple[Path, Path]:
    """Writes and returns <machine>.json and <machine>.md in `out`."""
    machine, findings = machine_of(out), read(out)
    paths = out / f"{machine['slug']}.json", out / f"{machine['slug']}.md"
    data = {"format": 1, "kind": "measured", "machine": machine, "findings": findings}
    for path, text in zip(paths, (json.dumps(data, indent=1), markdown(machine, findings, out))):
        with atomic_write(path) as draft:
            draft.write_text(text + "\n")
    return paths


def of_kind(findings: Iterable[dict], kind: str) -> list[dict]:
    return [f for f in findings if f["kind"] == kind]


def measured_peak(findings: Iterable[dict]) -> float | None:
    """FLOP/s of the quickest product among the ceilings."""
    rates = [max(f["flops"].values()) for f in of_kind(findings, "ceiling") if "flops" in f]
    return max(rates, default=None)


def _share(tflops: float, peak: float | None) -> str:
    return f"{100e12 * tflops / peak:.1f} %" if peak else ""


def step_rows(machine: dict, findings: Sequence[dict]) -> list[Row]:
    sheet, peak = machine.get("rates", {}).get("flops"), measured_peak(findings)
    if machine.get("rates", {}).get("kind") != "data sheet":
        sheet = None
    rows: list[Row] = []
    for f in of_kind(findings, "step"):
        about = (f["model"], f["batch"], f["variant"])
        if "missing" in f:
            rows.append((*about, f["missing"], *[""] * 6))
            continue
        times = (f"{f[f'{clock}_ms']:.2f}" for clock in ("device", "wall", "host"))
        shares = (_share(f["tflops"], p) for p in (sheet, peak))
        memory = f"{f['peak_gb']:.1f}" if f["peak_gb"] else ""
        rows.append((*about, *times, f"{f['images_per_second']:.1f}", *shares, memory))
    return rows


STEP = ("model", "batch", "variant", "device ms", "wall ms", "host ms", "images/s",
        "MFU, data sheet", "MFU, measured peak", "peak GB")  # fmt: skip


def _outcomes(machine: dict, findings: Sequence[dict]) -> list[Row]:
    return [(f["name"], f["outcome"], f"{f['seconds']:.1f}") for f in of_kind(findings, "outcome")]


def _ceilings(machine: dict, findings: Sequence[dict]) -> list[Row]:
    rows: list[Row] = []
    for f in of_kind(findings, "ceiling"):
        if "flops" in f:
            rates = (f"{f['flops'][d] / 1e12:.2f}" for d in ("forward", "dx", "dw"))
            rows.append((f["what"], " x ".join(map(str, f["sizes"])), *rates, ""))
        else:
            rows.append((f["what"], "", "", "", "", f"{f['bytes_per_second'] / 1e9:.0f}"))
    return rows


def _attention(machine: dict, findings: Sequence[dict]) -> list[Row]:
    rows: list[Row] = []
    for f in of_kind(findings, "attention"):
        batch, queries, keys, heads, dim = f["shape"]
        times = (f"{f[f'{way}_us']:.1f}" for way in ("forward", "backward"))
        errors = " ".join(f"{e:.1e}" for e in f["error"])
        rows.append((f"{queries} x {keys}, {batch} x {heads} heads of {dim}", f["dtype"],
                     f["implementation"], *times, errors))  # fmt: skip
    return rows


def _ops(machine: dict, findings: Sequence[dict]) -> list[Row]:
    rows: list[Row] = []
    for f in of_kind(findings, "op"):
        for name, taken in f["variants"].items():
            times = (f"{taken[f'{clock}_us']:.1f}" for clock in ("device", "wall", "host"))
            rows.append((f"{f['op']} {f['mode']}", f["shape"], name, *times))
    return rows


def _profiles(machine: dict, findings: Sequence[dict]) -> list[Row]:
    return [
        (f"{f['model']} b{f['batch']} {f['variant']}", f"{k['ms']:.3f}", f"{k['calls']:g}",
         f"{k['mean_us']:.1f}", k["name"].replace("|", " "))
        for f in of_kind(findings, "profile") for k in f["top"]
    ]  # fmt: skip


def _tests(machine: dict, findings: Sequence[dict]) -> list[Row]:
    """The last count: those before it are of the same tests."""
    return [
        (f.get("passed", 0), f.get("failed", 0), f.get("skipped", 0), "yes" if f["finished"] else "no")
        for f in of_kind(findings, "tests")[-1:]
    ]  # fmt: skip


def _failures(machine: dict, findings: Sequence[dict]) -> list[Row]:
    one_line = lambda text: " ".join(text.split()).replace("|", "\\|")  # noqa: E731
    return [
        (f["stage"], one_line(f["what"]), one_line(f["error"])[:300])
        for f in of_kind(findings, "failure")
    ]


def _skipped(machine: dict, findings: Sequence[dict]) -> list[Row]:
    return [(f["stage"], f["what"]) for f in of_kind(findings, "skipped")]


Table = tuple[str, str, Sequence[str], Callable[[dict, Sequence[dict]], list[Row]]]
TABLES: tuple[Table, ...] = (
    ("Stages", "", ("stage", "outcome", "seconds"), _outcomes),
    ("Whole steps", "Medians of turns. Device: launches hidden behind a device that sleeps first; "
     "wall: one step from an idle device to an idle device; host: until the last launch was issued. "
     "images/s: of the longer of device and host, as steps back to back take.", STEP, step_rows),
    ("Tests", "", ("passed", "failed", "skipped", "all ran"), _tests),
    ("Failures", "", ("stage", "what", "error"), _failures),
    ("Ceilings", "", ("what", "m x n x k", "forward TFLOP/s", "dx TFLOP/s", "dw TFLOP/s", "GB/s"),
     _ceilings),
    ("Attention", "Errors: relative to float64, of out, dq, dk, dv.",
     ("shape", "dtype", "implementation", "forward us", "backward us", "errors"), _attention),
    ("Ops", "", ("op", "shape", "variant", "device us", "wall us", "host us"), _ops),
    ("Kernels of a step", "", ("step", "ms", "calls", "mean us", "kernel"), _profiles),
    ("No time left for", "", ("stage", "what"), _skipped),
)  # fmt: skip


def markdown(machine: dict, findings: Sequence[dict], out: Path) -> str:
    lines = [f"# Measured on {machine.get('device', 'this machine')}", ""]
    known = [(k, v) for k, v in machine.items() if isinstance(v, (str, int, float))]
    lines += ["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in known), ""]
    for path in sorted(out.glob(f"{machine['slug']}-*.png")):
        lines += [f"![{path.stem}]({path.name})", ""]
    for title, words, header, rows_of in TABLES:
        rows = rows_of(machine, findings)
        if not rows:
            continue
        lines += [f"## {title}", "", *([words, ""] if words else [])]
        if title == "Kernels of a step":
            lines += [_gaps(f) for f in of_kind(findings, "profile")] + [""]
        lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _gaps(f: dict) -> str:
    return (
        f"{f['variant']}, {f['model']} batch {f['batch']}, a step: {f['kernels']:g} kernels, busy "
        f"{f['busy_ms']:.2f} ms, waiting {f['gap_ms']:.2f} ms ({f['gaps']:g} gaps above 5 us)."
    )


def short(out: Path) -> str:
    """Outcomes, failures and steps for a terminal."""
    machine, findings = machine_of(out), read(out)
    lines = []
    for rows in (_outcomes(machine, findings), _tests(machine, findings),
                 _failures(machine, findings), step_rows(machine, findings)):  # fmt: skip
        lines += ["  ".join(str(cell)[:110] for cell in row if cell != "") for row in rows] + [""]
    return "\n".join(lines)
