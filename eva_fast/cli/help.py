"""How `--help` looks: flags with one spelling, their defaults, commands with their first sentence."""

import argparse
import textwrap
from collections.abc import Iterable
from typing import Any

from eva_fast.cli.flags import REQUIRED, Command, Flag

NAMES = 14


class Page(argparse.HelpFormatter):
    """Of a flag's spellings one; what has several lines keeps them."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flag: Flag | None = getattr(action, "flag", None)
        return super()._format_action_invocation(action) if flag is None else flag.shown

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        hang = indent + " " * NAMES
        lines = text.splitlines()
        return "\n".join(
            textwrap.fill(t, width, initial_indent=indent, subsequent_indent=hang) for t in lines
        )


def listed(commands: Iterable[Command]) -> str:
    """A line for each command: its whole name and the first sentence about it."""
    firsts = {command.words: command.about.partition(". ")[0].rstrip(".") for command in commands}
    return "".join(f"{words:<{NAMES}}{first}.\n" for words, first in firsts.items())


def described(flag: Flag) -> str:
    """A flag's help, with the default in brackets where there is one that the help has not said."""
    unsaid = flag.default is False or flag.default in (None, (), REQUIRED)
    shown = "" if unsaid else f" (default: {_shown(flag.default)})"
    return f"{flag.help}{shown}".replace("%", "%%")


def _shown(value: Any) -> str:
    if value is True:
        return "on"
    value = f"{value:.4g}" if isinstance(value, float) else value
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)
