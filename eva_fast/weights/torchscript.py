"""Tensors of a TorchScript archive, without running anything that is in it.

Such an archive is a zip file: `data.pkl` is a pickle that describes a tree of modules, `data/<key>`
the bytes of each storage, `code/` the program. The program is ignored, and the pickle is read by an
unpickler that knows only plain containers, module placeholders and tensor descriptions; any other
name in it is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_fast.weights.pickles import Unpickler, check_stored

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_NAMES = 1_000_000
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _TensorSpec:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _ScriptObject:
    """Stands for a TorchScript module: its fields, none of its code."""

    fields: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}


class _TensorUnpickler(Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # Made anew for each file: a hostile pickle may set attributes on what it is handed.
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (
                _TensorSpec(storage, offset, tuple(size), tuple(stride))
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        }
        for name in _LISTS:
            self._known["torch.jit._pickle", name] = lambda items: items
        for name, dtype in _STORAGES.items():
            self._known["torch", name] = dtype

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            if module != "__torch__" and not module.startswith("__torch__."):
                return super().find_class(module, name)
            self._known[module, name] = type(name, (_ScriptObject,), {})
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage"):
            raise pickle.UnpicklingError("it holds a reference that is not a tensor's storage")
        if not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("a storage has no element type")
        return _Storage(str(pid[2]), pid[1])


def is_torchscript(path: Path) -> bool:
    """True for zip files of torch.jit.save: those of torch.save have no code and constants."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and _root(names) is not None


def read_torchscript(path: Path) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """State dict of a TorchScript archive, each tensor read when its function is called.

    Returns:
        name -> function giving the tensor on the CPU in its own dtype, and hints about the
        architecture that the module tree holds: `heads`, `activation`.

    Raises:
        pickle.UnpicklingError, KeyError, zipfile.BadZipFile: not such an archive, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        root = _root(archive.namelist())
        data = (f"{root}data.pkl", f"{root}data/")  # its program is compressed, and not read
        check_stored(entry for entry in archive.infolist() if entry.filename.startswith(data))
        tree = _TensorUnpickler(archive.read(f"{root}data.pkl")).load()
    if not isinstance(tree, _ScriptObject):
        raise pickle.UnpicklingError("it does not describe a module")
    tensors: dict[str, Callable[[], Tensor]] = {}
    hints: dict[str, str] = {}
    for name, value in _walk(tree, ""):
        if isinstance(value, _TensorSpec):
            entry = f"{root}data/{value.storage.key}"
            if entry not in names:
                raise pickle.UnpicklingError(f"it has no storage {value.storage.key}")
            tensors[name] = partial(_read_tensor, path, entry, value)
        elif name.startswith("visual."):
            if name.endswith(".attn.num_heads"):
                hints["heads"] = str(value)
            elif isinstance(value, _ScriptObject) and "GELU" in type(value).__name__:
                quick = type(value).__name__ == "QuickGELU"
                hints["activation"] = "quick_gelu" if quick else "gelu"
    return tensors, hints


def _root(names: list[str]) -> str | None:
    """`ViT-L-14/` of an archive with `ViT-L-14/data.pkl`."""
    return next((n[: -len("data.pkl")] for n in names if n.endswith("data.pkl")), None)


def _walk(module: _ScriptObject, prefix: str) -> Iterator[tuple[str, Any]]:
    stack = [(module, prefix, frozenset([id(module)]))]
    count = 0
    while stack:
        node, path, above = stack.pop()
        for key, value in getattr(node, "fields", {}).items():
            name = f"{path}{key}"
            # A few modules that share each other can be reached by endlessly many names.
            count += 1
            if count > _MAX_NAMES:
                raise pickle.UnpicklingError(f"it has more than {_MAX_NAMES} names")
            yield name, value
            if isinstance(value, _ScriptObject) and id(value) not in above:
                stack.append((value, f"{name}.", above | {id(value)}))


def _read_tensor(path: Path, entry: str, spec: _TensorSpec) -> Tensor:
    with zipfile.ZipFile(path) as archive:
        data = bytearray(archive.read(entry))
    if not data:
        return torch.empty(spec.size, dtype=spec.storage.dtype)
    # as_strided checks that the description stays inside the storage.
    flat = torch.frombuffer(data, dtype=spec.storage.dtype)
    return flat.as_strided(spec.size, spec.stride, spec.offset)
