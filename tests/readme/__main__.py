"""Types everything that README.md tells people to type, in a fresh clone and a fresh environment.

    python3 -m tests.readme [--without-tests]

A line for each command, with its seconds; exit status 1 where one failed, or where the first run took
longer than five minutes, left no picture or gained less than 0.12 over the constant prediction. Files
that README calls by name are small ones made here, and long runs are cut (`commands.SMALL`).
--without-tests: pytest only collects. Needs git, python3 and what the install needs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.readme.commands import README, made_small, readme

FIRST_RUN_SECONDS, FIRST_GAIN = 300, 0.12


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.readme", description=__doc__)
    parser.add_argument("--without-tests", action="store_true", help="pytest only collects")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        home = Path(folder) / "eva_fast"
        subprocess.run(["git", "clone", "-q", str(README.parent), str(home)], check=True)
        return 1 if Typist(home, chosen.without_tests).type_all() else 0


class Typist:
    """Types commands into a shell in a clone, and keeps what went wrong."""

    def __init__(self, home: Path, without_tests: bool):
        self.home, self.without_tests = home, without_tests
        self.faults: list[str] = []
        # of a person who has just logged in: no kept kernels, no environment of this process
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        programs = f"{home / '.venv' / 'bin'}:{os.environ['PATH']}"
        self.environment = {**kept, "PATH": programs, "XDG_CACHE_HOME": str(home.parent / "cache")}

    def type_all(self) -> list[str]:
        """Everything in order. Returns what went wrong."""
        first, *others = readme()
        for command in first.commands():
            seconds, output = self.type(command)
        self.check_first_run(seconds, output)
        for number, block in enumerate(others):
            if number == 1:  # behind the two that install
                self.type("python -m tests.pages.materials")
            for command in block.commands():
                if self.without_tests and "-m pytest" in command:
                    command += " --collect-only -q"
                self.type(made_small(command), block.language)
        for fault in self.faults:
            print(f"FAULT {fault}", flush=True)
        return self.faults

    def type(self, command: str, language: str = "bash") -> tuple[float, str]:
        """(seconds, what it printed); prints a line, and the end of the output of what failed."""
        words = ["python", "-c", command] if language == "python" else ["bash", "-c", command]
        start = time.monotonic()
        done = subprocess.run(
            words, cwd=self.home, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        seconds = time.monotonic() - start
        shown = command if language == "bash" else "python: " + " ".join(command.split())
        print(f"{'ok  ' if done.returncode == 0 else 'FAIL'} {seconds:7.1f} s  {shown}", flush=True)
        if done.returncode:
            self.faults.append(f"exit status {done.returncode}: {shown}")
            print("\n".join(done.stdout.splitlines()[-30:]), flush=True)
        return seconds, done.stdout

    def check_first_run(self, seconds: float, output: str) -> None:
        """What the first command promises: minutes, a picture, a student that learned."""
        if seconds > FIRST_RUN_SECONDS:
            self.faults.append(f"the first run took {seconds:.0f} s of {FIRST_RUN_SECONDS}")
        paths = dict(re.findall(r"^(picture|metrics) +(.*)$", output, re.MULTILINE))
        if not paths or not (self.home / paths["picture"]).is_file():
            self.faults.append("the first run left no picture")
            return
        last = json.loads((self.home / paths["metrics"]).read_text().splitlines()[-1])
        print(f"     gain {last['gain']:.3f} over the constant prediction, in {seconds:.0f} s")
        if last["gain"] < FIRST_GAIN:
            self.faults.append(f"the first run gained {last['gain']:.3f}, less than {FIRST_GAIN}")
        for command in re.findall(r"^ +(eva-fast eval .*)$", output, re.MULTILINE):
            self.type(command)  # the first of what the run says comes next


if __name__ == "__main__":
    sys.exit(main())
