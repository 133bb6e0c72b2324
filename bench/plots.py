"""Plots of benchmark results: speed-up bars, throughput and memory over batch, roofline."""

from pathlib import Path
from typing import Any

from eva_fast.evaluation.figures import pyplot

OURS = "eva_fast"
# Okabe and Ito's palette: told apart without colour vision too.
COLORS = {
    "reference": "#7f7f7f",
    "tuned": "#0072B2",
    "compile": "#E69F00",
    "eva_fast": "#D55E00",
}
MARKERS = {"reference": "s", "tuned": "D", "compile": "^", "eva_fast": "o"}
MAIN = ("reference", "tuned", OURS)


def draw_all(data: dict, out: Path, stem: str) -> dict[str, Path]:
    """Every plot that the entries allow: {caption: PNG}."""
    plt = pyplot()
    drawn = {}
    for name, caption, draw in (
        ("speedup", "Speed-up of eva_fast", _speedup),
        ("batch", "Throughput and memory over batch size", _over_batch),
        ("roofline", "Roofline", _roofline),
    ):
        figure = draw(plt, data)
        if figure is None:
            continue
        path = out / f"{stem}-{name}.png"
        # No date inside, so that the same results give the same file.
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        drawn[caption] = path
    return drawn


def _largest_shapes(entries: list[dict]) -> list[dict]:
    """One entry a subject and mode: the last shape in the file's order, which is the largest."""
    return list({(e["subject"], e["mode"]): e for e in entries}.values())


def _speedup(plt: Any, data: dict) -> Any:
    entries = [e for e in _largest_shapes(data["entries"]) if OURS in e["variants"]]
    entries = [e for e in entries if e["variants"][OURS]["speedup"]]
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.34 * len(entries)))
    bases = ("reference", "tuned")
    for offset, base in zip((-0.18, 0.18), bases, strict=True):
        found = [(i, e["variants"][OURS]["speedup"].get(base)) for i, e in enumerate(entries)]
        found = [(i, r) for i, r in found if r]
        middle = [r["median"] for _, r in found]
        low = [r["median"] - r["q1"] for _, r in found]
        high = [r["q3"] - r["median"] for _, r in found]
        axes.barh(
            [i + offset for i, _ in found],
            [m - 1 for m in middle],
            0.34,
            left=1,
            xerr=[low, high],
            color=COLORS[base],
            label=f"over {base}",
            error_kw={"lw": 0.8, "capsize": 1.5},
        )
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(entries)))
    axes.set_yticklabels([f"{e['subject']} {e['mode']}" for e in entries])
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("speed-up (median of paired rounds, quartiles as whiskers)")
    shapes = sorted({e["shape"] for e in entries})
    axes.set_title(f"{data['machine']['device']}\n{', '.join(shapes)}", fontsize=8, loc="left")
    axes.legend(loc="best")
    return figure


def _over_batch(plt: Any, data: dict) -> Any:
    """Of the student with the most batch sizes among the whole-step entries."""
    steps = [e for e in data["entries"] if e["subject"] == "step"]
    models: dict[str, list[dict]] = {}
    for entry in steps:
        models.setdefault(entry["shape"].split()[0], []).append(entry)
    chosen = max(models.items(), key=lambda kv: len(kv[1]), default=None)
    if chosen is None or len(chosen[1]) < 2:
        return None
    model, entries = chosen[0], sorted(chosen[1], key=lambda e: e["batch"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    names = [n for n in COLORS if all(n in e["variants"] for e in entries)]
    batches = [e["batch"] for e in entries]
    for name in names:
        style = {"color": COLORS[name], "marker": MARKERS[name], "label": name, "ms": 4}
        own = [e["variants"][name] for e in entries]
        left.plot(batches, [v["images_per_second"] for v in own], **style)
        right.plot(batches, [v["peak_bytes"] / 1e9 for v in own], **style)
    left.set_ylabel("images/s")
    right.set_ylabel("peak memory of a step (GB)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches)
        axes.set_xticklabels([str(b) for b in batches])
        axes.minorticks_off()
        axes.set_xlabel("batch size")
        axes.set_ylim(bottom=0)
    left.legend()
    figure.suptitle(f"{model} training step on {data['machine']['device']}", fontsize=9)
    figure.tight_layout()
    return figure


def _roofline(plt: Any, data: dict) -> Any:
    """Counted FLOPs over counted bytes against FLOPs a second; roofs are the measured rates."""
    rates = data["machine"].get("rates")
    points = []
    for entry in _largest_shapes(data["entries"]):
        if entry["subject"] == "checkpoint":  # bounded by the disk, not by this roof
            continue
        for name in MAIN:
            variant = entry["variants"].get(name)
            if not variant or not entry.get("flops") or not variant.get("touched_bytes"):
                continue
            intensity = entry["flops"] / variant["touched_bytes"]
            speed = entry["flops"] / variant["seconds"]["p50"]
            points.append((name, f"{entry['subject']} {entry['mode']}", intensity, speed))
    if not rates or not points:
        return None
    figure, axes = plt.subplots(figsize=(7.5, 4.8))
    low = min(p[2] for p in points) / 2
    peak = rates["flops"]
    high = max(max(p[2] for p in points) * 2, 4 * peak / rates["stream_bytes"])
    slopes = {"memory": rates["stream_bytes"]}
    if rates.get("stream_points"):
        slopes["cache"] = max(rate for _, rate in rates["stream_points"])
    for style, (what, slope) in zip(("-", "--"), slopes.items(), strict=False):
        knee = peak / slope
        axes.plot(
            [low, knee, high],
            [low * slope, peak, peak],
            style,
            color="black",
            lw=1,
            label=f"{peak / 1e9:,.0f} GFLOP/s, {what} {slope / 1e9:,.1f} GB/s ({rates['kind']})",
        )
    for name in MAIN:
        own = [p for p in points if p[0] == name]
        axes.scatter(
            [p[2] for p in own],
            [p[3] for p in own],
            s=22,
            color=COLORS[name],
            marker=MARKERS[name],
            label=name,
            alpha=0.85,
            linewidths=0,
        )
    # Points lie close: numbers beside them, what they are to the right of the plot.
    named = [p for p in points if p[0] == OURS]
    for number, (_, _, x, y) in enumerate(named, 1):
        where = ((4, 3), (-9, 3), (4, -8), (-9, -8))[number % 4]
        axes.annotate(str(number), (x, y), xytext=where, textcoords="offset points", fontsize=6)
    key = "\n".join(f"{number}  {label}" for number, (_, label, _, _) in enumerate(named, 1))
    axes.text(1.02, 1, f"eva_fast\n{key}", transform=axes.transAxes, va="top", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity (counted FLOP / counted byte)")
    axes.set_ylabel("FLOP/s (counted / measured time)")
    axes.set_title(data["machine"]["device"], fontsize=9, loc="left")
    axes.legend(loc="lower right", fontsize=7)
    return figure
