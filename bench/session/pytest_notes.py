"""pytest plugin (`-p bench.session.pytest_notes`) that notes failures as they come and counts at the
end, and in between, so that tests that are cut off by the time limit have been counted."""

import os
import time
from pathlib import Path

import pytest

from bench.session.notes import Notes

OUT = "EVA_FAST_SESSION_OUT"
_EVERY = 10.0  # seconds between two counts


class Counter:
    def __init__(self, notes: Notes):
        self.notes, self.last = notes, time.monotonic()
        self.counts: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            lines = report.longreprtext.splitlines()
            said = [line[2:] for line in lines if line.startswith("E ")][:6]
            error = "\n".join(said or lines[-3:])[:600]
            self.notes.add("failure", what=report.nodeid, error=error.strip())
        if time.monotonic() - self.last > _EVERY:
            self._count(finished=False)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._count(finished=True)

    def _count(self, finished: bool) -> None:
        self.last = time.monotonic()
        self.notes.add("tests", finished=finished, **self.counts)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of several processes, the one that hears all
        config.pluginmanager.register(Counter(Notes(Path(os.environ[OUT]), "tests")))
