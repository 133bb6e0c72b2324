"""Scores of runs' checkpoints over their minutes, as a table and a figure: of one run, or of the mean of
several that differ by their seeds.

    eva-fast pretrain --out runs/0 --seed 0 --epochs 150 --checkpoint-every 1250 --keep-checkpoints 20
    python -m bench.learning_curve runs/0 runs/1 --out docs/images/learning-curve

Writes OUT.json and OUT.png, and prints the table. Minutes are the runs' own (`seconds` of
metrics.jsonl): training alone, on what the machine had left for it.
"""

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eva_fast.evaluation import Evaluation, evaluate
from eva_fast.evaluation.figures import pyplot
from eva_fast.evaluation.students import load_checkpoint
from eva_fast.train.checkpoint import steps_in
from eva_fast.weights import write_student

PROBES = {"knn": ("k-NN", "#0072B2", "o"), "linear": ("linear", "#D55E00", "s")}
STYLES = {"random init": ":", "8x8 pixels": "--"}

log = logging.getLogger(__name__)


def measure(run: Path, data: str = "builtin") -> dict[str, Any]:
    """Scores on `data`, as `eva-fast eval --data` takes it.

    Returns {"points": [{"step", "minutes", "loss", "gain", probe: percent}], "beside": rows of
    random initial values, pixels and the run's teacher}. ValueError where no checkpoint has a log
    line.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = {line["step"]: line for line in lines}
    folders = {
        int(folder.name.rpartition("_")[2]): folder for folder in steps_in(run / "checkpoints")
    }
    steps = sorted(known.keys() & folders.keys())
    if not steps:
        raise ValueError(f"{run}: no checkpoint of a step that metrics.jsonl has a line for")
    points = []
    for step in steps:
        student = _probe(folders[step], data).student.accuracy
        points.append(
            {
                "step": step,
                "minutes": known[step]["seconds"] / 60,
                "loss": known[step]["loss"],
                "gain": known[step]["gain"],
                **{probe: student[probe] for probe in PROBES},
            }
        )
        log.info("step %d: %s", step, {probe: round(student[probe], 1) for probe in PROBES})
    whole = evaluate(run, data)
    return {"points": points, "beside": [row.to_dict() for row in whole.rows[1:]], "val": whole.val}


def _probe(checkpoint: Path, data: str) -> Evaluation:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.safetensors"
        write_student(load_checkpoint(checkpoint, torch.device("cpu")), file)
        return evaluate(file, data, teacher="none")


def averaged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gave of several runs, as one: at the steps that all have, the mean of each value,
    and PROBE_spread, the standard deviation of a probe over them (0 of one)."""
    shared = set.intersection(*({point["step"] for point in run["points"]} for run in runs))
    points = []
    for step in sorted(shared):
        each = [next(p for p in run["points"] if p["step"] == step) for run in runs]
        mean = {name: statistics.mean(p[name] for p in each) for name in each[0]}
        spread = {
            f"{probe}_spread": statistics.stdev(p[probe] for p in each) if len(each) > 1 else 0.0
            for probe in PROBES
        }
        points.append({**mean, "step": step, **spread})
    return {**runs[0], "points": points, "runs": list(runs)}


def draw(measured: dict[str, Any], path: Path) -> Path:
    """Both probes over minutes, beside random initial values and pixels."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4))
    minutes = [point["minutes"] for point in measured["points"]]
    for probe, (name, color, marker) in PROBES.items():
        scores = [point[probe] for point in measured["points"]]
        spread = [point[f"{probe}_spread"] for point in measured["points"]]
        axes.errorbar(
            minutes, scores, spread, color=color, marker=marker, capsize=2, label=f"student, {name}"
        )
        for row in measured["beside"]:
            if row["features"] in STYLES:
                label = f"{row['features']}, {name}"
                style = STYLES[row["features"]]
                axes.axhline(row[probe], color=color, linestyle=style, linewidth=1, label=label)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("accuracy, %")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, bbox_inches="tight", dpi=150, metadata={"Software": None})
    plt.close(figure)
    return path


def table(measured: dict[str, Any]) -> str:
    """Markdown: a line a step, scores with their standard deviation over the runs."""
    lines = ["| step | minutes | gain | k-NN | linear |", "| --- | --- | --- | --- | --- |"]
    for p in measured["points"]:
        scores = (f"{p[probe]:.1f} ± {p[f'{probe}_spread']:.1f}" for probe in PROBES)
        cells = (f"{p['step']:,}", f"{p['minutes']:.0f}", f"{p['gain']:.3f}", *scores)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "run",
        type=Path,
        nargs="+",
        help="folder of a run with its checkpoints; of several the mean",
    )
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .json, .png")
    parser.add_argument(
        "--data", default="builtin", help="labelled images, as eva-fast eval takes them"
    )
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measured = averaged([measure(run, asked.data) for run in asked.run])
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    draw(measured, asked.out.with_suffix(".png"))
    print(table(measured))


if __name__ == "__main__":
    main()
