"""DCP's reader for files from anywhere: nothing in a checkpoint can run code or name other files.

DCP keeps its table of contents as a pickle, and values that are no tensors as pickles too
(torch.distributed.checkpoint.filesystem and .default_planner). Here the first may only hold DCP's own
descriptions, and the second what `torch.load(weights_only=True)` takes.
"""

import io
import math
import os
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from eva_fast.files import is_name, read_file
from eva_fast.weights.pickles import Unpickler, check_archive

_DCP = "torch.distributed.checkpoint."
_METADATA = frozenset(
    (_DCP + "metadata", name)
    for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )
)  # fmt: skip
ALLOWED = _METADATA | {
    (_DCP + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(
        (home, kind)
        for home in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath")
    ),
}


class SafeReader(FileSystemReader):
    """Reads the table of contents without running what is in it. ValueError for anything foreign."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _read(Path(self._get_metadata_path(kwargs.get("rank"))))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        file.seek(sinfo.offset)
        part = io.BytesIO(file.read(sinfo.length))
        check_archive(part)
        return part


class SafeLoads(DefaultLoadPlanner):
    """Takes values that are no tensors without running what is in them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        buffer = io.BytesIO()
        torch.save(plain, buffer)  # for the planner, which reads it again without care
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _Unpickler(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) in ALLOWED:
            return super(Unpickler, self).find_class(module, name)
        raise ValueError(f"its table of contents holds {module}.{name}, which no checkpoint needs")


def _read(path: Path) -> Metadata:
    try:
        found = _Unpickler(read_file(path)).load()
    except (ValueError, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"its table of contents cannot be read ({error})") from None
    if not isinstance(found, Metadata):
        raise ValueError(f"its table of contents is a {type(found).__name__}")
    try:
        _check(found, path.parent)
    except (AttributeError, TypeError):  # a part is missing, or is something else
        raise ValueError("its table of contents is not that of a checkpoint") from None
    return found


def _check(metadata: Metadata, folder: Path) -> None:
    """ValueError, or whatever a foreign object raises, unless all that is listed lies in the files of
    `folder`, and no tensor is larger than they are."""
    held: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        name = info.relative_path
        if not is_name(name):
            raise ValueError(f"its contents lie in {name!r}, outside the checkpoint")
        if name not in held:
            held[name] = os.stat(folder / name, follow_symlinks=False).st_size
        if not (isinstance(index.fqn, str) and _counts(info.offset, info.length)):
            raise TypeError
        if info.offset + info.length > held[name]:
            raise ValueError(f"{name} is shorter than what its table of contents says")
        if getattr(info, "transform_descriptors", None):
            raise ValueError("its files are compressed, which no checkpoint is")
    most = sum(held.values())
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata) and isinstance(name, str):
            continue
        dtype, shapes = entry.properties.dtype, [entry.size]
        for chunk in entry.chunks:
            shapes += [chunk.sizes, chunk.offsets]
        sound = isinstance(name, str) and isinstance(entry, TensorStorageMetadata)
        if not (sound and isinstance(dtype, torch.dtype) and all(_counts(*s) for s in shapes)):
            raise TypeError
        if math.prod(entry.size) * dtype.itemsize > most:
            raise ValueError(f"{name} is larger than all its files")


def _counts(*values: Any) -> bool:
    """Whether all are whole numbers of at least 0."""
    return all(type(value) is int and value >= 0 for value in values)
