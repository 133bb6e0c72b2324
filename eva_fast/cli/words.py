"""What commands share: how a result is shown, and positional words."""

import json
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from eva_fast.config import Config

POSITIONAL = "positional"
Name = Annotated[str, POSITIONAL]
Paths = Annotated[tuple[Path, ...], POSITIONAL]
NO_OPTIONS = Config()


def show(found: Any, table: Any) -> None:
    """Prints `table`, or `found` as JSON where there is none."""
    if table is None:
        print(json.dumps(found, indent=1, default=str))
    else:
        Console().print(table)
