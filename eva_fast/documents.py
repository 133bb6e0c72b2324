"""JSON and YAML that lie in a file: plain values, or one error that names the file.

The files may be anybody's. What is no regular file is not waited for, no tag of YAML makes an object,
and a few bytes cannot stand for gigabytes: YAML's aliases repeat what they name without end, and both
formats nest as deep as one likes.
"""

import json
import os
import stat
from typing import Any, ClassVar

import yaml

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.files import read_file

MOST_BYTES = 256 << 20
"""Of a document: a configuration may hold the paths of millions of images."""
MOST_REPEATED = 100_000
"""Values that aliases add to those that are written out."""
DEEPEST = 64
"""Lists within lists. Options have three."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. MissingFileError where there is none, UsageError where it is no JSON."""
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {_why(error)}") from None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`read_json` of a file that must hold a JSON object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} must hold a JSON object, not a {type(found).__name__}")
    return found


def read_yaml(path: str | os.PathLike[str], pipe: bool = False) -> Any:
    """What a YAML file holds: None where it is empty, a date as the text that it was written as.

    pipe: whether it may be a pipe, as a shell's <(...) is.

    MissingFileError where there is none or it cannot be opened, UsageError where it is no YAML."""
    text = _text(path, pipe)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _bounded(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except _YAML_ERRORS as error:
        # beside its own errors: a number that is none (!!int ''), a truth that is none (!!bool x)
        raise UsageError(f"{path} is not YAML: {_why(error)}") from None


class _Loader(yaml.SafeLoader):
    """Dates stay text: a folder may be called 2024-01-31."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_YAML_ERRORS = (
    yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, ArithmeticError,
    AttributeError,
)  # fmt: skip


def _text(path: str | os.PathLike[str], pipe: bool = False) -> str:
    try:
        if pipe and stat.S_ISFIFO(os.stat(path).st_mode):
            with open(path, "rb") as file:
                found = file.read(MOST_BYTES + 1)
        else:
            found = read_file(path, MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # the second: a name with a zero byte
        raise MissingFileError(f"cannot read {path}: {error}") from None
    if len(found) > MOST_BYTES:
        raise UsageError(f"{path} is larger than {MOST_BYTES >> 20} MB, which no such file is")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error}") from None


def _bounded(root: yaml.Node) -> None:
    """YAMLError where aliases repeat too much, or values lie too deep in one another."""
    known: dict[
        int, tuple[int, int] | None
    ] = {}  # of a node: (values, levels); None while it is open

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in known:
            found = known[id(node)]
            if found is None:
                raise yaml.YAMLError("a value contains itself")
            return found
        known[id(node)] = None
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        sizes = [measure(part) for part in inner]
        found = 1 + sum(s for s, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        if found[1] > DEEPEST:
            raise yaml.YAMLError(f"values lie more than {DEEPEST} deep in one another")
        known[id(node)] = found
        return found

    count, _ = measure(root)
    if count > len(known) + MOST_REPEATED:
        raise yaml.YAMLError(f"its aliases stand for {count:,} values")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values lie too deep in one another"
    return str(error) or type(error).__name__
