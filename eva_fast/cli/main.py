"""The entry point: words to a command, errors to an exit status.

Exit status: 0 done (also when a signal stopped a run after its checkpoint), 1 the run failed,
2 wrong use, 130 interrupted before training or a second time. A fault of the program keeps its
traceback.
"""

import difflib
import logging
import sys
from collections.abc import Callable

from eva_fast.cli import bench, data, doctor, evaluate, export, plan, pretrain, profile
from eva_fast.cli.flags import Command
from eva_fast.cli.help import print_commands, print_options
from eva_fast.cli.reading import Words
from eva_fast.errors import RunError, UsageError
from eva_fast.version import __version__

ABOUT = "EVA pre-training of vision transformers, exact and fast."
COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain.pretrain,
    "eval": evaluate.evaluate,
    "export": export.export,
    "plan": plan.plan,
    "profile": profile.profile,
    "doctor": doctor.doctor,
    "data check": data.check,
    "bench report": bench.report,
    "bench run": bench.run,
}
HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `eva-fast` command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _run(argv: list[str]) -> None:
    if argv[:1] == ["--version"]:
        print(f"eva-fast {__version__}")
        return
    if argv and argv[0] in HELP:
        print_commands([Command.of(*item) for item in COMMANDS.items()], ABOUT)
        return
    command, rest = _command(argv)
    if any(word in HELP for word in rest):
        print_options(command)
        return
    words = Words(command, rest)
    try:
        command.run(**words.arguments())
    except (UsageError, RunError) as error:
        error.args = (words.as_typed(str(error)),)
        raise


def _command(argv: list[str]) -> tuple[Command, list[str]]:
    """The command that the first words name, and what follows them."""
    for length in (2, 1):
        words = " ".join(argv[:length])
        if words in COMMANDS:
            return Command.of(words, COMMANDS[words]), argv[length:]
    names = ", ".join(COMMANDS)
    if not argv:
        raise UsageError(f"which command? There are {names}; `eva-fast --help` says more")
    grouped = any(name.startswith(f"{argv[0]} ") for name in COMMANDS)
    words = " ".join(argv[: 1 + grouped])
    near = difflib.get_close_matches(words, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {names}"
    raise UsageError(f"unknown command {words!r}; {hint}")
