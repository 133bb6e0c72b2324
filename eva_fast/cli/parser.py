"""The `argparse` parser of all commands: subparsers by their words, flags as arguments.

Values become their kinds inside the actions, since only an action is told how its flag was typed. For
the same reason no flag insists on a value before its action, which says what is to stand there.
"""

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NoReturn

from eva_fast.cli.flags import PAIR, Command, Flag
from eva_fast.cli.help import Page, described, listed
from eva_fast.errors import UsageError


class Parser(argparse.ArgumentParser):
    """No abbreviations, and what is wrong is a UsageError."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=Page, **settings)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def add_commands(parser: Parser, commands: Sequence[Command], depth: int = 0) -> None:
    """Subparsers for commands with the same first `depth` words; they put `command` and the values of
    its flags into the namespace."""
    places = parser.add_subparsers(
        title="Commands", description=listed(commands), help=argparse.SUPPRESS, prog=parser.prog
    )
    for word, members in groupby(commands, key=lambda command: command.words.split()[depth]):
        inner = list(members)
        if inner[0].words.endswith(word):
            _add_flags(places, word, inner[0])
        else:
            further: dict[str, Any] = {
                "usage": "%(prog)s COMMAND [options]",
                "exit_on_error": False,
            }
            add_commands(places.add_parser(word, **further), inner, depth + 1)


def _add_flags(places: Any, word: str, command: Command) -> None:
    named = "".join(f" {flag.shown}" for flag in command.flags if flag.positional)
    parser = places.add_parser(word, usage=f"%(prog)s{named} [options]", description=command.about)
    parser.set_defaults(command=command)
    groups: dict[str, Any] = {}
    for flag in command.flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        nargs = 0 if flag.switch and not flag.of_config else "*" if flag.several else "?"
        spelt = dict.fromkeys((flag.flag, f"--{flag.name}"))  # --batch-size and --batch_size
        groups[flag.group].add_argument(
            *([flag.name] if flag.positional else spelt),
            action=_Switch if flag.switch else _Value, nargs=nargs, flag=flag,
        )  # fmt: skip


class _Value(argparse.Action):
    """A flag with a value or several, or a word of its own."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        nargs: str,
        flag: Flag,
        required: bool = False,
    ):
        # argparse takes a word of its own that may stand several times for one that must be there
        super().__init__(option_strings, dest, nargs, default=argparse.SUPPRESS)
        self.flag, self.help = flag, described(flag)

    def __call__(self, parser: Any, namespace: Any, values: Any, typed: Any = None) -> None:
        words = [values] if isinstance(values, str) else values or []
        _keep(namespace, self.flag, typed or self.flag.name.upper(), words)


class _Switch(argparse.BooleanOptionalAction):
    """--progress and --no-progress; for an option of a run also --progress false and --whiten none,
    which win over its file."""

    def __init__(self, option_strings: Sequence[str], dest: str, nargs: str | int, flag: Flag):
        super().__init__(option_strings, dest, default=argparse.SUPPRESS)
        self.flag, self.help, self.nargs = flag, described(flag), nargs

    def __call__(self, parser: Any, namespace: Any, values: Any, typed: Any = None) -> None:
        no = typed.startswith("--no-")
        if no and values:
            raise UsageError(f"{typed} takes no value, got {values!r}")
        _keep(namespace, self.flag, typed, ["false" if no else values or "true"])


def _keep(namespace: Any, flag: Flag, typed: str, words: list[str]) -> None:
    """Puts the value that words are for a flag, and how that was typed, into the namespace."""
    if not words:
        raise UsageError(f"{typed} needs {flag.form.takes} behind it")
    pair = flag.plain_kind == PAIR
    numbers = flag.several and flag.form.read in (float, int)
    parts = words[0].split(",") if numbers and len(words) == 1 else words
    none = flag.optional and words[0].lower() == "none"
    try:
        values = (None,) if none else tuple(map(flag.form.read, parts))
    except (ValueError, KeyError):
        values = ()
    if len(values) != (2 if pair else len(parts)):
        raise UsageError(f"{typed} must be {flag.form.takes}, got {' '.join(words)!r}")
    setattr(namespace, flag.name, values if flag.several and not none else values[0])
    namespace.typed = {**getattr(namespace, "typed", {}), flag.name: typed}
