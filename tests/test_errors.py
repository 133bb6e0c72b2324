"""What other libraries' errors say, in one line."""

import pytest

from eva_fast.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n one\ntwo"), "one"),
        (AssertionError(), "AssertionError"),
        (OSError("x" * 500), "x" * 200),
    ],
)
def test_one_line_also_of_an_error_that_says_nothing(error, line):
    assert first_line(error) == line
