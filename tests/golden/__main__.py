"""Checks golden files: each worst error beside its bound. Exit status 1 where one is off, 2 without
a file."""

import sys
import traceback
from pathlib import Path

from tests.golden import check


def main(names: list[str]) -> int:
    if not names:
        print("python -m tests.golden FILE...", file=sys.stderr)
        return 2
    failures = 0
    for name in names:
        try:
            for row in check(name):
                failures += not row.ok
                verdict = "" if row.ok else "  OFF"
                label = f"{Path(name).name}  {row.what}"
                print(f"{label:72} {row.error:9.2e}  bound {row.bound:.0e}{verdict}", flush=True)
        except Exception as error:
            failures += 1
            if not isinstance(error, (ValueError, OSError)):
                traceback.print_exc()
            print(f"{name}: {error}")
    print("all within their bounds" if not failures else f"{failures} off")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
