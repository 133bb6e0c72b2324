"""A progress line for work on many images."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields a callable for the number of images done.

    The line, or bar where `total` is known, appears only where the work takes over a second; where
    stderr is no terminal, as a line in the log.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns.append(BarColumn())
    columns += [TextColumn("{task.completed:,.0f} images"), TimeElapsedColumn()]
    bar = Progress(*columns, transient=True, console=Console(stderr=True))
    task = bar.add_task(text, total=total)
    start, shown = time.monotonic(), False

    def show(count: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start > 1:
            if bar.console.is_terminal:
                bar.start()
            else:
                log.info("%s ...", text)
            shown = True
        if shown:
            bar.update(task, completed=count)

    try:
        yield show
    finally:
        if shown:
            bar.stop()
