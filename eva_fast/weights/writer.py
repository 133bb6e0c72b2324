"""The writer of weight files, safetensors or torch's own, that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eva_fast.files import atomic_write


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes tensors as safetensors, in their own dtypes, and returns the path.

    Args:
        metadata: what the file says of itself. More than one entry are written in random order;
            equal weights are equal files only with one.

    OSError where it cannot be written.
    """
    with atomic_write(path) as draft:
        whole = {k: t.contiguous() for k, t in tensors.items()}
        try:
            save_file(whole, draft, dict(metadata or {}) or None)
        except SafetensorError as error:  # the library's name for a full disk, say
            raise OSError(str(error)) from None
    return Path(path)


def write_torch(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes what `torch.load(path, weights_only=True)` gives again, for code that reads nothing else.
    OSError where it cannot be written."""
    with atomic_write(path) as draft:
        try:
            torch.save(value, draft)
        except RuntimeError as error:  # torch's name for a full disk
            raise OSError(str(error)) from None
    return Path(path)
