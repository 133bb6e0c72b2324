"""How many blocks a file's names speak of."""

from __future__ import annotations

import re
from collections.abc import Collection

from eva_fast.errors import UsageError


def count_blocks(names: Collection[str], pattern: str) -> int:
    """One more than the highest number that `pattern` finds as its first group at a name's beginning; 0
    where it finds none. UsageError for a number that no file of so few names can have: networks are
    built by it."""
    found = [m[1] for name in names if (m := re.match(pattern, name))]
    for number in found:
        if len(number) > 9 or int(number) >= len(names):
            raise UsageError(
                f"its names speak of block {number[:20]}, and it has {len(names)} tensors"
            )
    return 1 + max(map(int, found), default=-1)
