"""Weights in a folder, whole or in shards, as Hugging Face, open_clip and timm save them."""

from __future__ import annotations

from pathlib import Path

from eva_fast.documents import read_object
from eva_fast.errors import MissingFileError, UsageError

INDEX = ".index.json"
# In order of preference: open_clip's files come with the kind of GELU, safetensors load lazily.
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors" + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weight_file(folder: Path) -> Path:
    """The weight file of a folder, or the index of its shards: one of `WEIGHT_FILES`, else the only
    index, else the only file with a weight file's suffix. MissingFileError where none is meant."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(p for p in folder.iterdir() if p.is_file())
    indices = [p for p in files if p.name.endswith(INDEX)]
    others = [p for p in files if p.suffix in SUFFIXES]
    for found in (indices, others):
        if len(found) == 1:
            return found[0]
    held = ", ".join(p.name for p in others) or "no weight file"
    raise MissingFileError(
        f"folder {folder} holds {held}; expected one weight file or one of "
        f"{', '.join(WEIGHT_FILES)}"
    )


def shards(index: Path) -> dict[str, str]:
    """{name of a tensor: file name of its shard} of an index. Shards lie beside their index: folders
    in a name are left out."""
    try:
        table = read_object(index)["weight_map"]
        home = {str(name): Path(shard).name for name, shard in table.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{index} is no index of weight files: {error}") from error
    if not home:
        raise UsageError(f"{index} is no index of weight files: it lists no tensors")
    return home
