"""An `Evaluation` as a table for a person."""

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table

if TYPE_CHECKING:
    from eva_fast.evaluation.result import Evaluation

COLUMNS = {"knn": "k-NN %", "linear": "linear %"}


def render(found: "Evaluation") -> Group:
    """Accuracies and their errors, the best of the rows before the teacher in bold, and what the
    student is below, as something rich can print."""
    table = Table(
        title=f"{found.data}: {len(found.classes)} classes, {found.train} training and "
        f"{found.val} validation images",
        caption="\u00b1 one binomial standard error   "
        f"always the largest class: {found.majority:.1f} %   "
        f"weights: {found.weights}",
    )
    table.add_column("features")
    table.add_column("width", justify="right")
    for probe in found.probes:
        table.add_column(COLUMNS[probe], justify="right")
    own = [row for row in found.rows if not row.features.startswith("teacher ")]
    best = {probe: max(row.accuracy[probe] for row in own) for probe in found.probes}
    for row in found.rows:
        cells = []
        for p in found.probes:
            cell = f"{row.accuracy[p]:.1f} \u00b1 {row.error[p]:.1f}"
            bold = row in own and row.accuracy[p] == best[p]
            cells.append(f"[bold]{cell}[/bold]" if bold else cell)
        table.add_row(row.features, str(row.dim), *cells)
    return Group(table, *found.verdicts)


def to_text(found: "Evaluation", width: int = 100) -> str:
    """The same as plain text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()
