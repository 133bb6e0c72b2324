"""What comes in at every door is anything at all: how it is made, and what must hold of the outcome."""

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eva_fast.errors import UsageError

EXAMPLES = pytest.mark.parametrize(
    "examples", [25, pytest.param(3000, marks=pytest.mark.soak, id="long")]
)
"""Few and always the same in CI; `pytest -m soak tests/fuzz` tries many, and others each time."""

NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([10**9, 2**31, 2**63, -(2**40), 10**30, 10**400]),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../x", "/etc/passwd", "/dev/zero", "a\0b", "~nobody/x", "\ud800", "x" * 300]
    ),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
"""What JSON can say."""


def changed(sound):
    """Strategy: a JSON value with something else in one or two places."""
    places = list(paths_in(sound))
    one = st.tuples(st.sampled_from(places), st.one_of(PLAIN, st.just(GONE)))
    return st.lists(one, min_size=1, max_size=2).map(lambda changes: with_changes(sound, changes))


GONE = object()


def paths_in(value, path=()):
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def with_changes(sound, changes):
    value = json.loads(json.dumps(sound))
    for (*path, last), new in changes:
        try:
            place = value
            for key in path:
                place = place[key]
            if new is GONE:
                del place[last]
            else:
                place[last] = new
        except (KeyError, IndexError, TypeError):  # the other change was above
            continue
    return value


def text_of(value):
    """As JSON; lone surrogates as bytes that are no UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def damaged(sound: bytes):
    """Strategy: bytes cut off, overwritten, repeated."""
    size = len(sound)
    flips = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=4)

    def damage(drawn):
        end, changes, again = drawn
        data = bytearray(sound)
        for place, value in changes:
            data[place] = value
        return bytes(data[:end]) * again

    return st.tuples(
        st.one_of(st.just(size), st.integers(0, size)), flips, st.sampled_from([1, 1, 1, 2])
    ).map(damage)


class Sentinel:
    """Makes a file when it is unpickled: the proof that something ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def payloads(victim: Path):
    """Pickles that run code where anything does."""
    hidden = f"c{os.mkdir.__module__}\nmkdir\n(V{victim}\ntR.".encode()
    return [pickle.dumps(Sentinel(victim), protocol=n) for n in range(6)] + [
        hidden,
        b"\x80\x02" + hidden,
    ]


def tried(strategy, examples, attempt, victim):
    """Runs `attempt` on what the strategy makes. It may end well or with a UsageError of one clear
    message; nothing may have made `victim`."""

    @settings(
        max_examples=examples, derandomize=examples < 100, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def check(value):
        try:
            attempt(value)
        except UsageError as error:
            assert 0 < len(str(error)) < 4000
        assert not victim.exists()

    check()
