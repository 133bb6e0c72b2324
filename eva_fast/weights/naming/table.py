"""How another library spells a network's tensors: a table that is read in both directions.

A rule pairs names of ours with names of theirs. `{n}` stands for a block's number, `{p}` for weight or
bias, `{rest}` for anything. Where the tensors differ too, its form says how, both ways:

    Rule("transformer.resblocks.{n}.ln_1.{p}", "blocks.{n}.norm1.{p}")
    Rule("proj", "head.weight", TRANSPOSED)
    Rule("attn.in_proj_{p}", ("q_proj.{p}", "k_proj.{p}", "v_proj.{p}"), ROWS)
    Rule("mask_token", ())      # they have none: not written
    Rule((), "head.{p}")        # we have none: not read
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eva_fast.errors import UsageError

Parts = tuple[Tensor | None, ...]
"""Tensors of one rule in the order of its names; None for an optional one that is not there."""


@dataclass(frozen=True)
class Form:
    """What happens to the tensors of a rule. `write` undoes `read`."""

    read: Callable[[Parts], Parts]
    """Theirs to ours."""
    write: Callable[[Parts], Parts]
    """Ours to theirs."""


def each(function: Callable[[Tensor], Tensor]) -> Callable[[Parts], Parts]:
    """`function` of every tensor there is."""
    return lambda parts: tuple(None if t is None else function(t) for t in parts)


SAME = Form(lambda parts: parts, lambda parts: parts)
TRANSPOSED = Form(each(lambda t: t.T), each(lambda t: t.T))
ROWS = Form(
    lambda parts: (torch.cat([t for t in parts if t is not None]),),
    lambda parts: parts[0].chunk(3) if parts[0] is not None else parts,
)
"""Theirs are query, key and value; ours is the three on top of each other."""
LEADING = Form(each(lambda t: t.flatten(0, -2)), each(lambda t: t[None]))
"""Theirs [1,N,D] is ours [N,D]."""
KEYLESS = Form(
    lambda parts: (parts[0], parts[2]),
    lambda parts: (parts[0], each(torch.zeros_like)(parts)[0], parts[1]),
)
"""Theirs are the biases of query, key and value, ours has none of the key: it adds the same to every
logit of a query, so that the softmax does not see it."""
VECTOR = Form(each(lambda t: t.flatten()), each(lambda t: t[None, None]))
"""Theirs [1,1,D] is ours [D]."""

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """One row of a table. Names in `optional` may be missing where the others of the rule are there."""

    ours: Names
    theirs: Names
    form: Form = SAME
    optional: tuple[str, ...] = ()


def same(*names: str) -> tuple[Rule, ...]:
    """Rules for what has one name in both libraries."""
    return tuple(Rule(name, name) for name in names)


@dataclass(frozen=True)
class Naming:
    """A library's names of one kind of network.

    A file is known by the names `probes`, behind any prefix. Everything under that prefix belongs to
    the network; `beside` are rules for what belongs to it and lies outside `prefix`.
    """

    library: str
    probes: tuple[str, ...]
    rules: tuple[Rule, ...]
    prefix: str = ""
    """What is written in front of their names."""
    beside: tuple[Rule, ...] = ()
    absent: tuple[str, ...] = ()
    """Names that another kind of network has beside `probes`."""

    def find(self, names: Mapping[str, object]) -> str | None:
        """The prefix under which `names` hold such a network, the first of several, or None."""
        return next(self.prefixes(names), None)

    def prefixes(self, names: Mapping[str, object]) -> Iterator[str]:
        """Every prefix under which `names` hold such a network."""
        probe, *others = self.probes
        for name in names:
            prefix = name[: -len(probe)]
            begins = name.endswith(probe) and (prefix == "" or prefix[-1] == ".")
            whole = begins and all(prefix + other in names for other in others)
            if whole and not any(prefix + other in names for other in self.absent):
                yield prefix

    def read(self, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Tensors under our names, out of a file that holds the network under `prefix` (see `find`).

        Nothing else of the file is read. Names under the prefix that no rule knows are kept, so that
        a comparison with the network's own names shows them. UsageError where one of several parts
        of a tensor is missing."""
        above = prefix.removesuffix(self.prefix) if prefix.endswith(self.prefix) else ""
        rows = [
            _Row(prefix, rule.theirs, "", rule.ours, rule.form.read, rule) for rule in self.rules
        ]
        rows += [
            _Row(above, rule.theirs, "", rule.ours, rule.form.read, rule) for rule in self.beside
        ]
        found, unknown = _translate(tensors, rows)
        inside = (name for name in unknown if name.startswith(prefix))
        return {**found, **{name.removeprefix(prefix): tensors[name] for name in inside}}

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under their names. UsageError for a name that the table does not know."""
        ahead = self.prefix
        rows = [
            _Row("", rule.ours, ahead, rule.theirs, rule.form.write, rule) for rule in self.rules
        ]
        rows += [
            _Row("", rule.ours, "", rule.theirs, rule.form.write, rule) for rule in self.beside
        ]
        written, unknown = _translate(tensors, rows)
        if unknown:
            raise UsageError(f"{self.library} has no place for {', '.join(unknown[:4])}")
        return written

    def under(self, prefix: str, library: str) -> Naming:
        """The same names behind another prefix."""
        return replace(self, prefix=prefix, library=library)


class _Row:
    """A rule in one direction: what the names are read from and written to."""

    def __init__(
        self,
        source_prefix: str,
        sources: Names,
        target_prefix: str,
        targets: Names,
        change: Callable[[Parts], Parts],
        rule: Rule,
    ) -> None:
        self.sources = [source_prefix + name for name in _names(sources)]
        self.targets = [target_prefix + name for name in _names(targets)]
        self.change = change
        self.optional = {source_prefix + name for name in rule.optional}
        self._patterns = [_pattern(name) for name in self.sources]

    def match(self, name: str) -> tuple[int, dict[str, str]] | None:
        """(place among the sources, values of the placeholders) of a name, or None."""
        for place, pattern in enumerate(self._patterns):
            if found := pattern.fullmatch(name):
                return place, found.groupdict()
        return None


def _translate(
    tensors: Mapping[str, Tensor], rows: Sequence[_Row]
) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors under the rows' target names, names that no row knows)."""
    groups: dict[tuple[int, str], tuple[dict[str, str], list[str | None]]] = {}
    unknown = []
    for name in tensors:
        for number, row in enumerate(rows):
            if found := row.match(name):
                place, values = found
                empty: list[str | None] = [None] * len(row.sources)
                groups.setdefault((number, str(values)), (values, empty))[1][place] = name
                break
        else:
            unknown.append(name)
    out: dict[str, Tensor] = {}
    for (number, _), (values, names) in groups.items():
        row = rows[number]
        if not row.targets:
            continue
        lost = [s for s, n in zip(row.sources, names) if n is None and s not in row.optional]
        if lost:
            where = getattr(tensors, "path", "the weights")
            raise UsageError(f"{where}: missing {', '.join(s.format(**values) for s in lost)}")
        parts = row.change(tuple(None if n is None else tensors[n] for n in names))
        for target, tensor in zip(row.targets, parts):
            if tensor is not None:
                out[target.format(**values)] = tensor
    return out, unknown


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    for place, values in (("n", r"\d+"), ("p", "weight|bias"), ("rest", ".*")):
        text = text.replace(rf"\{{{place}\}}", f"(?P<{place}>{values})")
    return re.compile(text)
