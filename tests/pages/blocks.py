"""The code blocks of a page. Standard library alone: `tests.readme` reads it before the install."""

import json
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("bash", "python", "yaml")
SHOWN = ("text", "json")
_FENCE = re.compile(r"^ *(```+|~~~+)\s*(\S*)")
_COMMENT = re.compile(r"<!-- (not run|before): (.+?) -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, and what the comments before it say."""

    language: str
    text: str
    line: int = 0
    reason: str | None = None
    """Why it is not run, where it is not."""
    before: str = ""
    """Commands to run first."""

    def commands(self) -> list[str]:
        """A shell block's commands, each line at its `&&`, without comments; a Python block is one."""
        return commands(self.text) if self.language == "bash" else [self.text]


def commands(text: str) -> list[str]:
    """The commands in lines of a shell."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).strip()
        found += [part.strip() for part in words.split(" && ") if part.strip()]
    return found


def blocks(text: str) -> list[Block]:
    """Every fenced block of a Markdown text, in order, whatever its language."""
    found, lines = [], iter(enumerate(text.splitlines(keepends=True), 1))
    said: dict[str, str] = {}
    waiting = ""
    for number, line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            waiting += line
            continue
        fence, language = opened.groups()
        inner = ""
        for _, line in lines:
            if line.strip() == fence:
                break
            inner += line
        # a comment is of a block where nothing but space lies between them
        end = re.search(rf"(?:{_COMMENT.pattern}\s*)+\Z", waiting, re.DOTALL)
        said = dict(_COMMENT.findall(end[0])) if end else {}
        waiting = ""
        found.append(
            Block(
                language,
                textwrap.dedent(inner),
                number,
                said.get("not run"),
                said.get("before", ""),
            )
        )
    return found


def of_file(path: Path) -> list[Block]:
    """The blocks of a page, of a notebook, or the one that a Python file is."""
    if path.suffix == ".md":
        return blocks(path.read_text())
    if path.suffix == ".py":
        return [Block("python", path.read_text())]
    cells = json.loads(path.read_text())["cells"]
    return [Block("python", "".join(c["source"])) for c in cells if c["cell_type"] == "code"]


def pages() -> list[Path]:
    """Everything that shows code to users; none where this is no checkout."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    examples = [
        p for kind in ("py", "ipynb") for p in sorted((ROOT / "examples").glob(f"*.{kind}"))
    ]
    return [path for path in (*found, *examples) if path.is_file()]


def python_of(page: str, *numbers: int) -> str:
    """Python blocks of a page below docs/, all of them or those of these numbers, as one text."""
    found = [b.text for b in of_file(ROOT / "docs" / page) if b.language == "python"]
    return "\n".join(found[number] for number in numbers) if numbers else "\n".join(found)


def ours(command: str) -> list[str] | None:
    """The words behind `eva-fast` of a command that is one of this package's, torchrun's too; None of
    another."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words:
        return None
    if re.fullmatch(r"(\S*/)?eva-fast", words[0]):
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["eva_fast"]:
        return words[words.index("-m") + 2 :]
    return None
