"""The one reader of weight files: tensors by name, whoever wrote them; pickled code is never run.

weights = read("ViT-L-14.pt")        # or safetensors, .pth, .bin, an index of shards, a folder
weights["visual.proj"]               # read from the file when asked for
weights.metadata                     # what a safetensors file says of itself
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PosixPath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from eva_fast.errors import MissingFileError, UsageError, first_line
from eva_fast.weights import folder
from eva_fast.weights.hashes import check_hash
from eva_fast.weights.pickles import ZIP, check_archive, check_legacy
from eva_fast.weights.text import text_hint
from eva_fast.weights.torchscript import is_torchscript, read_torchscript

log = logging.getLogger(__name__)
FORMATS = (
    "a safetensors file, a state dict saved by torch.save, or a TorchScript archive "
    "such as OpenAI's ViT-L-14.pt"
)
# What training code puts around a state dict. Averages of the weights come first: DINO's teacher is one.
WRAPPERS = (
    "state_dict_ema", "model_ema", "model_ema_state_dict", "params_ema", "ema", "teacher",
    "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "student",
)  # fmt: skip
# What DistributedDataParallel and torch.compile put in front of every name.
PREFIXES = ("module.", "_orig_mod.")
# Beside tensors and plain containers: harmless data that training code keeps in its checkpoints.
_PLAIN_CLASSES: list[Any] = [argparse.Namespace, PosixPath]


class Weights(Mapping[str, Tensor]):
    """Tensors by name, each read when asked for, so that what nobody wants costs nothing.

    `path` is the file (of shards: their index), `metadata` what the file says of itself, `kind`
    "safetensors", "torch" or "torchscript".
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
        read = self._tensors[name]
        try:
            return read()
        except UsageError:
            raise
        except Exception as error:  # a broken file can make the readers fail in any way
            raise _damaged(self.path, error) from error

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read(path: str | os.PathLike[str]) -> Weights:
    """Open weights: a file of any of `FORMATS`, an index of shards (`*.index.json`), or a folder as
    Hugging Face, open_clip or timm save it. A hash in a file's name is checked. Names lose prefixes
    that all of them share and that only wrappers of modules put there (`module.`, `_orig_mod.`).

    Raises:
        FileNotFoundError: no such file, or none in the folder.
        UsageError: damaged, truncated, wrong hash, no tensors, or objects that are not tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = folder.weight_file(path)
    if not path.is_file():
        raise MissingFileError(f"weight file {path} does not exist")
    found = _read_shards(path) if path.name.endswith(folder.INDEX) else _read_file(path)
    tensors: dict[str, Callable[[], Tensor]] = {n: partial(found.__getitem__, n) for n in found}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return Weights(found.path, found.kind, tensors, found.metadata)


def _read_shards(index: Path) -> Weights:
    home = folder.shards(index)
    parts = {shard: _read_file(index.parent / shard) for shard in sorted(set(home.values()))}
    if missing := [name for name, shard in home.items() if name not in parts[shard]]:
        raise UsageError(
            f"{index} lists tensors that its files lack: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}; some files are of another model"
        )
    tensors = {name: partial(parts[shard].__getitem__, name) for name, shard in home.items()}
    return Weights(index, next(iter(parts.values())).kind, tensors)


def _read_file(path: Path) -> Weights:
    if not path.is_file():
        raise MissingFileError(f"weight file {path} does not exist")
    check_hash(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if hint := text_hint(start):
            raise UsageError(f"{path} holds no weights: {hint}")
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            kind, (tensors, metadata) = "safetensors", _open_safetensors(path)
        elif start[:4] == ZIP and is_torchscript(path):
            kind, (tensors, metadata) = "torchscript", read_torchscript(path)
        else:
            kind, tensors, metadata = "torch", _load_pickle(path, start[:4] == ZIP), {}
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        if start[:1] not in (b"P", b"\x80") or "truncated" in str(error):
            raise _damaged(path, error) from error
        raise _pickled(path, error) from error
    except Exception as error:  # a broken file can make the readers fail in any way
        raise _damaged(path, error) from error
    if not tensors:
        raise UsageError(f"{path} holds no tensors with names, so no state dict")
    return Weights(path, kind, tensors, metadata)


def _open_safetensors(path: Path) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    file: Any = safe_open(path, "pt")
    tensors: dict[str, Callable[[], Tensor]] = {n: partial(file.get_tensor, n) for n in file.keys()}  # noqa: SIM118
    return tensors, file.metadata() or {}


def _load_pickle(path: Path, mmap: bool) -> dict[str, Callable[[], Tensor]]:
    with path.open("rb") as file:
        (check_archive if mmap else check_legacy)(file)
    with torch.serialization.safe_globals(_PLAIN_CLASSES):
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    while inner := [name for name in WRAPPERS if _holds_tensors(state, name)]:
        if len(inner) > 1:
            log.info(
                "%s holds several state dicts: %r is read, not %s. For another: "
                "torch.save(torch.load(%r)[%r], 'other.pth')",
                path, inner[0], ", ".join(map(repr, inner[1:])), str(path), inner[1],
            )  # fmt: skip
        state = state[inner[0]]
    found = state.items() if isinstance(state, Mapping) else ()
    tensors = {k: v for k, v in found if isinstance(k, str) and isinstance(v, Tensor)}
    most = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.nbytes > most:
            raise ValueError(f"it does not hold all of {name[:200]!r}")
    return {name: tensor.detach for name, tensor in tensors.items()}


def _holds_tensors(state: Any, name: str) -> bool:
    """Whether entry `name` is a state dict, or has one in it."""
    value = state.get(name) if isinstance(state, Mapping) else None
    return isinstance(value, Mapping) and (
        any(isinstance(v, Tensor) for v in value.values())
        or any(_holds_tensors(value, inner) for inner in WRAPPERS)
    )


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} is not a readable weight file: it is damaged, truncated or no weight file at all "
        f"({type(error).__name__}: {first_line(error)}); expected {FORMATS}"
    )


def _pickled(path: Path, error: Exception) -> UsageError:
    """torch's own message advises to run whatever is in the file, so only the type is taken from it."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    return UsageError(
        f"{path} is not a readable weight file: it holds pickled Python objects besides tensors "
        f"({refused[1] if refused else first_line(error)}), which are never loaded because loading "
        "runs code. To convert a file you trust: "
        f"state = torch.load({str(path)!r}, weights_only=False); torch.save(state['model'], "
        "'converted.pt'), or whatever the entry with the state dict is called"
    )
