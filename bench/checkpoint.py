"""Saving and loading a training checkpoint: weights and both moments, checksummed and durable."""

import shutil
import tempfile
import weakref
from pathlib import Path

import torch

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.model import EvaViT
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import save as save_checkpoint

MODES = ("save", "load")


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """The reference is torch.save and torch.load of the same tensors, which neither checks sums
    nor survives a kill; eva_fast's folder is written aside, synced, then renamed."""
    torch.manual_seed(0)
    weights = EvaViT(shape.sizes).state_dict()
    tensors = {
        f"{kind}.{name}": value.clone()
        for kind in ("model", "exp_avg", "exp_avg_sq")
        for name, value in weights.items()
    }
    root = Path(tempfile.mkdtemp(prefix="eva-fast-bench-"))
    plain_file, folders = root / "plain.pt", root / "steps"
    save_checkpoint(folders, 1, dict(tensors), {"step": 1}, keep=1)
    torch.save(tensors, plain_file)
    number = iter(range(2, 1_000_000))

    def save() -> None:
        save_checkpoint(folders, next(number), dict(tensors), {"step": 1}, keep=1)

    def load() -> dict[str, torch.Tensor]:
        into = {k: torch.empty_like(v) for k, v in tensors.items()}
        folder = checkpoint.newest(folders)
        assert folder is not None
        checkpoint.load(folder, into)
        return into

    def plain_load() -> dict[str, torch.Tensor]:
        return torch.load(plain_file, weights_only=True)

    def sample(loaded: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [loaded[k] for k in sorted(tensors)[:: max(1, len(tensors) // 16)]]

    calls = {
        "save": (lambda: torch.save(tensors, plain_file), save),
        "load": (plain_load, load),
    }[mode]
    case = Case(
        subject="checkpoint",
        mode=mode,
        shape=shape.label,
        device="cpu",
        variants={
            "reference": Variant(calls[0], lambda: sample(plain_load())),
            "eva_fast": Variant(calls[1], lambda: sample(load())),
        },
        missing=kit.missing,
        tolerance=0.0,
    )
    weakref.finalize(case.variants["eva_fast"].call, shutil.rmtree, root, ignore_errors=True)
    return case
