"""Findings, one JSON object a line, written when they are made: who is killed loses nothing."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Notes:
    """Appends to `FILE` in a folder. Processes may share it: a line is written by one call."""

    out: Path
    stage: str

    def add(self, kind: str, **values: Any) -> None:
        """kind: what the finding is; values: plain JSON values."""
        line = json.dumps({"stage": self.stage, "kind": kind, **values}, default=str) + "\n"
        target = os.open(self.out / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(target, line.encode())
        finally:
            os.close(target)


def read(out: Path) -> list[dict]:
    """All findings so far. A line that was cut off by a kill is left out."""
    path, found = out / FILE, []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
