"""What every reader of a transformer's file asks: heads, native grid, and whether the tensors fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eva_fast.errors import UsageError

# Heads of the published towers whose heads are not 64 wide: ViT-H, ViT-g, ViT-bigG of open_clip,
# EVA-01's giant (as ViT-g), SigLIP's so400m.
_HEADS = {(1280, 32): 16, (1408, 40): 16, (1664, 48): 16, (1152, 27): 16}


def count_heads(hint: Any, width: int, layers: int) -> int:
    """Attention heads, which no shape shows: what a configuration says, else what is usual."""
    if hint is not None:
        return int(hint)
    if (width, layers) in _HEADS:
        return _HEADS[width, layers]
    if width % 64:
        raise UsageError(
            f"the number of heads is unknown: width {width} is no multiple of 64; give it in "
            "config.json (num_attention_heads) or open_clip_config.json (head_width) beside the "
            "weights, or as `heads` in safetensors metadata"
        )
    return width // 64


def native_grid(patches: int, patch: int, hints: Mapping[str, Any]) -> tuple[int, int]:
    """(rows, columns) of a position embedding of so many patches. UsageError where it is of none."""
    size = hints.get("image_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else (int(n) for n in size)
        grid = (height // patch, width // patch)
        if grid[0] * grid[1] == patches:
            return grid  # else the configuration speaks of another resolution than these weights
    side = math.isqrt(patches)
    if side * side != patches or patches == 0:
        raise UsageError(f"a position embedding for {patches} patches is not of a square image")
    return side, side


def check_fits(
    path: Path, what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """UsageError that names what is missing, unknown or of another shape."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [
        f"{kind} {len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes))
        if names
    ]
    if faults:
        raise UsageError(f"{path} does not fit {what} ({'; '.join(faults)})")
