"""What a command line has said: the command, and the arguments of its function."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from eva_fast.cli.flags import REQUIRED, Command
from eva_fast.cli.parser import Parser
from eva_fast.config import Config
from eva_fast.errors import UsageError


class Said(NamedTuple):
    """A command, {name: value} of what was said of its flags, and {name: flag as typed}."""

    command: Command
    values: dict[str, Any]
    typed: dict[str, str]

    def arguments(self) -> dict[str, Any]:
        """What the command's function is called with; a configuration is put together of its options
        and its file."""
        said = dict(self.values)
        if not self.command.takes_config:
            return said
        ours = {flag.name for flag in self.command.flags if flag.of_config}
        options: Any = {name: said.pop(name) for name in ours & said.keys()}
        file = said.pop("config", None)
        config = Config.from_options(options) if file is None else Config.from_yaml(file, **options)
        return {"config": config, **said}

    def as_typed(self, message: str) -> str:
        """A message about options, with the flags that were typed in place of their names, and with
        `name=value` as it is written on the command line."""
        for name, flag in ((f.name, f.flag) for f in self.command.flags if f.of_config):
            value = r"'?([\w/]*(?:\.\w+)*)'?"
            message = re.sub(rf"(?<!-)\b{name}={value}", rf"{flag} \1", message)
            message = re.sub(rf"({flag}) (?=[,;.\s]|$)", r"\1", message)  # no value behind it
            if name in self.typed:
                where = rf"\b{name}\b" if "_" in name else rf"^{name}\b"
                message = re.sub(rf"(?<![-\w]){where}(?!=)", self.typed[name], message)
        return message


def read(parser: Parser, names: Sequence[str], argv: Sequence[str]) -> Said:
    """Reads the words of a command line, or says what is wrong with them in one UsageError.

    names: the commands' words, to say which there are."""
    try:
        found, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError:  # only parsers that choose a command raise it
        raise UsageError(_unknown_command(names, argv)) from None
    values = vars(found)
    if "command" not in values or argv[0].startswith("-"):
        raise UsageError(_unknown_command(names, argv))
    said = Said(values.pop("command"), values, values.pop("typed", {}))
    if rest:
        raise UsageError(_unknown_word(said.command, rest[0]))
    for flag in said.command.flags:
        if flag.default is REQUIRED and flag.name not in values:
            raise UsageError(f"eva-fast {said.command.words} needs {flag.shown}: {flag.help}")
    return said


def _unknown_command(names: Sequence[str], argv: Sequence[str]) -> str:
    if not argv:
        return f"which command? There are {', '.join(names)}; `eva-fast --help` says more"
    grouped = any(name.startswith(f"{argv[0]} ") for name in names)
    words = " ".join(argv[: 1 + grouped])
    near = difflib.get_close_matches(words, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"unknown command {words!r}; {hint}"


def _unknown_word(command: Command, word: str) -> str:
    hint = f"`eva-fast {command.words} --help` shows what there is"
    if not word.startswith("-"):
        return f"{word!r} stands where an option is expected; {hint}"
    name = word.partition("=")[0]
    flags = [flag.flag for flag in command.flags if not flag.positional]
    near = difflib.get_close_matches(name.replace("_", "-"), flags, n=1)
    return f"unknown option {name}; {f'did you mean {near[0]}?' if near else hint}"
