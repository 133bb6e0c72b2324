"""`python -m bench.session --budget SECONDS --out FOLDER`."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from bench.session import plan, report, runner
from bench.session.plots import Pictures
from eva_fast.errors import UsageError

LEAST = 20.0
"""Seconds below which not even the first stage gets anywhere."""
_ABOUT = """
import json
from bench import machine
header = machine.header()
found = {**header, "rates": machine.sheet(), "slug": machine.slug(header)}
print(json.dumps(found))
"""


def run(budget: float, out: Path) -> list[dict]:
    """Everything within `budget` seconds, into the folder `out`; the outcomes of the stages.

    UsageError where the budget is too short or the folder is not to be written to."""
    begun = time.monotonic()
    if not budget >= LEAST:
        raise UsageError(f"--budget must be at least {LEAST:g} seconds, got {budget:g}")
    out = out.resolve()
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        machine = _machine()
        (out / report.MACHINE).write_text(json.dumps(machine, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None
    pictures = Pictures()

    def tell(out: Path) -> None:
        pictures.draw(out)
        report.write(out)

    try:
        left = budget - (time.monotonic() - begun)
        outcomes = runner.run(plan.stages(machine["kind"] == "cuda"), out, left, tell)
        pictures.finish(out, budget - (time.monotonic() - begun) - 0.5)
        _, page = report.write(out)
    finally:
        pictures.close()
    print(f"\n{report.short(out)}wrote {page}")
    return outcomes


def _machine() -> dict:
    """Asked for in a process of its own: this one never holds the GPU."""
    done = subprocess.run(
        [sys.executable, "-c", _ABOUT], cwd=runner.ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise UsageError(f"PyTorch cannot be asked about this machine: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.session", description=__doc__)
    parser.add_argument("--budget", type=float, default=runner.FULL_BUDGET, help="seconds in all")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder")
    options = parser.parse_args()
    try:
        run(options.budget, options.out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
