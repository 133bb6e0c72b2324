"""`report()`: from runs' folders to one page."""

import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.errors import UsageError
from eva_fast.files import atomic_write, writing_to
from eva_fast.keywords import AnyPath
from eva_fast.libraries import library
from eva_fast.options import shown, user_path
from eva_fast.reporting import charts, tables
from eva_fast.reporting.pictures import FRAMES, Pictures, read_pictures
from eva_fast.reporting.run import Run, read_runs
from eva_fast.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = Path(__file__).parent / "page"
NAME = "report.html"
MOST_RUNS = 2 * charts.COLOURS
"""That one can tell apart in a chart: each colour once plain and once dotted."""


def report(runs: AnyPath | Sequence[AnyPath], out: AnyPath | None = None) -> Path:
    """Writes one HTML page about a run, or about several beside each other: curves, the pictures over
    time, what differs, kernels and why they were chosen, environment and options. It opens in any
    browser, fetches nothing, and may be of runs that are under way.

    Args:
        runs: a run's folder, or several.
        out: the page; by default report.html in the run's folder, of several in the one they share.

    Returns:
        The page's path.

    Raises:
        ValueError, FileNotFoundError: there is no such folder, it is not a run's, its files are damaged,
            the page cannot be written, or Jinja2 or Bokeh is not installed (`eva-fast[report]`).
    """
    folders = [runs] if isinstance(runs, str | os.PathLike) else _listed(runs)
    if not folders:
        raise UsageError("a report needs a run's folder, or several")
    templates = _templates()
    charts.need_bokeh()
    found = read_runs(folders)
    if len(found) > MOST_RUNS:
        raise UsageError(
            f"a page tells at most {MOST_RUNS} runs apart, got {len(found)}: give fewer"
        )
    path = user_path(out) if out is not None else _usual_place(found)
    page = templates.get_template("page.html.jinja").render(**_contents(found))
    with writing_to(path):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, the page is a file")
        with atomic_write(path) as draft:
            # half a character of a file's name or of its text cannot be written as it is
            draft.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _listed(runs: Any) -> list[Any]:
    folders = list(runs) if isinstance(runs, Iterable) else [runs]
    for folder in folders:
        if not isinstance(folder, str | os.PathLike):
            raise UsageError(f"runs is a run's folder, or a list of them, got {shown(folder)}")
    return folders


def _usual_place(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder / NAME
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / NAME


def _templates() -> "Environment":
    jinja2 = library("jinja2", "'eva-fast[report]'", "report", "it fills in the page")
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def _contents(runs: Sequence[Run]) -> dict[str, Any]:
    """What the template is filled with."""
    drawn = charts.draw_charts(runs)
    pictures = [_pictures(run, len(runs)) for run in runs]
    rows = tables.options(runs)
    several = len(runs) > 1
    return {
        "runs": runs,
        "title": f"{len(runs)} runs compared" if several else runs[0].name,
        "subtitle": _subtitle(runs),
        "several": several,
        "tables": tables,
        "differing": [row for row in rows if (not row.same if several else row.marked)],
        "options": rows,
        "environments": tables.environments(runs),
        "kernels": tables.kernels(runs),
        "pictures": pictures,
        "steps": sorted({picture.step for found in pictures for picture in found.shown}),
        "charts": drawn,
        "colours": charts.COLOURS,
        "notes": _notes(runs, drawn, pictures),
        "style": (PAGE / "page.css").read_text(encoding="utf-8"),
        "script": (PAGE / "page.js").read_text(encoding="utf-8"),
        "bokeh": charts.script() if drawn.charts else "",
        "version": __version__,
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _pictures(run: Run, runs: int) -> Pictures:
    step = run.metrics.last("step")
    return read_pictures(run.folder, None if step is None else int(step), max(2, FRAMES // runs))


def _subtitle(runs: Sequence[Run]) -> str:
    """What all of them have in common of model, teacher and objective."""
    said = []
    for name in ("model", "teacher", "objective"):
        values = {str(run.options.get(name)) for run in runs}
        if len(values) == 1 and "None" not in values:
            said.append(f"{name} {values.pop()[:80]}")
    return " · ".join(said)


def _notes(runs: Sequence[Run], drawn: charts.Charts, pictures: Sequence[Pictures]) -> list[str]:
    """What the page leaves out, and what was wrong with the files."""
    notes = [
        f"The curves of {name} are thinned: a point is the mean of {lines:,} log lines, the band around "
        "it reaches from the least to the most of them."
        for name, lines in drawn.thinned.items()
    ]
    for run, found in zip(runs, pictures):
        left = found.there - len(found.unreadable)
        if len(found.shown) < left:
            notes.append(
                f"Of the {found.there:,} pictures of {run.name} {len(found.shown)} are shown."
            )
        if found.unreadable:
            notes.append(
                f"Pictures of {run.name} that cannot be read: {', '.join(found.unreadable)}."
            )
        if run.metrics.half_written:
            notes.append(
                f"The last line of {run.name}'s metrics.jsonl is not whole yet, and left out."
            )
        if run.metrics.unreadable:
            notes.append(
                f"{run.metrics.unreadable:,} lines of {run.name}'s metrics.jsonl cannot be read."
            )
    return notes


__all__ = ["report"]
