"""docs/trainer.md: its Python runs as it stands."""

from pathlib import Path

import pytest

from eva_fast.cli.main import read
from tests.readme.commands import blocks

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"
BLOCKS = blocks(PAGE.read_text()) if PAGE.is_file() else []


@pytest.mark.parametrize("number", range(2))
def test_the_python_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [block.text for block in BLOCKS if block.language == "python"][number]
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    if "trainer" in names:
        assert names["trainer"].result.stopped_by == "callback"
    else:
        assert names["result"].metrics["step"] == 4


def test_the_command_line_takes_its_commands():
    commands = [c for b in BLOCKS if b.language == "bash" for c in b.commands()]
    assert len(commands) == 2
    for command in commands:
        words = command.split()
        assert read(words[words.index("eva-fast") + 1 :]).arguments()
