"""What `accelerate` took and what it left, and why."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One block. Each part is None where it is fused, else why the library's own runs."""

    kind: str
    """The library's class, as "timm.models.eva.EvaBlock"."""
    attention: str | None
    mlp: str | None
    training: str | None = None
    """Why a part runs as the library wrote it while the block trains, although it is fused else."""

    def __str__(self) -> str:
        parts = {"attention": self.attention, "MLP": self.mlp}
        fused = [name for name, left in parts.items() if left is None]
        words = [" and ".join(fused) + " fused" if fused else "the norm between fused"]
        words += [f"{name} left: {left}" for name, left in parts.items() if left is not None]
        if self.training is not None:
            words.append(f"while training left: {self.training}")
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Report:
    """All blocks of a network, by their names in it."""

    blocks: dict[str, BlockReport]

    def __str__(self) -> str:
        """Blocks of one kind and fate in one line."""
        total = len(self.blocks)
        kinds = Counter((block.kind, str(block)) for block in self.blocks.values())
        return "\n".join(
            f"{n} of {total} blocks ({kind}): {fate}" for (kind, fate), n in kinds.items()
        )
