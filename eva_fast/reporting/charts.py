"""The curves of runs as one Bokeh document: a chart for each quantity, one colour a run.

The document knows no colours: the page's script gives them to whatever has the tag `run:N`, as the page
is light or dark. All charts share one source of numbers a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eva_fast.libraries import library
from eva_fast.reporting.kinds import ACCURACY, LOGGED, Kind, kinds_of
from eva_fast.reporting.run import Run
from eva_fast.reporting.thin import thin

HEIGHT = 240
COLOURS = 8
"""Of page.css; a run beyond them is dotted."""
MOST_MARKS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Where a chart goes, and what it says to who does not see it."""

    root: str
    """Id of its model in the document."""
    title: str
    about: str
    summary: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Charts:
    """All curves of a page."""

    charts: tuple[Chart, ...]
    document: str
    """JSON that may stand in a <script>."""
    axes: dict[str, str]
    """{column of every source: words}, what the horizontal axis can be."""
    thinned: dict[str, int]
    """{run: lines in a point}, of those with more than one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """A run as its glyphs need it. Sources are Bokeh's ColumnDataSource."""

    look: dict[str, Any]
    dash: list[int]
    log: Any
    """`least`, `most` and plain columns of the log; None where it is empty."""
    columns: frozenset[str]
    turns: Any
    skips: Any
    scores: dict[str, Any]
    lines: int


def draw_charts(runs: Sequence[Run]) -> Charts:
    """The curves of runs. UsageError where Bokeh is not installed."""
    need_bokeh()
    from bokeh.core.json_encoder import serialize_json
    from bokeh.document import Document

    longest = max((run.metrics.seconds().max(initial=0) for run in runs), default=0)
    minutes = longest < 2 * 3600
    curves = [_curves(run, number, 60 if minutes else 3600) for number, run in enumerate(runs)]
    document, charts = Document(), []
    for kind in kinds_of(runs):
        plot = _accuracy(kind, curves) if kind in ACCURACY else _logged(kind, runs, curves)
        document.add_root(plot)
        said = " ".join(f"{run.name}: {_said(kind, run)}." for run in runs)
        charts.append(
            Chart(root=plot.id, title=kind.title, about=kind.about, summary=f"{kind.title}. {said}")
        )
    text = serialize_json(document.to_json(deferred=False)).replace("<", "\\u003c")
    return Charts(
        charts=tuple(charts),
        document=text,
        axes={
            "step": "step", "epoch": "epochs", "images": "images seen",
            "time": f"{'minutes' if minutes else 'hours'} of training",
        },
        thinned={run.name: c.lines for run, c in zip(runs, curves) if c.lines > 1},
    )  # fmt: skip


def need_bokeh() -> Any:
    """The library, or a UsageError that says how to install it."""
    return library("bokeh", "'eva-fast[report]'", "report", "it draws the curves")


def script() -> str:
    """Bokeh's own script, for the page to carry: its core, without widgets, tables and formulas."""
    need_bokeh()
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw[:1])


def _curves(run: Run, number: int, unit: float) -> Curves:
    """unit: seconds that the time axis counts in."""
    from bokeh.models import ColumnDataSource

    metrics = run.metrics
    places = _Places(run, unit)
    log, lines, columns = None, 1, frozenset[str]()
    if len(metrics):
        logged = dict(metrics.columns)
        for kind in LOGGED:
            if kind.column in logged:
                logged[kind.column] = logged[kind.column] * kind.scale
        thinned = thin({**logged, **places.axes})
        lines, columns = thinned.lines, frozenset(logged)
        data = {name: thinned.mean[name] for name in places.axes}
        data |= {_y(name): _small(thinned.mean[name]) for name in logged}
        if lines > 1:
            data |= {_y(name) + " least": _small(thinned.least[name]) for name in logged}
            data |= {_y(name) + " most": _small(thinned.most[name]) for name in logged}
        log = ColumnDataSource(data)
    turns = [*run.resumes(), *(step for step, _ in metrics.rewinds())][:MOST_MARKS]
    return Curves(
        look={"name": run.name, "tags": [f"run:{number}"]},
        dash=[] if number < COLOURS else [2, 3],
        log=log,
        columns=columns,
        turns=ColumnDataSource(places.of(turns)) if turns else None,
        skips=_skips(run, places),
        scores={
            kind.column: ColumnDataSource(_scores(run, kind.column, places))
            for kind in ACCURACY
            if run.scores(kind.column)
        },
        lines=lines,
    )


