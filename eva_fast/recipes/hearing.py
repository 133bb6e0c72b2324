"""What a run logs is heard also where nobody has set up logging."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heard(everything: bool = True) -> Iterator[None]:
    """Where nobody has set up logging, what the run says goes to stderr for its time; a caller with
    handlers (a NullHandler too) hears it as set up there. Without `everything` only errors are told:
    another process of the run says the rest."""
    package = logging.getLogger("eva_fast")
    if not everything:
        level = package.level
        package.setLevel(logging.ERROR)
        try:
            yield
        finally:
            package.setLevel(level)
        return
    if package.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), package.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    package.addHandler(handler)
    if level == logging.NOTSET:
        package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
