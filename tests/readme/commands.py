"""The code blocks of README.md as commands. Standard library alone: it runs before the install.

`python3 -m tests.readme.commands 2` prints the commands of the second block, one a line.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block."""

    language: str
    text: str

    def commands(self) -> list[str]:
        """A shell block's commands, each line at its `&&`, without comments; a Python block is one."""
        if self.language == "python":
            return [self.text]
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words = re.sub(r"(^|\s)#.*", "", line).strip()
            found += [part.strip() for part in words.split(" && ") if part.strip()]
        return found


def blocks(text: str | None = None) -> list[Block]:
    """Every bash and python block of a Markdown text, README.md by default, in order."""
    text = README.read_text() if text is None else text
    return [Block(language, inner) for language, inner in _BLOCK.findall(text)]


# What stands for a person's own files, and sizes that take hours, made small. (pattern, instead)
SMALL: tuple[tuple[str, str], ...] = (
    (r"/data/(photos|labelled)", r"data/\1"),
    (r"batch_size=\d+", "batch_size=4"),
    (r"epochs=\d+", "steps=2"),
    (r'out="runs/s"', 'out="runs/python"'),
    (r"^(eva-fast pretrain --data .*)$", r"\1 --batch-size 4 --steps 2"),
    (r"^(torchrun .*)$", r"\1 --batch-size 4 --steps 2 --depth 2"),
    (r"^(eva-fast pretrain .*--resume auto)$", r"\1 --steps 3"),
)


def made_small(command: str) -> str:
    """A command as it can run here in a minute: on files that `materials` makes, a few steps."""
    for pattern, instead in SMALL:
        command = re.sub(pattern, instead, command)
    return command


if __name__ == "__main__":
    print("\n".join(blocks()[int(sys.argv[1]) - 1].commands()))
