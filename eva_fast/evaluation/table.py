"""The result of `evaluate` as a table for a person."""

from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {"knn": "k-NN %", "linear": "linear %"}


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints accuracies and their errors, the best of the rows before the teacher in bold, and
    what the student is below."""
    table = Table(
        title=f"{result['data']}: {len(result['classes'])} classes, {result['train']} training and "
        f"{result['val']} validation images",
        caption="\u00b1 one binomial standard error   "
        f"always the largest class: {result['majority']:.1f} %   "
        f"weights: {result['weights']}",
    )
    table.add_column("features")
    table.add_column("width", justify="right")
    for probe in result["probes"]:
        table.add_column(COLUMNS[probe], justify="right")
    own = [row for row in result["results"] if not row["features"].startswith("teacher ")]
    best = {probe: max(row[probe] for row in own) for probe in result["probes"]}
    for row in result["results"]:
        cells = []
        for p in result["probes"]:
            cell = f"{row[p]:.1f} \u00b1 {row[p + '_error']:.1f}"
            cells.append(f"[bold]{cell}[/bold]" if row in own and row[p] == best[p] else cell)
        table.add_row(row["features"], str(row["dim"]), *cells)
    console = console or Console()
    console.print(table)
    for sentence in result["verdicts"]:
        console.print(sentence)
