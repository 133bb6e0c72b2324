"""Other libraries: imported where somebody asks for them, one clear error where they are not there."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from eva_fast.errors import UsageError


def library(
    name: str, package: str, asked: str, otherwise: str = "or give a local weight file"
) -> Any:
    """Import an optional library, or say how to install it. asked: what needs it; otherwise: what to do
    without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{asked!r} needs the library {package}: pip install {package}; {otherwise}"
        ) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that a library does not know, with the nearest ones it does."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:8]
    return UsageError(f"unknown {kind} {name!r}; for example: {', '.join(near)}")
