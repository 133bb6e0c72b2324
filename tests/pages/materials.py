"""Small real files in place of a person's own; `python -m tests.pages.materials` writes them.

data/labelled (built-in drawings, a folder a class), data/photos (the same without classes; photos and
photographs too), data/shard-{000000..000001}.tar, scenes (arrays of five channels), ViT-L-14.pt (a tiny
CLIP in OpenAI's naming, its values random) and dinov3.safetensors (a narrow one of timm)."""

import tarfile
from pathlib import Path

import numpy as np
import torch

from eva_fast.data.sources.builtin import FOLDER
from tests.teachers.openai_tower import Clip

A_CLASS = 6


def drawings(root: Path) -> None:
    """The first drawings of each class of the validation shard."""
    counts: dict[str, int] = {}
    (shard,) = FOLDER.glob("val-*.tar.gz")
    with tarfile.open(shard) as members:
        for member in members:
            label, name = Path(member.name).parts[-2:]
            counts[label] = counts.get(label, 0) + 1
            if counts[label] > A_CLASS:
                continue
            file = members.extractfile(member)
            assert file is not None
            content = file.read()
            for path in (root / "labelled" / label / name, root / "photos" / f"{label}-{name}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def shards(root: Path) -> None:
    """Two tar shards of the photos."""
    paths = sorted((root / "photos").iterdir())
    for number in range(2):
        with tarfile.open(root / f"shard-{number:06d}.tar", "w") as tar:
            for path in paths[number::2]:
                tar.add(path, path.name)


def scenes(root: Path) -> None:
    """Arrays [40, 48, 5] of 16 bits."""
    root.mkdir()
    draw = np.random.default_rng(0)
    for number in range(8):
        np.save(root / f"{number}.npy", draw.integers(0, 2**16, (40, 48, 5), dtype=np.uint16))


def clip(path: Path) -> None:
    """Weights of a CLIP whose patches are those of ViT-L/14."""
    torch.manual_seed(0)
    sizes = dict(size=224, patch=14, width=64, heads=1, layers=2, hidden=128, dim=32)
    torch.save(Clip(**sizes).state_dict(), path)


def dinov3(path: Path) -> None:
    """A narrow network as timm's files have it."""
    import timm
    from safetensors.torch import save_file

    sizes = dict(embed_dim=32, num_heads=2)
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=5, **sizes)
    save_file(model.state_dict(), path)


def write(root: Path) -> Path:
    """All of it below a folder."""
    drawings(root / "data")
    shards(root / "data")
    scenes(root / "scenes")
    clip(root / "ViT-L-14.pt")
    dinov3(root / "dinov3.safetensors")
    for name in ("photos", "photographs"):
        (root / name).symlink_to(Path("data") / "photos")
    (root / "path" / "to" / "clip").mkdir(parents=True)
    for name in ("merged_30m_pt", "ImageNet-1K"):
        (root / "path" / "to" / name).symlink_to(Path("../..") / "data" / "labelled")
    (root / "path" / "to" / "clip" / "large").symlink_to(Path("../../.."))
    return root


if __name__ == "__main__":
    write(Path())
