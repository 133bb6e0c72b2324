"""Runs the blocks of one page, in this process where they are Python or this package's commands."""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from eva_fast import cli
from eva_fast.cli.main import read
from eva_fast.compat import run_eva_pretraining
from eva_fast.config import Config
from tests.pages.blocks import RUN, SHOWN, Block, commands, ours
from tests.pages.small import here, planning

SECONDS = 120
OFFICIAL = "eva_fast.compat.run_eva_pretraining"
SHELL = re.compile(r"[|;<>$`*&]")


class Reader:
    """Runs blocks in order, in the current folder, or reads those that are not to run."""

    def __init__(self, name: str):
        self.name = name
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Does what the block says. AssertionError that names page and line where it cannot be done."""
        try:
            assert block.language in (*RUN, *SHOWN), f"no language of {', '.join((*RUN, *SHOWN))}"
            for command in commands(block.before):
                type_command(here(command))
            if block.reason is not None:
                look_at(block)
            elif block.language == "bash":
                for command in block.commands():
                    type_command(here(command))
            elif block.language == "yaml":
                Path("options.yaml").write_text(here(block.text))
                Config.from_yaml("options.yaml")
            elif block.language == "python":
                self._execute(block)
        except (Exception, SystemExit) as error:
            shown = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{self.name}:{block.line}: {shown}\n{block.text}") from error

    def _execute(self, block: Block) -> None:
        printed = io.StringIO()
        code = compile(here(block.text), f"{self.name}:{block.line}", "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, self.names)
        said = re.search(r"(?:^# .*\n)+\Z", block.text, re.MULTILINE)
        if said and not said[0].startswith("# fmt:"):
            check_output(re.sub("^# ", "", said[0], flags=re.MULTILINE), printed.getvalue())


def check_output(said: str, found: str) -> None:
    """That a page's words are what was printed, or begin it where they end with `...`."""
    said, found = said.strip(), found.strip()
    if said.endswith("..."):
        assert found.startswith(said.removesuffix("...").rstrip()), found
    else:
        assert found == said, found


def look_at(block: Block) -> None:
    """A block that is not run is at least code, with flags that exist."""
    if block.language == "python":
        compile(block.text, "block", "exec")
    elif block.language == "bash":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=SECONDS)
        for words in filter(None, map(ours, block.commands())):
            said = read(words)
            if "config" not in said.values:  # a file that is not there
                said.arguments()


def type_command(command: str) -> str:
    """Runs one command of a shell and returns what it printed. torchrun's processes are one, this one;
    only what has nothing to do with this package goes to a shell."""
    command, _, file = (part.strip() for part in command.partition(" > "))
    words = shlex.split(command)
    own = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(own) :]
    with mock.patch.dict(os.environ, own), contextlib.redirect_stdout(io.StringIO()) as printed:
        if (known := ours(command)) is not None:
            assert not SHELL.search(re.sub(r"'[^']*'|\{\d+\.\.\d+\}", "", command)), "needs a shell"
            with planning() if known[:1] == ["plan"] else contextlib.nullcontext():
                cli.main(known)
        elif OFFICIAL in words:
            run_eva_pretraining.main(words[words.index(OFFICIAL) + 1 :])
        elif script := next((w for w in words[1:] if w.endswith(".py")), None):
            assert words[0] in ("python", "torchrun"), command
            with mock.patch.object(sys, "argv", words[words.index(script) :]):
                runpy.run_path(script, run_name="__main__")
        else:
            print(shell(command), end="")
    if file:
        Path(file).write_text(printed.getvalue())
    return printed.getvalue()


def shell(command: str) -> str:
    """What a shell prints for a command."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command], env={**os.environ, "PATH": path}, text=True, timeout=SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout
