"""Names of tar shards, and which of their members are images."""

import itertools
import re
import tarfile

from eva_fast.data.decode.formats import image_suffixes
from eva_fast.errors import UsageError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MOST_IMAGE = 1 << 30
"""Bytes of an image in a shard that is read from its beginning."""
_MOST_MEMBER = 1 << 62  # what a file can be seeked over
# Members that describe the next one: long names, and whatever else a writer wanted to say.
_DESCRIPTIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_MOST_DESCRIPTION = 1 << 20
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..12}.tar` and `{train,val}.tar` spelt out, as a shell does; also several braces.

    Raises ValueError for braces that do not match.
    """
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise UsageError(f"unmatched brace in {pattern!r}")
        return [pattern]
    depth, commas = 0, [start]
    for i in range(start, len(pattern)):
        depth += (pattern[i] == "{") - (pattern[i] == "}")
        if pattern[i] == "," and depth == 1:
            commas.append(i)
        if depth == 0:
            break
    else:
        raise UsageError(f"unmatched brace in {pattern!r}")
    head, body, tail = pattern[:start], pattern[start + 1 : i], pattern[i + 1 :]
    numbers = _RANGE.match(body)
    if numbers:
        low, high = numbers.groups()
        if int(low) > int(high):
            raise UsageError(f"the range {{{body}}} in {pattern!r} runs backwards")
        width = len(low) if low.startswith("0") or len(low) == len(high) else 0
        choices = [str(n).zfill(width) for n in range(int(low), int(high) + 1)]
    elif len(commas) > 1:
        bounds = [*commas, i]
        choices = [pattern[a + 1 : b] for a, b in itertools.pairwise(bounds)]
        choices = [deep for choice in choices for deep in expand_braces(choice)]
    else:
        raise UsageError(
            f"{{{body}}} in {pattern!r} is neither a range {{00..12}} nor a list {{a,b}}"
        )
    tails = expand_braces(tail)
    return [head + choice + rest for choice in choices for rest in tails]


def is_compressed(name: str) -> bool:
    """Whether a shard can only be read from its beginning, by its name."""
    return name.lower().endswith(_COMPRESSED)


def is_shard(name: str) -> bool:
    """Whether a file is a tar shard, by its name."""
    return name.lower().endswith((".tar", *_COMPRESSED))


class StrictInfo(tarfile.TarInfo):
    """Makes tarfile report a damaged header in the middle, which it takes for the archive's end, and
    headers that would have it read without end. Every fault is a tarfile.ReadError."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "StrictInfo":
        try:
            member = super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from None
        except RecursionError:
            raise tarfile.ReadError(f"headers of headers at byte {tar.offset}") from None
        except (ValueError, LookupError, ArithmeticError, MemoryError) as error:
            raise tarfile.ReadError(f"a bad header ({error}) at byte {tar.offset}") from None
        member._check_size(tar)  # which a header of its own may have said anew
        return member

    def _proc_member(self, tar: tarfile.TarFile) -> "StrictInfo":  # tarfile's entry for subclasses
        self._check_size(tar)
        if self.type in _DESCRIPTIONS and self.size > _MOST_DESCRIPTION:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {tar.offset}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _check_size(self, tar: tarfile.TarFile) -> None:
        if not 0 <= self.size < _MOST_MEMBER:  # tarfile would read backwards, or for ever
            raise tarfile.ReadError(f"a member of {self.size:,} bytes at byte {tar.offset}")


def is_image(member: tarfile.TarInfo) -> bool:
    """Whether a member of a shard is an image, by its name: a plain file, without the holes that could
    stand for terabytes."""
    base = member.name.rpartition("/")[2]
    plain = member.isreg() and not member.issparse()
    return plain and base.lower().endswith(image_suffixes()) and not base.startswith(".")


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of an image. tarfile.ReadError where it is larger than any: of a compressed archive a
    few bytes can unpack to gigabytes."""
    if member.size > MOST_IMAGE:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, which no image has")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def member_label(name: str) -> str | None:
    """The folder within the shard that holds a member, or None."""
    return name.rpartition("/")[0].rpartition("/")[2] or None
