"""The entry point: words to a command, errors to an exit status.

Exit status: 0 done (also when a signal stopped a run after its checkpoint), 1 the run failed,
2 wrong use, 130 interrupted before training or a second time. A fault of the program keeps its
traceback.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from eva_fast.cli import (
    ablate,
    bench,
    data,
    doctor,
    evaluate,
    export,
    plan,
    pretrain,
    profile,
    reading,
    report,
)
from eva_fast.cli.flags import Command
from eva_fast.cli.parser import Parser, add_commands
from eva_fast.errors import RunError, UsageError
from eva_fast.version import __version__

ABOUT = "EVA pre-training of vision transformers, exact and fast."
COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain.pretrain,
    "eval": evaluate.evaluate,
    "ablate": ablate.ablate,
    "report": report.report,
    "export": export.export,
    "plan": plan.plan,
    "profile": profile.profile,
    "doctor": doctor.doctor,
    "data check": data.check,
    "bench report": bench.report,
    "bench run": bench.run,
}
HINT = "`eva-fast COMMAND --help` shows a command's options, --version the version."


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eva-fast` command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.WARNING)  # its notes at exit are of its caches
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no name ends a command
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except (UsageError, RunError) as error:
        print(f"{_who()}error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _who() -> str:
    """Which process speaks, where there are several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "


def read(argv: Sequence[str]) -> reading.Said:
    """What words ask for. --help and --version print and end the program."""
    parser = Parser(
        prog="eva-fast", usage="%(prog)s COMMAND [options]", description=ABOUT, epilog=HINT,
        exit_on_error=False,
    )  # fmt: skip
    version = f"%(prog)s {__version__}"
    parser.add_argument("--version", action="version", version=version, help=argparse.SUPPRESS)
    add_commands(parser, [Command.of(*item) for item in COMMANDS.items()])
    return reading.read(parser, list(COMMANDS), argv)


def _run(argv: list[str]) -> None:
    said = read(argv)
    try:
        said.command.run(**said.arguments())
    except (UsageError, RunError) as error:
        error.args = (said.as_typed(str(error)),)
        raise
