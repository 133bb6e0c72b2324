"""The result of `evaluate` as a table for a person."""

from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {"knn": "k-NN %", "linear": "linear %"}


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints accuracies with the best of the rows before the teacher in bold."""
    table = Table(
        title=f"{result['data']}: {len(result['classes'])} classes, {result['train']} training and "
        f"{result['val']} validation images",
        caption=f"always the largest class: {result['majority']:.1f} %   "
        f"weights: {result['weights']}",
    )
    table.add_column("features")
    table.add_column("width", justify="right")
    for probe in result["probes"]:
        table.add_column(COLUMNS[probe], justify="right")
    own = [row for row in result["results"] if not row["features"].startswith("teacher ")]
    best = {probe: max(row[probe] for row in own) for probe in result["probes"]}
    for row in result["results"]:
        cells = [
            f"[bold]{row[p]:.1f}[/bold]" if row in own and row[p] == best[p] else f"{row[p]:.1f}"
            for p in result["probes"]
        ]
        table.add_row(row["features"], str(row["dim"]), *cells)
    (console or Console()).print(table)
