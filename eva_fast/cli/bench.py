"""`eva-fast bench report` and `eva-fast bench run`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from eva_fast.errors import UsageError


def report(results: tuple[Path, ...] = (), out: Path = Path("bench/results")) -> None:
    """Turn result files of `pytest bench/ --benchmark` into Markdown and PNG plots.

    Args:
        results: the files; by default every JSON in the folder of --out.
        out: folder for pages and plots.
    """
    _call("bench.report", *map(str, results), "--out", str(out))


def run(budget: float = 600.0, out: Path = Path("bench-results")) -> None:
    """Check and measure everything on this machine, the most valuable first, within a given time.

    Args:
        budget: seconds in all.
        out: folder of the results, which are written as they come.
    """
    _call("bench.session", "--budget", str(budget), "--out", str(out))


def _call(module: str, *words: str) -> None:
    """The benchmarks are no part of the package: a checkout has them."""
    if importlib.util.find_spec("bench") is None and not Path("bench", "report.py").is_file():
        raise UsageError("eva-fast bench works in a checkout of eva_fast, where bench/ lies")
    sys.exit(subprocess.call([sys.executable, "-m", module, *words]))
