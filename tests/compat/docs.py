"""docs/coming-from-eva.md: its command line and its table; `python -m tests.compat.docs` writes it."""

import shlex
from pathlib import Path

from eva_fast.compat.flags import markdown
from eva_fast.compat.official import FLAGS

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-eva.md"
BEGIN, END = "<!-- flags: written by `python -m tests.compat.docs` -->\n", "<!-- end of flags -->\n"


def with_table(text: str) -> str:
    """The page with the table as the code has it."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + markdown(FLAGS) + END + rest.split(END)[1]


def command() -> list[str]:
    """The flags of the official README as the page shows them, as words."""
    _, typed = PAGE.read_text().split("eva_fast.compat.run_eva_pretraining \\\n")
    return shlex.split(typed.split("```")[0].replace("\\\n", " "))


def changed(words: list[str], **values: object) -> list[str]:
    """The same words with other values of flags that have one."""
    words = list(words)
    for name, value in values.items():
        words[words.index(f"--{name}") + 1] = str(value)
    return words


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
