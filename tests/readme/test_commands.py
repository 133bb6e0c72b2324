"""What `python -m tests.readme` types is there to be typed; that it all runs is `tests/pages`."""

import re

from tests.readme.commands import README, SMALL, made_small, readme


def test_the_first_two_blocks_install_and_run():
    first, second = readme()[:2]
    assert first.commands()[-1] == ".venv/bin/eva-fast pretrain"
    assert second.commands()[-1] == ".venv/bin/python -m pytest -n 2 --dist worksteal"


def test_every_substitution_has_something_to_do():
    everything = [command for block in readme() for command in block.commands()]
    for pattern, _ in SMALL:
        assert any(re.search(pattern, command) for command in everything), pattern
    assert not any("/data/" in made_small(command) for command in everything)
    assert README.name == "README.md"
