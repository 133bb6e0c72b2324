"""--quick keeps to its time: fewer rounds where cases take long, then fewer cases."""

import time

import pytest

from bench.pace import USUAL, Pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_fast_machine_takes_all_rounds(clock):
    pace = Pace(10, seconds=100.0)
    for _ in range(10):
        assert pace.next() == USUAL
        clock[0] += 2.0


def test_a_slow_one_takes_fewer_and_ends(clock):
    pace, taken = Pace(12, seconds=100.0), []
    for _ in range(12):
        settings = pace.next()
        taken.append(settings)
        clock[0] += 18.0 if settings else 0.0
    assert taken[0] == USUAL and taken[-1] is None
    shortened = [s for s in taken if s and s != USUAL]
    assert shortened and all(s.seconds < USUAL.seconds and s.least_rounds == 2 for s in shortened)
    assert clock[0] <= 100.0 + 100.0 + 18.0
