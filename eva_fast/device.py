"""Where a run computes."""

import torch

from eva_fast.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device of "auto" (an NVIDIA GPU if there is one), "cpu", "cuda" or "cuda:1". ValueError
    where there is no such device."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    if kind == "cuda" and not found:
        raise UsageError(f"device={name!r}, but torch sees no NVIDIA GPU; use 'cpu' or 'auto'")
    if kind == "cuda" and int(index or 0) >= found:
        raise UsageError(f"device={name!r}, but there are {found} NVIDIA GPUs, counted from 0")
    return torch.device(name)
