"""open_clip: OpenAI's names for its own towers, timm's behind `visual.trunk.` for timm's."""

from __future__ import annotations

from eva_fast.weights.naming import openai, timm

TRUNK = "visual.trunk."

CLIP = openai.CLIP.under("visual.", "open_clip")
"""The image tower of a `CLIP`."""
EVA = timm.EVA.under(TRUNK, "open_clip")
"""The student as the timm tower of a `CustomTextCLIP`, where the tower keeps its last `norm`."""
EVA_POOLED = timm.EVA_POOLED.under(TRUNK, "open_clip")
"""The same where the tower has `fc_norm` instead, as with `timm_pool="avg"`."""
