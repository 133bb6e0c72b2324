"""What a command can be told: its function's parameters as flags, the fields of a `Config` too.

    def check(data: Name, limit: int = 10_000, json: bool = False)    # data check DATA --limit N --json

A parameter is a flag `--name`, or a word of its own where its type is `Name`; the docstring has what
it means. A parameter of type `Config` is every option of a run, and `--config FILE` beside them.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from eva_fast.cli.words import POSITIONAL
from eva_fast.config import Config
from eva_fast.keywords import option_help

REQUIRED = inspect.Parameter.empty
OWN = "Options"
PLACES = "What it takes"


class Form(NamedTuple):
    """How a kind of value is shown, what it is in words, and how a word becomes one: ValueError or
    KeyError where it is none."""

    metavar: str
    takes: str
    read: Callable[[str], Any]


def _path(word: str) -> Path:
    """`--out=$RUN` with RUN unset is not the current folder, which an empty path would be."""
    if not word:
        raise ValueError("an empty path")
    return Path(word)


PAIR = tuple[float, float]
TRUTH = {"true": True, "yes": True, "false": False, "no": False}
FORMS: dict[Any, Form] = {
    int: Form("N", "a whole number", int),
    float: Form("X", "a number", float),
    bool: Form("", "true or false", lambda word: TRUTH[word.lower()]),
    Path: Form("PATH", "a path", _path),
    PAIR: Form("X X", "two numbers", float),
    tuple[float, ...]: Form("X ...", "numbers", float),
    tuple[int, ...]: Form("N ...", "whole numbers", int),
    tuple[Path, ...]: Form("PATH ...", "paths", _path),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that a command can be told."""

    name: str
    kind: Any
    """One of `FORMS`, a Literal, any of them with None, or what is text."""
    default: Any
    help: str
    group: str = OWN
    of_config: bool = False
    """Whether it is an option of the run, to be put into its `Config`."""
    positional: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def plain_kind(self) -> Any:
        """`kind` without None."""
        parts = [k for k in typing.get_args(self.kind) if k is not type(None)]
        return parts[0] if self.optional else self.kind

    @property
    def optional(self) -> bool:
        return typing.get_origin(self.kind) in (Union, types.UnionType)

    @property
    def switch(self) -> bool:
        return self.plain_kind is bool

    @property
    def several(self) -> bool:
        return typing.get_origin(self.plain_kind) is tuple

    @property
    def form(self) -> "Form":
        kind = self.plain_kind
        if typing.get_origin(kind) is Literal:
            names = kind.__args__
            takes = f"one of {', '.join(names)}"
            return Form("{" + ",".join(names) + "}", takes, {n: n for n in names}.__getitem__)
        return FORMS.get(kind, Form("TEXT", "text", str))

    @property
    def shown(self) -> str:
        """As help has it."""
        if self.positional:
            return self.name.upper() + ("..." if self.several else "")
        if self.switch:
            return self.flag if self.default is False else f"{self.flag}, --no-{self.flag[2:]}"
        return f"{self.flag} {self.form.metavar}"


@dataclass(frozen=True, slots=True)
class Command:
    """A function and the flags that call it."""

    words: str
    """`pretrain`, `data check`."""
    run: Callable[..., None]
    about: str
    flags: tuple[Flag, ...]

    @classmethod
    def of(cls, words: str, run: Callable[..., None]) -> "Command":
        """The command that a function with a docstring is."""
        about, helps = _docstring(run)
        hints = typing.get_type_hints(run, include_extras=True)
        flags: list[Flag] = []
        for name, parameter in inspect.signature(run).parameters.items():
            kind = hints[name]
            if kind is Config:
                flags = [*_of_config(), *flags]
                continue
            at = POSITIONAL in getattr(kind, "__metadata__", ())
            kind = kind.__origin__ if at else kind
            group = PLACES if at else OWN
            flags.append(Flag(name, kind, parameter.default, helps[name], group, positional=at))
        return cls(words, run, about, tuple(flags))

    @property
    def takes_config(self) -> bool:
        return any(flag.of_config for flag in self.flags)


def _of_config() -> list[Flag]:
    """`--config` and every option of a run, in groups named by the first line of their class."""
    file = "YAML file of options (config.yaml of a run is one); flags win over it."
    flags = [Flag("config", Path | None, None, file)]
    for part in dataclasses.fields(Config):
        group: Any = part.type
        title = inspect.cleandoc(group.__doc__).splitlines()[0].rstrip(".")
        helps = option_help(group)
        flags += [
            Flag(o.name, o.type, o.default, helps.get(o.name, ""), title, of_config=True)
            for o in dataclasses.fields(group)
        ]
    return flags


def _docstring(run: Callable[..., None]) -> tuple[str, dict[str, str]]:
    """What a function is for, and {parameter: help} of its Args."""
    about, _, args = inspect.cleandoc(run.__doc__ or "").partition("\nArgs:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", args, re.MULTILINE)
    return " ".join(about.split()), {name: " ".join(text.split()) for name, text in entries}
