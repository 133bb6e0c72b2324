"""README.md's commands: each is found, and each is one that the program takes."""

import ast
import re
import shlex

import pytest

from eva_fast.cli.main import read
from eva_fast.config import Config
from tests.readme.commands import README, SMALL, Block, blocks, made_small

TYPED = [command for block in blocks() if block.language == "bash" for command in block.commands()]
OURS = [command for command in TYPED if re.match(r"(\S*/)?eva-fast\b", command)]


def arguments(command):
    """What the command's function would be called with."""
    return read(shlex.split(command)[1:]).arguments()


def test_commands_are_taken_from_blocks_at_their_ands_without_comments():
    typed = "make x && make y   # both\n\n# nothing\nrun \\\n  --fast\n"
    text = f"a\n```bash\n{typed}```\n`b`\n```\nno\n```\n"
    (block,) = blocks(text)
    assert block.commands() == ["make x", "make y", "run    --fast"]
    assert Block("python", "x = 1\n").commands() == ["x = 1\n"]


def test_the_first_two_blocks_install_and_run():
    first, second = blocks()[:2]
    assert first.commands()[-1] == ".venv/bin/eva-fast pretrain"
    assert second.commands()[-1] == ".venv/bin/python -m pytest -n 2 --dist worksteal"
    assert len(OURS) >= 6 and any(" eval " in command for command in OURS)


@pytest.mark.parametrize("command", OURS)
def test_the_command_line_takes_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "config.yaml").write_text("steps: 2\n")
    arguments(command)
    arguments(made_small(command))


def test_the_python_is_a_call_with_options_that_exist():
    (source,) = (block.text for block in blocks() if block.language == "python")
    for text in (source, made_small(source)):
        (call,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call))
        Config.from_options({word.arg: ast.literal_eval(word.value) for word in call.keywords})


def test_every_substitution_still_has_something_to_do():
    everything = [command for block in blocks() for command in block.commands()]
    for pattern, _ in SMALL:
        assert any(re.search(pattern, command) for command in everything), pattern
    assert README.name == "README.md"
