"""Whether data is the data it was: by the names of its images, and by the bytes of some of them."""

import hashlib
from collections.abc import Iterable, Mapping

from eva_fast.data.sources.base import Source

_SAMPLED = 32  # images whose bytes are compared
_MASK = 2**64 - 1
_FACTOR = 0x9E3779B97F4A7C15  # odd: an order's hash is a polynomial in it, modulo 2^64


class Names:
    """A fingerprint of names and of their order. Made while an index is, for about a
    microsecond a name."""

    def __init__(self) -> None:
        self._count = self._sum = self._order = 0

    def add(self, name: bytes) -> None:
        value = _hash(name)
        self._count += 1
        self._sum = (self._sum + value) & _MASK
        self._order = (self._order * _FACTOR + value) & _MASK

    def __str__(self) -> str:
        return f"{self._count}-{self._sum:016x}-{self._order:016x}"


def count_of(names: str) -> int:
    """How many images a fingerprint is of."""
    return int(names.partition("-")[0])


def completes(now: str, missing: Iterable[bytes], then: str) -> bool:
    """Whether the names of `now` and `missing` are together those of `then`."""
    count, total = count_of(now), int(now.split("-")[1], 16)
    for name in missing:
        count, total = count + 1, (total + _hash(name)) & _MASK
    return count == count_of(then) and total == int(then.split("-")[1], 16)


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def contents(source: Source) -> dict[str, str]:
    """{number: digest of the bytes} of up to 32 images, spread over a source that has `names`; what
    cannot be read is left out."""
    if source.names is None:
        return {}
    count = len(source)
    sampled = min(count, _SAMPLED)
    numbers = [place * count // sampled for place in range(sampled)]
    found = {str(number): _digest(source, number) for number in numbers}
    return {number: digest for number, digest in found.items() if digest is not None}


def same_contents(source: Source, then: Mapping[str, str]) -> bool:
    """Whether images that `contents` saw have the same bytes now, as far as they can be read."""
    now = {n: _digest(source, int(n)) for n in then if int(n) < len(source)}
    now = {number: digest for number, digest in now.items() if digest is not None}
    return bool(now) and all(then[number] == digest for number, digest in now.items())


def _digest(source: Source, number: int) -> str | None:
    try:
        data = source.read(number)
    except Exception:  # whatever a file system or a source's own code raises
        return None
    return hashlib.blake2b(data, digest_size=8).hexdigest() if isinstance(data, bytes) else None
