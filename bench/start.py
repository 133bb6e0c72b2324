"""From starting Python to the end of the first step of `eva-fast pretrain`, part by part.

    python -m bench.start [--again] [OPTIONS OF PRETRAIN]

A process of its own with an empty cache, as on a machine that has never run it: kernels are measured.
--again starts a second one, which finds what the first has kept. What the parts leave over of the
whole is Python itself and the imports of the command line.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CODE = """
import logging, os, sys
from eva_fast.cli.main import read
logging.basicConfig(level=logging.INFO, format="%(message)s")
config = read(["pretrain", *sys.argv[1:]]).arguments()["config"]
from eva_fast.recipes.pretrain import run
run(config, on_step=lambda step: os._exit(0))
"""


def start(words: list[str], cache: Path, out: Path) -> tuple[float, str]:
    """(seconds from starting Python to the end of the first step, what the run says of its parts)."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _CODE, "--out", str(out), *words],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    found = re.search(r"first step after .*", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"the run failed: {done.stderr[-2000:]}")
    return seconds, found[0]


def main(words: list[str]) -> None:
    again = "--again" in words
    words = [word for word in words if word != "--again"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nothing kept", *(["again"] if again else [])):
            seconds, parts = start(words, Path(folder) / "cache", Path(folder) / name)
            print(f"{name}: {seconds:.1f} s; {parts}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
