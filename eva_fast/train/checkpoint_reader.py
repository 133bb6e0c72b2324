"""DCP's reader for files from anywhere: nothing in a checkpoint can run code or name other files.

DCP keeps its table of contents as a pickle, and values that are no tensors as pickles too
(torch.distributed.checkpoint.filesystem and .default_planner). Here the first may only hold DCP's own
descriptions, and the second what `torch.load(weights_only=True)` takes.
"""

import io
import pickle
from pathlib import PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

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
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            metadata = _read(file)
        for info in (metadata.storage_data or {}).values():
            name = str(info.relative_path)
            if PurePath(name).name != name:
                raise ValueError(f"its contents lie in {name!r}, outside the checkpoint")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafeLoads(DefaultLoadPlanner):
    """Takes values that are no tensors without running what is in them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        buffer = io.BytesIO()
        torch.save(plain, buffer)  # for the planner, which reads it again without care
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise ValueError(f"its table of contents holds {module}.{name}, which no checkpoint needs")


def _read(file: Any) -> Metadata:
    try:
        found = _Unpickler(file).load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"its table of contents cannot be read ({error})") from None
    if not isinstance(found, Metadata):
        raise ValueError(f"its table of contents is a {type(found).__name__}")
    return found
