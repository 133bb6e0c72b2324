"""Stages run one after the other within a budget, whatever becomes of each."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.session import notes
from bench.session.runner import ROOT, Stage, run

NOTE = "from bench.session.notes import Notes; from pathlib import Path; import sys, os, time, signal; "
NOTE += "notes = Notes(Path(sys.argv[2]), sys.argv[3]); notes.add('finding', value=1); "


def stage(name, code="", seconds=30.0, least=0.0):
    def command(limit, out):
        return [sys.executable, "-c", NOTE + code, str(limit), str(out), name]

    return Stage(name=name, seconds=seconds, least=least, command=command, whole=True)


FATES = {
    "good": ("", "done"),
    "raises": ("raise RuntimeError('no')", "failed"),
    "hangs": ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", "out of time"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "crashes": ("os.abort()", "killed"),
}


def test_a_stage_costs_nothing_but_itself(tmp_path):
    """Each fate, then a good stage; everybody's findings are kept."""
    stages = [
        stage(name, code, seconds=2.0 if name == "hangs" else 30.0)
        for name, (code, _) in FATES.items()
    ]
    reported = []
    start = time.monotonic()
    found = run([*stages, stage("last")], tmp_path, 60.0, reported.append, say=lambda _: None)
    assert time.monotonic() - start < 40
    outcomes = {o["name"]: o["outcome"] for o in found}
    assert outcomes == {name: fate for name, (_, fate) in FATES.items()} | {"last": "done"}
    assert reported == [tmp_path] * len(found)
    lines = notes.read(tmp_path)
    assert [f["stage"] for f in lines if f["kind"] == "finding"] == list(outcomes)
    assert [f["name"] for f in lines if f["kind"] == "outcome"] == list(outcomes)
    assert "RuntimeError: no" in (tmp_path / "logs" / "raises.txt").read_text()


def test_it_ends_in_time_and_begins_nothing_that_would_not(tmp_path):
    start = time.monotonic()
    stages = [stage("long", "time.sleep(600)", seconds=600), stage("late", least=5.0)]
    found = run(stages, tmp_path, 12.0, say=lambda _: None)
    assert time.monotonic() - start < 12
    assert [o["outcome"] for o in found] == ["out of time", "not begun"]


def test_what_a_stage_started_ends_with_it(tmp_path):
    """A child of the stage would otherwise go on and disturb all that is timed after it."""
    code = "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import time; "
    code += "time.sleep(600)']); notes.add('child', pid=child.pid)"
    run([stage("parent", code)], tmp_path, 30.0, say=lambda _: None)
    (pid,) = [f["pid"] for f in notes.read(tmp_path) if f["kind"] == "child"]
    for _ in range(50):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the stage's child still runs")


def test_a_report_that_fails_stops_nothing(tmp_path):
    said = []

    def broken(out):
        raise ValueError("no table")

    found = run([stage("a"), stage("b")], tmp_path, 60.0, broken, said.append)
    assert [o["outcome"] for o in found] == ["done", "done"]
    assert said.count("no report: ValueError: no table") == 2


def test_terminated_it_ends_its_stage_and_reports(tmp_path):
    code = f"""
from tests.bench.session.test_runner import stage
from bench.session.runner import run
from pathlib import Path
out = Path({str(tmp_path)!r})
run([stage("long", "time.sleep(600)", seconds=600)], out, 600, lambda out: (out / "r").touch())
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if any(f["kind"] == "finding" for f in notes.read(tmp_path)):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0
    assert (tmp_path / "r").exists()


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    notes.Notes(tmp_path, "a").add("whole", value=[1, 2])
    with (tmp_path / notes.FILE).open("a") as file:
        file.write('{"stage": "a", "kind": "cut')
    assert notes.read(tmp_path) == [{"stage": "a", "kind": "whole", "value": [1, 2]}]


def test_a_smaller_budget_shortens_stages_but_those_that_must_be_whole():
    given = dict(name="a", seconds=60.0, least=20.0, command=lambda limit, out: [])
    assert [Stage(**given).limit(b) for b in (1200, 600, 300, 60)] == [120, 60, 30, 20]
    assert [Stage(**given, whole=True).limit(b) for b in (1200, 300)] == [120, 60]
