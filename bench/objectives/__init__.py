"""The training steps of the other objectives beside the same on timm's modules, in plain PyTorch.

    python -m bench.objectives fd [--depth 4] [--batch-size 4] [--seconds 60] [--processor]

Both sides of a pair start from the same weights and see one batch with one target again and again; the
teacher is left out. Their losses and gradients are compared before they are timed.
"""

import importlib

from bench.objectives.pair import Pair

NAMES = ("fd", "swin", "tokens", "mae")


def pair(name: str, model: str | None = None, depth: int | None = None, batch: int = 2) -> Pair:
    """Of an objective; model: a name of its students, by default the published one, with `depth`
    blocks of its own number."""
    module = importlib.import_module(f"bench.objectives.{name}")
    return module.pair(model or module.MODEL, depth, batch)
