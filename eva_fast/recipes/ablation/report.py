"""The ablation's tables as JSON, Markdown and a figure."""

import json
import statistics
from pathlib import Path
from typing import Any

from eva_fast.evaluation.figures import pyplot
from eva_fast.files import atomic_write
from eva_fast.recipes.ablation.budget import POINTS, Budget
from eva_fast.recipes.ablation.plan import Plan
from eva_fast.recipes.ablation.rows import TABLES, Row

NAMES = {"knn": "k-NN", "linear": "linear"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write(out: Path, found: dict[str, Any]) -> None:
    """ablation.json, ablation.md and ablation.png in `out`, each whole or not at all."""
    with atomic_write(out / "ablation.json") as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n")
    with atomic_write(out / "ablation.md") as draft:
        draft.write_text(markdown(found))
    with atomic_write(out / "ablation.png") as draft:
        draw(found, draft)


def tables(
    asked: dict[str, Any], rows: tuple[Row, ...], plan: Plan, scores: dict[str, Any]
) -> dict[str, Any]:
    """What ablation.json holds. scores: {ROW-SEED: what was found}, of finished runs."""
    probes, seeds = asked["probes"], asked["seeds"]
    found = [_row(row, plan.budget, scores, probes) for row in rows]
    random = [score for name, score in plan.beside.items() if name.startswith("random init")]
    others = {name: [s] for name, s in plan.beside.items() if not name.startswith("random init")}
    about = plan.beside["teacher"]
    return {
        "finished": all(row["seeds_done"] == seeds for row in found),
        "flops": plan.budget.flops,
        "seeds": seeds,
        **plan.settled,
        "options": asked["options"],
        "labelled": asked["labelled"],
        **{name: about[name] for name in ("classes", "train", "val", "majority")},
        "probes": probes,
        "spread": "plus or minus the standard deviation over seeds, of one seed or none the binomial "
        "standard error",
        "rows": found,
        "beside": [
            {"features": name, **aggregate(values, probes)}
            for name, values in {**others, "random init": random}.items()
        ],
    }


def _row(row: Row, budget: Budget, scores: dict[str, Any], probes: list[str]) -> dict[str, Any]:
    done = [s for name, s in scores.items() if name.rpartition("-")[0] == row.name]
    steps, cost = budget.steps(row, row), budget.costs[row.name]
    before = sum(budget.spent(row, part) for part in row.trained if part is not row)
    points = []
    for number in range(1, POINTS + 1) if done else ():
        at = steps * number // POINTS
        points.append(
            {
                "part": number / POINTS,
                "images": at * budget.batch[row.name],
                "flops": before + at * budget.batch[row.name] * cost.flops,
                **aggregate([s["points"][str(at)] for s in done], probes),
            }
        )
    return {
        "name": row.name,
        "title": row.title,
        "recipe": row.recipe,
        "steps": steps,
        "flops": before + budget.spent(row, row),
        "tokenizer_flops": before,
        "gflop": {"student": cost.student / 1e9, "teacher": cost.teacher / 1e9},
        "seeds_done": len(done),
        "points": points,
    }


def aggregate(scores: list[dict[str, Any]], probes: list[str]) -> dict[str, Any]:
    """{PROBE: mean over seeds, PROBE_spread: their standard deviation}; of one seed the binomial error
    of its validation images."""
    found: dict[str, Any] = {"seeds": len(scores)}
    for probe in probes:
        values = [score[probe] for score in scores]
        found[probe] = statistics.mean(values)
        several = len(values) > 1
        found[f"{probe}_spread"] = (
            statistics.stdev(values) if several else scores[0][f"{probe}_error"]
        )
        found[f"{probe}_each"] = values
    return found


def markdown(found: dict[str, Any]) -> str:
    """The tables whose rows are there, or one of all rows, and what they were measured on."""
    probes = found["probes"]
    lines = [
        "# Ablation at equal budget",
        "",
        f"{found['flops']:.3g} FLOPs a row and seed (student and teacher, forward and backward, and the "
        f"training of a tokenizer), {found['seeds']} seed{'s' * (found['seeds'] > 1)}; "
        f"{found['model']}, teacher {found['teacher']}, data {found['data']}: "
        f"{found['classes']} classes, {found['train']} training and {found['val']} validation images "
        f"(always the largest class: {found['majority']:.1f} %). Accuracy in percent, "
        f"{found['spread']}.",
    ]
    rows = {row["name"]: row for row in found["rows"]}
    answered: dict[str, tuple[str, ...]] = {
        title: names for title, names in TABLES.items() if set(names) <= set(rows)
    }
    asked = {name for names in answered.values() for name in names}
    rest = [name for name in rows if name not in asked]
    for title, names in (answered or {"Beside each other": ()}).items():
        lines += ["", f"## {title}", "", *_head(probes)]
        for name in (*names, *rest):
            lines += _lines(rows[name], probes)
        for row in found["beside"]:
            lines.append(_line(row["features"], "", "", "", row, probes))
    missing = [f"{row['name']} ({row['seeds_done']} of {found['seeds']})" for row in found["rows"]]
    if not found["finished"]:
        lines += ["", f"Unfinished; seeds so far: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _head(probes: list[str]) -> list[str]:
    names = ["features", "budget", "images", "GFLOP an image", *(NAMES[p] for p in probes)]
    return ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]


def _lines(row: dict[str, Any], probes: list[str]) -> list[str]:
    """The row at half of the budget and at its end."""
    points = [p for p in row["points"] if p["part"] in (0.5, 1.0)]
    each = " + ".join(f"{row['gflop'][what]:.3g}" for what in ("student", "teacher"))
    return [
        _line(row["title"], f"{p['flops'] / row['flops']:.0%}", f"{p['images']:,}", each, p, probes)
        for p in points
    ]


def _line(
    name: str, budget: str, images: str, flops: str, row: dict[str, Any], probes: list[str]
) -> str:
    cells = [f"{row[p]:.1f} ± {row[f'{p}_spread']:.1f}" for p in probes]
    return "| " + " | ".join([name, budget, images, flops, *cells]) + " |"


def draw(found: dict[str, Any], path: Path) -> None:
    """Scores over FLOPs with their spreads, a panel a probe; what stands beside as level lines."""
    plt, probes = pyplot(), found["probes"]
    figure, panels = plt.subplots(
        1, len(probes), figsize=(4.6 * len(probes), 3.6), squeeze=False, layout="constrained"
    )
    for axes, probe in zip(panels[0], probes):
        for row, colour in zip(found["rows"], COLOURS * 3):
            points = row["points"]
            axes.errorbar(
                [p["flops"] for p in points], [p[probe] for p in points],
                [p[f"{probe}_spread"] for p in points],
                color=colour, marker="o", markersize=3, capsize=2, label=row["name"],
            )  # fmt: skip
        for beside, style in zip(found["beside"], ("--", ":", "-.")):
            axes.axhline(
                beside[probe],
                color="#777777",
                linestyle=style,
                linewidth=1,
                label=beside["features"],
            )
        axes.set(xlabel="FLOPs, teacher and tokenizer included", ylabel=f"{NAMES[probe]} %")
    panels[0][-1].legend(fontsize=7)
    figure.savefig(path, format="png")
    plt.close(figure)
