"""The flags of EVA-01's `run_eva_pretraining.py`, and what becomes of each: the one table of it.

Names, types and defaults are the official ones (github.com/baaivision/EVA, EVA-01/eva). A flag is
passed on, computed with, warned about or refused; where it has its default, which the official script
takes as eva_fast does, nothing is said. docs/coming-from-eva.md shows the table.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eva_fast.errors import UsageError

Said = argparse.Namespace
"""All flags with their values, and in `given` the names of those that were typed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a flag, always or in some cases."""

    kind: Literal["option", "used", "warned", "refused"]
    """option: its value is that of an option of eva_fast. used: options are computed with it."""
    says: str
    """For people: of an option its name; of a warning or refusal the reason and what to do."""
    when: Callable[[Said], bool] | None = None
    """Of a warning or refusal; None: where the value is not the default."""


def becomes(option: str) -> Rule:
    return Rule("option", option)


def used(says: str) -> Rule:
    return Rule("used", says)


def warned(says: str, when: Callable[[Said], bool] | None = None) -> Rule:
    return Rule("warned", says, when)


def refused(says: str, when: Callable[[Said], bool] | None = None) -> Rule:
    return Rule("refused", says, when)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the official script."""

    name: str
    kind: Callable[[str], Any] | None
    """What makes its value of a word; None: a switch."""
    default: Any
    rules: tuple[Rule, ...]
    off: str | None = None
    """Of a switch, the flag that turns it off."""
    several: bool = False
    """Whether any number of words may follow."""
    choices: tuple[str, ...] | None = None

    def shown(self, value: Any) -> str:
        """As it would be typed for that value."""
        if self.kind is None:
            return f"--{self.name if value or self.off is None else self.off}"
        words = map(str, value) if isinstance(value, list | tuple) else [str(value)]
        return " ".join([f"--{self.name}", *words])

    def met(self, said: Said, kind: str) -> list[str]:
        """What is to be said of it as a warning or refusal: the reasons of its rules of that kind."""
        value = getattr(said, self.name)
        return [
            f"{self.shown(value)}: {rule.says}"
            for rule in self.rules
            if rule.kind == kind
            and (rule.when(said) if rule.when is not None else value != self.default)
        ]


def flag(
    name: str, kind: Callable[[str], Any] | None, default: Any, *rules: Rule, **more: Any
) -> Flag:
    return Flag(name, kind, default, rules, **more)


class Parser(argparse.ArgumentParser):
    """What is wrong is a UsageError. Abbreviations are taken, as the official parser takes them."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; `python -m {self.prog} --help` shows the flags")


def parser(flags: Sequence[Flag]) -> Parser:
    """The parser; it gives what was typed alone."""
    made = Parser(
        prog="eva_fast.compat.run_eva_pretraining", argument_default=argparse.SUPPRESS,
        description="EVA-01's pre-training command line, run by eva_fast: docs/coming-from-eva.md.",
    )  # fmt: skip
    for each in flags:
        text = "; ".join(f"{rule.kind}: {rule.says}" for rule in each.rules).replace("%", "%%")
        if each.kind is None:
            made.add_argument(f"--{each.name}", action="store_true", help=text)
            if each.off is not None:
                made.add_argument(f"--{each.off}", action="store_false", dest=each.name)
            continue
        dashed = ["--local-rank"] if each.name == "local_rank" else []  # as newer launchers say it
        made.add_argument(
            f"--{each.name}", *dashed, dest=each.name, type=each.kind, help=text,
            nargs="+" if each.several else None, choices=each.choices,
        )  # fmt: skip
    return made


def read(flags: Sequence[Flag], argv: Sequence[str]) -> Said:
    """The flags of a command line, the others with their defaults. UsageError for unknown flags and
    values, and for all that cannot be done as asked, in one."""
    typed = vars(parser(flags).parse_args(argv))
    values = {each.name: each.default for each in flags} | typed
    said = argparse.Namespace(**values, given=frozenset(typed))
    found = [reason for each in flags for reason in each.met(said, "refused")]
    if found:
        raise UsageError("eva_fast cannot do this as asked:\n  " + "\n  ".join(found))
    return said


def warnings(flags: Sequence[Flag], said: Said) -> list[str]:
    """What is not done as asked, and why, a line each."""
    return [reason for each in flags for reason in each.met(said, "warned")]


def markdown(flags: Sequence[Flag]) -> str:
    """The table as docs/coming-from-eva.md shows it."""
    lines = ["| flag | default | what becomes of it |", "| --- | --- | --- |"]
    for each in flags:
        names = f"`--{each.name}`" + (f", `--{each.off}`" if each.off else "")
        default = "" if each.default in (None, "") else f"`{_words(each.default)}`"
        default = default.replace("|", "\\|")
        lines.append(f"| {names} | {default} | {'; '.join(map(_told, each.rules))} |")
    return "\n".join(lines) + "\n"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    many = isinstance(value, list | tuple)
    return " ".join(f"{part:g}" for part in value) if many else str(value)


def _told(rule: Rule) -> str:
    if rule.kind in ("option", "used"):
        return f"`{rule.says}`" if rule.kind == "option" else rule.says
    return f"**{rule.kind}**: {rule.says}"
