"""Small real files in place of a person's own: `python -m tests.readme.materials` writes, where it
runs, data/labelled (built-in drawings, a folder a class), data/photos (the same without classes) and
ViT-L-14.pt (a tiny CLIP in OpenAI's naming, its values random)."""

import tarfile
from pathlib import Path

import torch

from eva_fast.data.sources.builtin import FOLDER
from tests.teachers.openai_tower import Clip

A_CLASS = 12


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


def clip(path: Path) -> None:
    """Weights of a CLIP whose patches are those of ViT-L/14."""
    torch.manual_seed(0)
    sizes = dict(size=224, patch=14, width=64, heads=1, layers=2, hidden=128, dim=32)
    torch.save(Clip(**sizes).state_dict(), path)


if __name__ == "__main__":
    drawings(Path("data"))
    clip(Path("ViT-L-14.pt"))
