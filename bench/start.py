"""From starting Python to the end of the first step of `eva-fast pretrain`, part by part.

    python -m bench.start [--again] [--against CHECKOUT] [--pairs N] [OPTIONS OF PRETRAIN]

A process of its own with an empty cache, as on a machine that has never run it: kernels are measured.
What the parts leave over of the whole is Python itself.

--again starts a second one, which finds what the first has kept. --against starts the same in another
checkout (its C++ built there), in turn with this one, N times (3 unless said), and compares the
processor's seconds pair by pair: on a busy machine the clock says little.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from eva_fast.cli.main import read
from eva_fast.options import plain

HERE = Path(__file__).resolve().parents[1]
_CODE = """
import json, logging, os, resource, sys
from eva_fast.config import Config
logging.basicConfig(level=logging.INFO, format="%(message)s")
from eva_fast.recipes.pretrain import run

def end(step):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("used", used.ru_utime + used.ru_stime, used.ru_maxrss, flush=True)
    os._exit(0)

run(Config.from_options(json.loads(sys.argv[1])), on_step=end)
"""


class Start(NamedTuple):
    """What starting took; of the processor and memory without the loader's workers."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    parts: str
    """What the run says of its parts; "" where it says nothing."""


def start(options: dict[str, Any], cache: Path, out: Path, checkout: Path = HERE) -> Start:
    """Starts a run of the code in `checkout` and ends it after its first step."""
    path = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(path)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps({**options, "out": str(out)})],
        env=environment, cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    used = re.search(r"^used (\S+) (\S+)$", done.stdout, re.MULTILINE)
    if done.returncode or used is None:
        raise RuntimeError(f"the run failed: {done.stderr[-2000:]}")
    parts = re.search(r"first step after .*", done.stderr)
    return Start(seconds, float(used[1]), int(used[2]) / 1024, parts[0] if parts else "")


def compare(
    options: dict[str, Any], other: Path, pairs: int, folder: Path
) -> list[tuple[Start, Start]]:
    """(there, here) of runs in turn, each with an empty cache; which is first alternates."""
    found = []
    for pair in range(pairs):
        taken = {}
        for where in (other, HERE)[:: 1 if pair % 2 == 0 else -1]:
            own = folder / f"{pair}-{'here' if where == HERE else 'there'}"
            taken[where] = start(options, own / "cache", own / "run", where)
        found.append((taken[other], taken[HERE]))
    return found


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.start", allow_abbrev=False)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    own, words = parser.parse_known_args(words)
    said = read(["pretrain", *words])
    options = {name: plain(value) for name, value in said.values.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if own.against is not None:
            found = compare(options, own.against.resolve(), own.pairs, folder)
            for name in ("cpu_seconds", "seconds", "peak_mib"):
                there, here = zip(*((getattr(a, name), getattr(b, name)) for a, b in found))
                ratios = [b / a for a, b in zip(there, here)]
                print(
                    f"{name}: there {statistics.median(there):.1f}, here {statistics.median(here):.1f}, "
                    f"ratios {', '.join(f'{r:.2f}' for r in ratios)}"
                )
            return
        for name in ("nothing kept", *(["again"] if own.again else [])):
            took = start(options, folder / "cache", folder / name)
            print(
                f"{name}: {took.seconds:.1f} s ({took.cpu_seconds:.1f} of the processor); {took.parts}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
