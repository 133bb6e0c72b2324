"""Pickles from anywhere, read without running what is in them.

Which classes and functions a pickle may name, each reader says in `find_class`. The same for all is: a
few bytes reserve no memory, and nothing but the objects that the pickle itself made is changed.
`check_archive` asks the same of what goes to `torch.load(weights_only=True)`, which runs nothing.
"""

from __future__ import annotations

import enum
import io
import mmap
import pickle
import zipfile
from collections.abc import Iterable
from typing import IO, Any, ClassVar

ZIP = b"PK\x03\x04"
# torch.load(weights_only=True) knows one name that reserves and fills memory by a number.
_RESERVES = b"\nbytearray\n"


# The unpickler in Python, not the one in C: a few hostile bytes make that one reserve gigabytes.
class Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Reads the pickle in `data`. `find_class` refuses every name unless it is overridden.

    `load` raises pickle.UnpicklingError, or nearly anything else, where the bytes are damaged."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))  # of which no more can be read than is there

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")

    def load_build(self) -> None:
        """BUILD sets attributes: of objects, not of classes and functions, which all share."""
        owner = self.stack[-2]  # type: ignore[attr-defined]
        if callable(owner) or isinstance(owner, enum.Enum):
            raise pickle.UnpicklingError("it sets attributes of what it does not own")
        super().load_build()  # type: ignore[misc]

    def load_reserved(self) -> None:
        raise pickle.UnpicklingError("it reserves memory by a number")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_reserved


def check_archive(file: IO[bytes]) -> None:
    """pickle.UnpicklingError where an archive of `torch.save` could take far more memory than its own
    size: compressed, as torch writes none, or with a pickle that reserves memory. zipfile.BadZipFile
    where it is no archive. `file` is left at its beginning."""
    with zipfile.ZipFile(file) as archive:
        check_stored(archive.infolist())
        for name in archive.namelist():
            if name.endswith("/data.pkl") and _RESERVES in archive.read(name):
                raise pickle.UnpicklingError("it reserves memory by a number")
    file.seek(0)


def check_legacy(file: IO[bytes]) -> None:
    """The same for what `torch.save` wrote before its archives: pickles, then the storages."""
    if file.seek(0, io.SEEK_END):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_RESERVES) >= 0:
                raise pickle.UnpicklingError("it reserves memory by a number")
    file.seek(0)


def check_stored(entries: Iterable[zipfile.ZipInfo]) -> None:
    """pickle.UnpicklingError where any is compressed: it could unpack to a thousand times its size."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickle.UnpicklingError("it is compressed, which torch's own archives are not")
