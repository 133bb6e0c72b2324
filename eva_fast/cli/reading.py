"""From the words of a command line to the arguments of a command's function.

Flags are found with - or _ between their words, `--flag value` or `--flag=value`, the last wins. What
is wrong is one UsageError with the flag as it was typed.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eva_fast.cli.flags import REQUIRED, Command, Flag, is_text
from eva_fast.config import Config
from eva_fast.errors import UsageError

TRUTH = {"true": True, "yes": True, "false": False, "no": False}


class Words:
    """The words of one command, read once from left to right.

    `values` {name: value} of what was said, `typed` {name: flag as typed}."""

    def __init__(self, command: Command, words: Sequence[str]):
        self.command = command
        self.values: dict[str, Any] = {}
        self.typed: dict[str, str] = {}
        self._flags = {flag.flag: flag for flag in command.flags if not flag.positional}
        self._places = [flag for flag in command.flags if flag.positional]
        self._rest = list(words)
        while self._rest:
            self._read(self._rest.pop(0))
        for flag in command.flags:
            if flag.default is REQUIRED and flag.name not in self.values:
                what = flag.name.upper() if flag.positional else f"{flag.flag} {flag.metavar}"
                raise UsageError(f"eva-fast {command.words} needs {what}: {flag.help}")

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
        for flag in self.command.flags:
            if not flag.of_config:
                continue
            where = rf"\b{flag.name}\b" if "_" in flag.name else rf"^{flag.name}\b"
            shown = self.typed.get(flag.name)
            value = r"'?([\w/]*(?:\.\w+)*)'?"
            message = re.sub(rf"(?<!-)\b{flag.name}={value}", rf"{flag.flag} \1", message)
            if shown is not None:
                message = re.sub(rf"(?<![-\w]){where}(?!=)", shown, message)
        return re.sub(r" +(?=[,;.]|$)", "", message)

    def _read(self, word: str) -> None:
        if not word.startswith("--"):
            if not self._places:
                raise UsageError(self._unexpected(word))
            flag = self._places.pop(0)
            self.values[flag.name] = word
            return
        name, given, value = word.partition("=")
        spelt = name.replace("_", "-")
        found = self._flags.get(spelt)
        negated = self._flags.get("--" + spelt.removeprefix("--no-"))
        if found is None and negated is not None and negated.switch and not given:
            self.values[negated.name], self.typed[negated.name] = False, name
            return
        if found is None:
            raise UsageError(self._unknown(name, spelt))
        self.typed[found.name] = name
        self.values[found.name] = self._value(found, name, [value] if given else None)

    def _value(self, flag: Flag, typed: str, given: list[str] | None) -> Any:
        """The value behind a flag. given: the one behind its =; otherwise the next words."""
        if flag.switch and given is None:
            follows = self._rest[:1]
            stated = follows and (follows[0].lower() in TRUTH or follows[0].lower() == "none")
            return parse(flag, typed, [self._rest.pop(0)]) if stated else True
        if given is None:
            given = self._take(flag)
        if not given:
            raise UsageError(f"{typed} needs {flag.takes} behind it")
        return parse(flag, typed, given)

    def _take(self, flag: Flag) -> list[str]:
        count = {"two numbers": 2, "paths": len(self._rest)}.get(flag.takes, 1)
        taken: list[str] = []
        while self._rest and len(taken) < count and not self._rest[0].startswith("--"):
            taken.append(self._rest.pop(0))
            if taken[-1].lower() == "none" or "," in taken[0]:
                break
        return taken

    def _unknown(self, name: str, spelt: str) -> str:
        near = difflib.get_close_matches(spelt, self._flags, n=1)
        hint = f"did you mean {near[0]}?" if near else self._where()
        return f"unknown option {name}; {hint}"

    def _unexpected(self, word: str) -> str:
        return f"{word!r} stands where an option is expected; {self._where()}"

    def _where(self) -> str:
        return f"`eva-fast {self.command.words} --help` shows what there is"


def parse(flag: Flag, typed: str, words: list[str]) -> Any:
    """The value that words are for a flag; UsageError where they are none."""
    kind, word = flag.plain_kind, words[0]
    if flag.optional and word.lower() == "none":
        return None
    try:
        if is_text(flag):
            return Path(word) if kind is Path else word
        if kind is bool:
            return TRUTH[word.lower()]
        if kind in (int, float):
            return kind(word)
        if kind == tuple[Path, ...]:
            return tuple(map(Path, words))
        if kind == tuple[float, float]:
            low, high = word.split(",") if len(words) == 1 else words
            return float(low), float(high)
        if word in kind.__args__:
            return word
    except (ValueError, KeyError):
        pass
    raise UsageError(f"{typed} must be {flag.takes}, got {' '.join(words)!r}")
