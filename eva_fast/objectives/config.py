"""Options of the objective."""

from dataclasses import dataclass

from eva_fast.options import TextOrObject


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Objective."""

    recipe: str | None = None
    """Published defaults of an objective by name, all that they say of student, crop, mask, teacher and
    optimiser: eva-g14. Options that are given win over it."""
    objective: TextOrObject = "eva"
    """What the student is trained towards: eva (the teacher's features of masked patches); from
    Python also an Objective of one's own."""
    mask_count: int | None = None
    """eva: masked patches an image; by default EVA-01's share, 105 of 256."""
    mask_min_block: int | None = None
    """eva: smallest block of masked patches; by default a sixteenth of the patches (16 of 256)."""
