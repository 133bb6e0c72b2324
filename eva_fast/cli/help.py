"""What `--help` prints: commands with their first sentence, options in groups with their defaults."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from eva_fast.cli.flags import REQUIRED, Command, Flag

INDENT = 24
WIDEST = 100


def print_commands(commands: Iterable[Command], about: str) -> None:
    """The page of `eva-fast --help`."""
    console = _console()
    console.print(Text("usage: eva-fast COMMAND [options]\n"))
    console.print(Text(f"{about}\n"))
    console.print(Text("Commands:", style="bold"))
    for command in commands:
        _entry(console, command.words, _first_sentence(command.about), 14)
    console.print(
        Text("\n`eva-fast COMMAND --help` shows a command's options, --version the version.")
    )


def print_options(command: Command) -> None:
    """The page of a command."""
    console = _console()
    places = "".join(f" {f.name.upper()}" for f in command.flags if f.positional)
    console.print(Text(f"usage: eva-fast {command.words}{places} [options]\n"))
    for line in textwrap.wrap(command.about, _width(console)):
        console.print(Text(line))
    groups: dict[str, list[Flag]] = {}
    for flag in command.flags:
        groups.setdefault("What it takes" if flag.positional else flag.group, []).append(flag)
    for title, flags in groups.items():
        console.print(Text(f"\n{title}:", style="bold"))
        for flag in flags:
            _entry(console, _left(flag), f"{flag.help}{_default(flag)}", INDENT)


def _left(flag: Flag) -> str:
    if flag.positional:
        return flag.name.upper()
    if flag.switch:
        return flag.flag if flag.default is False else f"{flag.flag}, --no-{flag.flag[2:]}"
    return f"{flag.flag} {flag.metavar}"


def _default(flag: Flag) -> str:
    """The default in brackets, where there is one that the help has not said."""
    if flag.default is REQUIRED:
        return "" if flag.positional else " (required)"
    if flag.default is None or flag.default is False or flag.default == ():
        return ""
    return f" (default: {_shown(flag.default)})"


def _shown(value: Any) -> str:
    if value is True:
        return "on"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def _entry(console: Console, left: str, text: str, indent: int) -> None:
    """A name at the left and its text beside it, or below it where the name is long."""
    lines: Sequence[str] = textwrap.wrap(text, _width(console) - indent) or [""]
    head = f"  {left}"
    if len(head) + 2 > indent:
        console.print(Text(head, style="cyan"))
    else:
        console.print(Text(head.ljust(indent), style="cyan") + Text(lines[0]))
        lines = lines[1:]
    for line in lines:
        console.print(Text(" " * indent + line))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _width(console: Console) -> int:
    return max(60, min(console.width, WIDEST))
