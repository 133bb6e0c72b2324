"""`eva-fast report`."""

from pathlib import Path

from eva_fast.cli.words import Paths


def report(
    run: Paths,
    out: Path | None = None,
) -> None:
    """Write one HTML page about a run, or about several beside each other: curves, pictures over time,
    what differs, kernels and why, environment and options. It fetches nothing when it is opened, and
    may be of runs that are under way.

    Args:
        run: a run's folder, or several.
        out: the page; by default report.html in the run's folder, of several in the one they share.
    """
    from eva_fast.reporting.report import report as write

    print(write(run, out))
