"""Weight files as mappings from names to tensors; pickled code in them is never run."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.teachers.torchscript import is_torchscript, read_torchscript

FORMATS = (
    "a safetensors file, a state dict saved by torch.save, or a TorchScript archive "
    "such as OpenAI's ViT-L-14.pt"
)
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
_HASHED = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")


class Weights(Mapping[str, Tensor]):
    """Tensors by name, read from the file when asked for, so that a text tower costs nothing.

    `metadata` holds what the file says about its architecture, `kind` is "safetensors", "torch" or
    "torchscript".
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        tensors: Mapping[str, Callable[[], Tensor]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.kind, self.metadata = path, kind, dict(metadata or {})
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]()
        except (RuntimeError, zipfile.BadZipFile, ValueError, OSError) as error:
            raise damaged(self.path, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_weights(path: Path) -> Weights:
    """Open a weight file of any of `FORMATS`, after checking a hash in its name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, truncated, wrong hash, no tensors, or objects that are not tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"weight file {path} does not exist")
    check_hash(path)
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _read_safetensors(path)
        if start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                script = is_torchscript(archive)
            if script:
                tensors, hints = read_torchscript(path)
                if not tensors:
                    raise UsageError(f"{path} holds no tensors")
                return Weights(path, "torchscript", tensors, hints)
        return _read_torch(path, mmap=start[:4] == b"PK\x03\x04")
    except pickle.UnpicklingError as error:
        if start[:1] not in (b"P", b"\x80") or "truncated" in str(error):
            raise damaged(path, error) from error
        raise UsageError(
            f"{path} holds pickled Python objects besides tensors, which are never loaded because "
            f"loading runs code ({_first_line(error)}); save its state dict as safetensors"
        ) from error
    except Exception as error:  # a broken file can make the readers fail in any way
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(
        f"{path} cannot be read: it is damaged, truncated or no weight file "
        f"({type(error).__name__}: {_first_line(error)}); expected {FORMATS}"
    )


def check_hash(path: Path) -> None:
    """Compare sha256 with the prefix in torch hub's names (`mobilenet_v2-b0353104.pth`), if any."""
    match = _HASHED.search(path.name)
    if match is None:
        return
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    if not digest.hexdigest().startswith(match[1]):
        raise UsageError(
            f"{path} is not what its name says: sha256 starts with "
            f"{digest.hexdigest()[: len(match[1])]}, the name ends in {match[1]}. The file is "
            "damaged or another one; rename it if that ending is no hash"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _read_safetensors(path: Path) -> Weights:
    file = safe_open(path, "pt")
    names = file.keys()
    tensors = {name: partial(file.get_tensor, name) for name in names}
    if not tensors:
        raise UsageError(f"{path} holds no tensors")
    return Weights(path, "safetensors", tensors, file.metadata())


def _read_torch(path: Path, mmap: bool) -> Weights:
    state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {}
    if isinstance(state, Mapping):
        for name, value in state.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                tensors[name] = value.detach
    if not tensors:
        raise UsageError(f"{path} holds no state dict: no tensor with a name in it")
    return Weights(path, "torch", tensors)
