"""README.md's commands, and sizes cut so that each runs in a minute. Standard library alone: it runs
before the install.

`python3 -m tests.readme.commands 2` prints the commands of the second block, one a line.
"""

import re
import sys

from tests.pages.blocks import ROOT, Block, blocks

README = ROOT / "README.md"


def readme() -> list[Block]:
    """The bash and python blocks of README.md, in order."""
    return [block for block in blocks(README.read_text()) if block.language in ("bash", "python")]


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
    """A command as it can run here in a minute: on files of `tests.pages.materials`, a few steps."""
    for pattern, instead in SMALL:
        command = re.sub(pattern, instead, command)
    return command


if __name__ == "__main__":
    print("\n".join(readme()[int(sys.argv[1]) - 1].commands()))
