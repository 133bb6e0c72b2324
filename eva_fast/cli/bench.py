"""`eva-fast bench report`."""

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
    # The benchmarks are no part of the package: a checkout has them.
    if importlib.util.find_spec("bench") is None and not Path("bench", "report.py").is_file():
        raise UsageError("eva-fast bench works in a checkout of eva_fast, where bench/ lies")
    words = [sys.executable, "-m", "bench.report", *map(str, results), "--out", str(out)]
    sys.exit(subprocess.call(words))
