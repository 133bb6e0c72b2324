"""`eva-fast profile`."""

from pathlib import Path

from rich.console import Console

from eva_fast.cli.words import NO_OPTIONS
from eva_fast.config import Config


def profile(
    config: Config = NO_OPTIONS,
    timed: int = 10,
    warmup: int = 3,
    watched: int = 3,
    trace_out: Path | None = None,
) -> None:
    """Run some steps of a real run: images/s, waiting for data, MFU, top operators, Chrome trace,
    memory over time. Takes the options of pretrain, --config too; length and checkpoints are ignored.

    Args:
        config: the run.
        timed: steps timed with nothing attached.
        warmup: steps before them.
        watched: steps under the profiler after them.
        trace_out: folder for trace.json, memory.png and profile.json; by default runs/profile-TIME.
    """
    from eva_fast.inspect.profile import profile as make_profile
    from eva_fast.inspect.profile import render

    found = make_profile(config, steps=timed, warmup=warmup, watched=watched, out=trace_out)
    Console().print(render(found))