class _Places:
    """Steps of a run on every horizontal axis."""

    def __init__(self, run: Run, unit: float):
        metrics, self.batch_size = run.metrics, run.batch_size
        step = metrics.columns.get("step", np.empty(0))
        self.axes = {
            "step": step,
            "epoch": metrics.columns.get("epoch", np.full(len(step), np.nan)),
            "images": step * self.batch_size,
            "time": metrics.seconds() / unit,
        }

    def of(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        at = np.array(steps, np.float64)
        found = {"step": at, "images": at * self.batch_size}
        order = np.argsort(self.axes["step"], kind="stable")
        for axis in ("epoch", "time"):
            found[axis] = np.full(len(at), np.nan)
            if len(order):
                found[axis] = np.interp(at, self.axes["step"][order], self.axes[axis][order])
        return found


def _skips(run: Run, places: _Places) -> Any:
    """Where steps were skipped, at the height of the loss there; None where none was."""
    from bokeh.models import ColumnDataSource

    lines = [line for line, _ in run.metrics.skipped()][-MOST_MARKS:]
    if not lines or not run.metrics.has("loss"):
        return None
    loss = run.metrics.columns["loss"]
    known = np.flatnonzero(np.isfinite(loss))
    at = places.of(run.metrics.columns["step"][lines].tolist())
    return ColumnDataSource({**at, "y": np.interp(lines, known, loss[known])})


def _scores(run: Run, probe: str, places: _Places) -> dict[str, np.ndarray]:
    lines = run.scores(probe)
    score = np.array([line[probe] for line in lines])
    error = np.array([line.get(f"{probe}_error", 0.0) for line in lines])
    at = places.of([line["step"] for line in lines])
    return {**at, "y": score, "low": score - error, "high": score + error, "error": error}


def _y(column: str) -> str:
    """The name of a column in a source, where no other and no sign of Bokeh's formats is."""
    return f"y {column.encode(errors='surrogatepass').hex()}"


def _small(values: np.ndarray) -> np.ndarray:
    """Half the bytes: no screen shows more digits."""
    return values.astype(np.float32)


def _said(kind: Kind, run: Run) -> str:
    """A curve in words."""
    if kind in ACCURACY:
        known = np.array([line[kind.column] for line in run.scores(kind.column)])
    else:
        known = run.metrics.columns.get(kind.column, np.empty(0)) * kind.scale
    known = known[np.isfinite(known)]
    return f"from {known[0]:.4g} to {known[-1]:.4g}" if len(known) else "none"


def _empty(kind: Kind, wide: bool) -> Any:
    """A figure without curves."""
    from bokeh.models import BasicTicker, DataRange1d, NumeralTickFormatter, PrintfTickFormatter
    from bokeh.plotting import figure

    y_range = DataRange1d(only_visible=True, range_padding=0.08)
    if kind.from_zero:
        y_range.start = 0
    plot = figure(
        height=HEIGHT, sizing_mode="stretch_width", min_width=0, toolbar_location=None,
        x_range=DataRange1d(only_visible=True, range_padding=0.01), y_range=y_range,
        y_axis_type="log" if wide else "linear",
        tools="xbox_zoom,reset", active_drag=None, background_fill_color=None,
        border_fill_color=None, outline_line_color=None, min_border_right=14, min_border_top=8,
    )  # fmt: skip
    plot.xgrid.visible = False
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = axis.major_tick_line_color = None
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[00]a")
    plot.xaxis.axis_label = "step"
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=5)
    plot.yaxis.axis_line_color = None
    if not wide:
        plot.yaxis.ticker = BasicTicker(desired_num_ticks=5)
    if kind.digits.startswith("%"):
        plot.yaxis.formatter = PrintfTickFormatter(format=kind.digits)
    return plot


def _wide(kind: Kind, runs: Sequence[Run]) -> bool:
    """Whether positive values lie so far apart that a linear axis would show the largest alone."""
    if kind.from_zero:
        return False
    values = [run.metrics.columns[kind.column] for run in runs if run.metrics.has(kind.column)]
    known = np.concatenate([v[np.isfinite(v)] for v in values])
    return bool(known.min() > 0 and known.max() > 30 * np.quantile(known, 0.9))


def _logged(kind: Kind, runs: Sequence[Run], curves: Sequence[Curves]) -> Any:
    from bokeh.models import HoverTool

    plot, drawn, y = _empty(kind, _wide(kind, runs)), [], _y(kind.column)
    beside = kind.beside if any(kind.beside in c.columns for c in curves) else None
    for c in curves:
        if kind.column not in c.columns:
            continue
        if c.lines > 1:
            plot.varea(
                x="step", y1=f"{y} least", y2=f"{y} most", source=c.log, fill_alpha=0.2, **c.look
            )
        if beside in c.columns:
            plot.line(
                x="step",
                y=_y(str(beside)),
                source=c.log,
                line_dash=[4, 4],
                line_width=1.2,
                **c.look,
            )
        if len(c.log.data["step"]) == 1:
            plot.scatter(x="step", y=y, source=c.log, size=7, **c.look)
        drawn.append(
            plot.line(x="step", y=y, source=c.log, line_width=1.8, line_dash=c.dash, **c.look)
        )
        if c.turns is not None:
            plot.vspan(x="step", source=c.turns, line_dash=[1, 3], line_width=1.4, **c.look)
        if c.skips is not None and kind.column == "loss":
            plot.scatter(
                x="step", y="y", source=c.skips, marker="x", size=11, line_width=2.5, **c.look
            )
    tips = [("run", "$name"), ("step", "@step{0,0}"), (kind.title, f"@{{{y}}}{{{kind.digits}}}")]
    if beside is not None:
        tips.append(("constant", f"@{{{_y(beside)}}}{{{kind.digits}}}"))
    forms: Any = {f"@{{{y}}}": "printf"} if kind.digits.startswith("%") else {}
    plot.add_tools(
        HoverTool(
            renderers=drawn, tooltips=tips, formatters=forms, mode="vline", line_policy="nearest"
        )
    )
    return plot


def _accuracy(kind: Kind, curves: Sequence[Curves]) -> Any:
    from bokeh.models import HoverTool

    plot, drawn = _empty(kind, False), []
    for c in curves:
        source = c.scores.get(kind.column)
        if source is None:
            continue
        plot.segment(
            x0="step", x1="step", y0="low", y1="high", source=source, line_width=1.4, **c.look
        )
        plot.line(x="step", y="y", source=source, line_width=1.8, line_dash=c.dash, **c.look)
        drawn.append(plot.scatter(x="step", y="y", source=source, size=7, **c.look))
    tips = [("run", "$name"), ("step", "@step{0,0}"), ("accuracy", "@y{0.0} ± @error{0.0} %")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tips, mode="vline"))
    return plot


__all__ = ["COLOURS", "Chart", "Charts", "draw_charts", "need_bokeh", "script"]
