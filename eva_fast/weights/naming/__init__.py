"""Names of the same weights in several libraries, each a table that is read in both directions.

Ours of a CLIP image tower are OpenAI's without `visual.` (`teachers/clip.py`); ours of the student
are the official EVA-01 code's (`model/vit.py`), ours of any other vision transformer timm's
(`teachers/vit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eva_fast.weights.naming import hf, official, open_clip, openai, swin, timm, vit
from eva_fast.weights.naming.table import Naming, Rule

__all__ = [
    "CLIP",
    "EVA",
    "SWIN",
    "SWIN_V2",
    "VIT",
    "Naming",
    "Rule",
    "find",
    "hf",
    "official",
    "open_clip",
    "openai",
    "swin",
    "timm",
    "vit",
]

CLIP = (openai.CLIP, hf.CLIP, timm.CLIP)
"""Where a CLIP image tower is looked for, in this order."""
EVA = (official.EVA, official.FINE_TUNED, timm.VIT, timm.VIT_POOLED, hf.VIT)
"""Where a student is looked for; files of open_clip hold timm's names behind a prefix."""
VIT = vit.ALL
"""Where any other vision transformer is looked for."""
SWIN = (swin.V1, swin.TIMM_V1)
"""Where a Swin (V1) is looked for as a teacher."""
SWIN_V2 = (swin.V2, swin.TIMM_V2)
"""Where a Swin V2 is looked for as a student."""


def find(names: Mapping[str, object], namings: Sequence[Naming]) -> tuple[Naming, str] | None:
    """The first naming that `names` follow, and the prefix before them; None if none."""
    for naming in namings:
        if (prefix := naming.find(names)) is not None:
            return naming, prefix
    return None
