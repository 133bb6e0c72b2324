"""The pages of help: every command, every option, groups, defaults, no names from inside."""

import pytest

from eva_fast import cli
from eva_fast.cli.flags import Command
from eva_fast.cli.main import COMMANDS
from eva_fast.version import __version__


def page(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    assert not end.value.code
    return capsys.readouterr().out


def test_every_command_is_named(capsys):
    text = page(capsys, "--help")
    assert all(f"\n  {name}" in text for name in COMMANDS)
    assert page(capsys, "--version") == f"eva-fast {__version__}\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_explained(capsys, words):
    text = page(capsys, *words.split(), "--help")
    flags = Command.of(words, COMMANDS[words]).flags
    assert flags
    for flag in flags:
        assert flag.help and (flag.name.upper() if flag.positional else flag.flag) in text
    for inner in ("Config", "None", "typing", "Path(", "<class", "Annotated"):
        assert inner not in text, inner


def test_groups_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = page(capsys, "pretrain", "-h")
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == [
        "Options:", "Student:", "Teacher:", "Data:", "Objective:", "Optimiser and schedule:", "Run:",
        "Probes while training:",
    ]  # fmt: skip
    flat = " ".join(text.split())
    assert "--batch-size N Images a step over all devices (EVA-01: 4096). (default: 64)" in flat
    assert "--betas X X AdamW's moment decay rates. (default: 0.9 0.98)" in flat
    assert "for none. (default: 0)" in flat
    assert "--progress, --no-progress Show a progress bar. (default: on)" in flat
    assert max(map(len, text.splitlines())) <= 100
