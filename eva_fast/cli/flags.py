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
from typing import Any, Literal, Union

from eva_fast.cli.words import POSITIONAL
from eva_fast.config import Config
from eva_fast.keywords import option_help
from eva_fast.options import TextOrObject

REQUIRED = inspect.Parameter.empty
OWN = "Options"


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that a command can be told."""

    name: str
    kind: Any
    """int, float, str, bool, Path, a Literal, tuple[float, float], tuple[Path, ...], any of them with
    None, or `TextOrObject`."""
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
    def takes(self) -> str:
        """What is to stand behind the flag, in words."""
        kind = self.plain_kind
        if typing.get_origin(kind) is Literal:
            return f"one of {', '.join(kind.__args__)}"
        return {
            int: "a whole number", float: "a number", bool: "true or false", str: "text",
            Path: "a path", tuple[float, float]: "two numbers", tuple[Path, ...]: "paths",
        }.get(kind, "text")  # fmt: skip

    @property
    def metavar(self) -> str:
        kind = self.plain_kind
        if typing.get_origin(kind) is Literal:
            return "{" + ",".join(kind.__args__) + "}"
        return {
            int: "N", float: "X", bool: "", Path: "PATH", tuple[float, float]: "X X",
            tuple[Path, ...]: "PATH ...",
        }.get(kind, "TEXT")  # fmt: skip


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
            positional = POSITIONAL in getattr(kind, "__metadata__", ())
            kind = kind.__origin__ if positional else kind
            flags.append(Flag(name, kind, parameter.default, helps[name], positional=positional))
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


def is_text(flag: Flag) -> bool:
    """Whether any word is a right value."""
    return flag.plain_kind in (str, Path) or flag.kind is TextOrObject
