"""Which quantities of a run have a chart, and what it says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from eva_fast.reporting.run import PROBES, Run

MOST_OWN = 12
"""Charts of what an objective logs beside the usual."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A quantity of metrics.jsonl, or of probes.jsonl."""

    column: str
    title: str
    about: str
    digits: str = "0.000"
    """How Bokeh writes a value of it: as numerals, or as printf does."""
    beside: str | None = None
    """What is drawn with it, dashed."""
    from_zero: bool = False
    scale: float = 1.0


LEARNING = (
    Kind(
        column="loss", title="Loss", beside="baseline_loss",
        about="Dashed: a constant prediction.",
    ),
    Kind(column="gain", title="Gain over a constant", about="0: nothing learned yet."),
)  # fmt: skip
ACCURACY = tuple(
    Kind(
        column=probe, title=f"Accuracy, {word}", digits="0.0",
        about="Percent right, with the standard error.",
    )
    for probe, word in PROBES.items()
)  # fmt: skip
TRAINING = (
    Kind(column="lr", title="Learning rate", about="As it is used.", digits="%.3g", from_zero=True),
    Kind(column="grad_norm", title="Gradient norm", about="Before clipping.", digits="0.00"),
    Kind(
        column="images_per_second", title="Throughput", about="Images a second.", digits="0,0.0",
        from_zero=True,
    ),
    Kind(
        column="data_wait", title="Waiting for data", about="Percent of the time.", digits="0.0",
        from_zero=True, scale=100.0,
    ),
    Kind(
        column="host_ms", title="Host time", digits="0,0.0", from_zero=True,
        about="Milliseconds that the CPU takes to make a step.",
    ),
    Kind(
        column="own_ms", title="Own work of the slowest process", digits="0,0.0", from_zero=True,
        about="Milliseconds a step.",
    ),
    Kind(
        column="waits_for_others", title="Waiting for other processes", digits="0.0",
        about="Percent of the time, of the process that waits longest.", from_zero=True, scale=100.0,
    ),
)  # fmt: skip
LOGGED = (*LEARNING, *TRAINING)
_NO_CHART = {
    "step", "epoch", "seconds", "seconds_left", "skipped_steps", "bad_images", "baseline_loss",
    "data_waits",
}  # fmt: skip


def kinds_of(runs: Sequence[Run]) -> list[Kind]:
    """Those that any of the runs has numbers of: of learning first, what an objective logs last."""
    known = {kind.column for kind in LOGGED} | _NO_CHART
    names = dict.fromkeys(name for run in runs for name in run.metrics.columns if name not in known)
    own = [Kind(column=n, title=_words(n), about="As the objective logs it.") for n in names]
    return [
        *_with_numbers(LEARNING, runs),
        *(kind for kind in ACCURACY if any(run.scores(kind.column) for run in runs)),
        *_with_numbers(TRAINING, runs),
        *_with_numbers(own, runs)[:MOST_OWN],
    ]


def _with_numbers(kinds: Sequence[Kind], runs: Sequence[Run]) -> list[Kind]:
    return [kind for kind in kinds if any(run.metrics.has(kind.column) for run in runs)]


def _words(name: str) -> str:
    """`kept_codes` -> "Kept codes"; letters, digits and spaces alone: Bokeh finds formulas in text."""
    words = "".join(c if c.isalnum() else " " for c in name[:60]).strip()
    return words[:1].upper() + words[1:]


__all__ = ["ACCURACY", "LOGGED", "Kind", "kinds_of"]
